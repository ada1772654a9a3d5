// The whole forward pass of a decoder as one call: what Python would do operation by operation.
//
// Rounds where the operations round, so both give the same bits. Owns only its activations: weights
// and caches are addresses that the caller keeps alive.

#ifndef MTACTORS_KERNELS_CPU_DECODER_H
#define MTACTORS_KERNELS_CPU_DECODER_H

#include <stdint.h>

#include <vector>

#include "ops.h"
#include "shared.h"

namespace mt {

struct Matrix {
  const void* data = nullptr;  // packed
  int n = 0, k = 0;
};

struct DecoderLayer {
  Matrix qkv, o, gate_up, down;
  const void *input_norm = nullptr, *post_norm = nullptr, *q_norm = nullptr, *k_norm = nullptr;
  const void *qkv_bias = nullptr, *o_bias = nullptr;
  void *k_cache = nullptr, *v_cache = nullptr;
  int window = 0;
};

// The step's arrays; see mtactors.kernels.AttentionBatch and Operations.rope.
struct DecoderStep {
  const int32_t* ids = nullptr;
  int tokens = 0;
  const int32_t* rope_rows = nullptr;  // null: no rope
  const float* cos_sin = nullptr;
  const float* q_scale = nullptr;
  int rotary_dim = 0, interleaved = 0;
  const int32_t *query_start = nullptr, *seq_lens = nullptr, *block_tables = nullptr;
  int64_t block_tables_stride = 0;
  int sequences = 0;
  const int64_t* slots = nullptr;
  const int64_t* hidden_rows = nullptr;  // tokens wanted
  int num_hidden_rows = -1;              // -1: all tokens
  void* hidden = nullptr;  // (rows wanted, hidden_size), final norm applied
};

class Decoder {
 public:
  const Ops* ops = nullptr;
  int dtype = MT_BF16, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, block_size = 64;
  int first_row = 0;
  bool cast_first = true;
  float eps = 1e-5f, scale = 1.0f;
  const float* alibi_slopes = nullptr;
  Matrix embedding;
  const void* final_norm = nullptr;
  std::vector<DecoderLayer> layers;
  SharedGroup* group = nullptr;  // null: one rank
  double timeout = 600.0;

  void forward(const DecoderStep& step);

 private:
  void embed(const DecoderStep& step);
  void attend(const DecoderLayer& layer, const DecoderStep& step);
  void rotate(const DecoderLayer& layer, const DecoderStep& step);
  void mlp(const DecoderLayer& layer, int rows);
  void norm(const void* x, const void* weight, void* out, int64_t out_stride, int rows);
  void head_norm(void* x, const void* weight, int rows, int num_heads);
  // residual += x times the matrix (and bias), over all ranks. Rows of residual_ have no gaps,
  // those of the other buffers are stride(width) apart.
  void project_add(const Matrix& matrix, const void* bias, const void* x, void* residual, int rows);
  void pick(void* from, void* to, int width, int64_t row_stride, const DecoderStep& step);
  int64_t stride(int width) const;
  char* at(void* base, int64_t elements) const {
    return static_cast<char*>(base) + elements * element_size(dtype);
  }
  void reserve(int tokens);

  std::vector<char> memory_;
  int reserved_ = 0;
  void *residual_ = nullptr, *normed_ = nullptr, *qkv_ = nullptr, *mixed_ = nullptr,
       *gate_up_ = nullptr, *act_ = nullptr, *picked_ = nullptr;
};

}  // namespace mt

#endif
