// The forward pass: embedding, layers, final norm.

#include "decoder.h"

#include <string.h>

#include <algorithm>

#include "pool.h"

namespace mt {

// Elements from a row of `width` to the next: an odd number of cache lines, so that the same place
// of many rows does not compete for a few sets of a cache.
int64_t Decoder::stride(int width) const {
  const int64_t per_line = 64 / element_size(dtype);
  return ((width + per_line - 1) / per_line | 1) * per_line;
}

void Decoder::reserve(int tokens) {
  if (tokens <= reserved_) return;
  int qkv_width = 0, mixed_width = heads * head_dim, wide = 0;
  for (const DecoderLayer& layer : layers) {
    qkv_width = std::max(qkv_width, layer.qkv.n);
    wide = std::max(wide, layer.gate_up.n);
  }
  const int widths[] = {hidden, hidden, qkv_width, mixed_width, wide, wide / 2, mixed_width};
  void** parts[] = {&residual_, &normed_, &qkv_, &mixed_, &gate_up_, &act_, &picked_};
  size_t total = 64;
  size_t sizes[7];
  for (int i = 0; i < 7; ++i) {
    // A line between two buffers, so that rows of one are not a multiple of 4 KB from the other's.
    sizes[i] = static_cast<size_t>(stride(widths[i]) * tokens * element_size(dtype) + 64);
    total += sizes[i];
  }
  memory_ = std::vector<char>();
  memory_.resize(total);
  char* p = memory_.data();
  p += (64 - reinterpret_cast<uintptr_t>(p) % 64) % 64;
  for (int i = 0; i < 7; ++i) {
    *parts[i] = p;
    p += sizes[i];
  }
  reserved_ = tokens;
}

void Decoder::forward(const DecoderStep& step) {
  reserve(step.tokens);
  embed(step);
  const bool all = step.num_hidden_rows < 0;
  const int wanted = all ? step.tokens : step.num_hidden_rows;
  for (size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    const bool last = i + 1 == layers.size();
    norm(residual_, layer.input_norm, normed_, stride(hidden), step.tokens);
    rotate(layer, step);
    // Behind the last cache write only the rows that are asked for matter.
    if (last && wanted == 0) return;
    attend(layer, step);
    void* mixed = mixed_;
    int rows = step.tokens;
    if (last && !all) {
      const int width = heads * head_dim;
      pick(mixed_, picked_, width, stride(width), step);
      pick(residual_, normed_, hidden, hidden, step);
      std::swap(residual_, normed_);
      mixed = picked_;
      rows = wanted;
    }
    project_add(layer.o, layer.o_bias, mixed, residual_, rows);
    norm(residual_, layer.post_norm, normed_, stride(hidden), rows);
    mlp(layer, rows);
  }
  norm(residual_, final_norm, step.hidden, hidden, wanted);
}

void Decoder::embed(const DecoderStep& step) {
  mt_embedding op = {};
  op.ids = step.ids;
  op.weight = embedding.data;
  op.out = residual_;
  op.out_stride = op.k = hidden;
  op.tokens = step.tokens;
  op.n = embedding.n;
  op.first_row = first_row;
  op.dtype = dtype;
  ops->embedding(op);
  if (group == nullptr) return;
  // One rank has the row and the others zeros: OR is the sum.
  const size_t row_bytes = static_cast<size_t>(hidden) * element_size(dtype);
  const int per_round = static_cast<int>(group->capacity() / row_bytes);
  for (int row = 0; row < step.tokens; row += per_round) {
    const size_t bytes = row_bytes * std::min(per_round, step.tokens - row);
    char* rows = static_cast<char*>(residual_) + row * row_bytes;
    memcpy(group->mine(), rows, bytes);
    group->exchange(timeout);
    for (int r = 0; r < group->size(); ++r) {
      if (r == group->rank()) continue;
      const char* other = static_cast<const char*>(group->theirs(r));
      for (size_t i = 0; i < bytes; ++i) rows[i] |= other[i];
    }
  }
}

void Decoder::norm(const void* x, const void* weight, void* out, int64_t out_stride, int rows) {
  mt_rms_norm op = {};
  op.x = x;
  op.x_outer = op.hidden = hidden;
  op.out_outer = out_stride;
  op.weight = weight;
  op.out = out;
  op.outer = rows;
  op.inner = 1;
  op.dtype = dtype;
  op.cast_first = cast_first;
  op.eps = eps;
  ops->rms_norm(op);
}

void Decoder::head_norm(void* x, const void* weight, int rows, int num_heads) {
  const int64_t width = stride((heads + 2 * kv_heads) * head_dim);
  mt_rms_norm op = {};
  op.x = op.out = x;
  op.x_outer = op.out_outer = width;
  op.x_inner = op.out_inner = op.hidden = head_dim;
  op.weight = weight;
  op.outer = rows;
  op.inner = num_heads;
  op.dtype = dtype;
  op.cast_first = cast_first;
  op.eps = eps;
  ops->rms_norm(op);
}

// normed_ -> qkv_: projection, norms and rotation of q and k, cache write.
void Decoder::rotate(const DecoderLayer& layer, const DecoderStep& step) {
  const int64_t width = stride(layer.qkv.n);
  mt_linear project = {};
  project.x = normed_;
  project.x_stride = stride(hidden);
  project.k = hidden;
  project.weight = layer.qkv.data;
  project.bias = layer.qkv_bias;
  project.out = qkv_;
  project.out_stride = width;
  project.n = layer.qkv.n;
  project.tokens = step.tokens;
  project.dtype = project.out_dtype = dtype;
  ops->linear(project);
  void* k = at(qkv_, heads * head_dim);
  void* v = at(qkv_, (heads + kv_heads) * head_dim);
  if (layer.q_norm != nullptr) {
    head_norm(qkv_, layer.q_norm, step.tokens, heads);
    head_norm(k, layer.k_norm, step.tokens, kv_heads);
  }
  if (step.rope_rows != nullptr) {
    mt_rope op = {};
    op.q = qkv_;
    op.k = k;
    op.q_token = op.k_token = width;
    op.q_head = op.k_head = op.head_dim = head_dim;
    op.rows = step.rope_rows;
    op.cos_sin = step.cos_sin;
    op.q_scale = step.q_scale;
    op.tokens = step.tokens;
    op.q_heads = heads;
    op.k_heads = kv_heads;
    op.rotary_dim = step.rotary_dim;
    op.interleaved = step.interleaved;
    op.dtype = dtype;
    ops->rope(op);
  }
  mt_kv_write write = {};
  write.k = k;
  write.v = v;
  write.k_token = write.v_token = width;
  write.k_head = write.v_head = write.head_dim = head_dim;
  write.k_cache = layer.k_cache;
  write.v_cache = layer.v_cache;
  write.slots = step.slots;
  write.tokens = step.tokens;
  write.kv_heads = kv_heads;
  write.dtype = dtype;
  ops->kv_write(write);
}

void Decoder::attend(const DecoderLayer& layer, const DecoderStep& step) {
  mt_attention op = {};
  op.q = qkv_;
  op.q_token = stride(layer.qkv.n);
  op.q_head = op.head_dim = head_dim;
  op.k_cache = layer.k_cache;
  op.v_cache = layer.v_cache;
  op.query_start = step.query_start;
  op.seq_lens = step.seq_lens;
  op.block_tables = step.block_tables;
  op.block_tables_stride = step.block_tables_stride;
  op.alibi_slopes = alibi_slopes;
  op.out = mixed_;
  op.out_token = stride(heads * head_dim);
  op.sequences = step.sequences;
  op.tokens = step.tokens;
  op.q_heads = heads;
  op.kv_heads = kv_heads;
  op.block_size = block_size;
  op.window = layer.window;
  op.dtype = dtype;
  op.scale = scale;
  ops->attention(op);
}

void Decoder::mlp(const DecoderLayer& layer, int rows) {
  const int f = layer.gate_up.n / 2;
  // Gate and up of a column must be in panels of the same place.
  const bool fused = f % kPanel == 0;
  mt_linear op = {};
  op.x = normed_;
  op.x_stride = stride(hidden);
  op.k = hidden;
  op.weight = layer.gate_up.data;
  op.out = fused ? act_ : gate_up_;
  op.out_stride = stride(fused ? f : 2 * f);
  op.n = 2 * f;
  op.tokens = rows;
  op.dtype = op.out_dtype = dtype;
  op.fuse = fused ? MT_FUSE_SILU_MUL : MT_FUSE_NONE;
  ops->linear(op);
  if (!fused) {
    mt_silu_and_mul act = {};
    act.gate_up = gate_up_;
    act.gate_up_stride = stride(2 * f);
    act.out = act_;
    act.out_stride = stride(f);
    act.f = f;
    act.tokens = rows;
    act.dtype = dtype;
    ops->silu_and_mul(act);
  }
  project_add(layer.down, nullptr, act_, residual_, rows);
}

void Decoder::project_add(const Matrix& matrix, const void* bias, const void* x, void* residual,
                          int rows) {
  mt_linear op = {};
  op.x = x;
  op.x_stride = stride(matrix.k);
  op.k = matrix.k;
  op.weight = matrix.data;
  op.bias = bias;
  op.out_stride = op.n = matrix.n;
  op.tokens = rows;
  op.dtype = dtype;
  if (group == nullptr) {
    op.residual = op.out = residual;
    op.residual_stride = matrix.n;
    op.out_dtype = dtype;
    op.fuse = MT_FUSE_RESIDUAL;
    ops->linear(op);
    return;
  }
  // Partial sums in float32, the bias in rank 0's; added in rank order and rounded once.
  if (group->rank() != 0) op.bias = nullptr;
  op.out_dtype = MT_F32;
  const int per_round = static_cast<int>(group->capacity() / (sizeof(float) * matrix.n));
  std::vector<const float*> parts(static_cast<size_t>(group->size()));
  for (int row = 0; row < rows; row += per_round) {
    const int count = std::min(per_round, rows - row);
    op.x = static_cast<const char*>(x) + row * op.x_stride * element_size(dtype);
    op.out = group->mine();
    op.tokens = count;
    ops->linear(op);
    group->exchange(timeout);
    for (int r = 0; r < group->size(); ++r) {
      parts[static_cast<size_t>(r)] = static_cast<const float*>(group->theirs(r));
    }
    void* to = at(residual, int64_t{row} * matrix.n);
    ops->reduce(parts.data(), group->size(), nullptr, to, to, count, matrix.n, dtype);
  }
}

void Decoder::pick(void* from, void* to, int width, int64_t row_stride, const DecoderStep& step) {
  for (int i = 0; i < step.num_hidden_rows; ++i) {
    memcpy(at(to, i * row_stride), at(from, step.hidden_rows[i] * row_stride),
           static_cast<size_t>(width) * element_size(dtype));
  }
}

}  // namespace mt
