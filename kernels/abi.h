/* The operation table in C: what every backend (CPU, MUSA) is handed.
 *
 * Knows nothing of torch, Python or C++: raw pointers, int32 shapes, int64 strides (in elements),
 * one struct per operation. Formulas and rounding are those of mtactors.kernels.Operations; the
 * names here are the same. Innermost dimensions are contiguous unless a stride is given for them.
 * A `stream` is the device's queue; the CPU ignores it and returns when the result is there.
 */
#ifndef MTACTORS_KERNELS_ABI_H
#define MTACTORS_KERNELS_ABI_H

#include <stdint.h>

/* Raised whenever a struct of this file changes its layout or meaning. */
#define MT_ABI_VERSION 4

/* Element types of activations, weights and caches. */
enum { MT_F32 = 0, MT_BF16 = 1, MT_F16 = 2 };

/* What a matrix product does to its result before it is stored. */
enum {
  MT_FUSE_NONE = 0,
  MT_FUSE_SILU_MUL = 1, /* out (T, N/2) = silu(first half) * second half, each rounded */
  MT_FUSE_RESIDUAL = 2  /* out = rounded product + residual, rounded */
};

/* Copies a row-major (n, k) matrix into the backend's layout; `held` and the bytes that this takes
 * are told by the backend's own query. */
typedef struct mt_pack {
  const void* source;
  int64_t source_stride;
  void* packed;
  int32_t n, k, dtype, held;
  void* stream;
} mt_pack;

/* out (tokens, n) = x (tokens, k) times the packed weight, plus bias (n). */
typedef struct mt_linear {
  const void* x;
  int64_t x_stride;
  const void* weight;
  const void* bias; /* model dtype, or NULL */
  const void* residual;
  int64_t residual_stride;
  void* out;
  int64_t out_stride;
  int32_t tokens, n, k, dtype, out_dtype, fuse;
  void* stream;
} mt_linear;

/* out (tokens, k) = rows ids - first_row of a packed (n, k) weight; zeros outside. */
typedef struct mt_embedding {
  const int32_t* ids;
  const void* weight;
  void* out;
  int64_t out_stride;
  int32_t tokens, n, k, first_row, dtype;
  void* stream;
} mt_embedding;

/* out = norm(x + residual); the sum goes to `total`. Rows are outer x inner (tokens x heads). */
typedef struct mt_rms_norm {
  const void* x;
  int64_t x_outer, x_inner;
  const void* residual; /* NULL: plain norm; same strides as total */
  void* total;
  int64_t total_stride;
  const void* weight;
  void* out;
  int64_t out_outer, out_inner;
  int32_t outer, inner, hidden, dtype, cast_first;
  float eps;
  void* stream;
} mt_rms_norm;

/* Rotates q and k in place. cos_sin: (P, rotary_dim) float32, cosines then sines. */
typedef struct mt_rope {
  void* q;
  int64_t q_token, q_head;
  void* k;
  int64_t k_token, k_head;
  const int32_t* rows;
  const float* cos_sin;
  const float* q_scale; /* (tokens) or NULL */
  int32_t tokens, q_heads, k_heads, head_dim, rotary_dim, interleaved, dtype;
  void* stream;
} mt_rope;

/* Caches are (blocks, block_size, kv_heads, head_dim), contiguous. */
typedef struct mt_kv_write {
  const void* k;
  int64_t k_token, k_head;
  const void* v;
  int64_t v_token, v_head;
  void* k_cache;
  void* v_cache;
  const int64_t* slots; /* negative: skip */
  int32_t tokens, kv_heads, head_dim, dtype;
  void* stream;
} mt_kv_write;

/* One variable-length call for prefill chunks and decode rows; see AttentionBatch. */
typedef struct mt_attention {
  const void* q;
  int64_t q_token, q_head;
  const void* k_cache;
  const void* v_cache;
  const int32_t* query_start;
  const int32_t* seq_lens;
  const int32_t* block_tables;
  int64_t block_tables_stride;
  const float* alibi_slopes; /* (q_heads) or NULL */
  void* out;                 /* (tokens, q_heads * head_dim) */
  int64_t out_token;
  int32_t sequences, tokens, q_heads, kv_heads, head_dim, block_size, window, dtype;
  float scale;
  void* stream;
  void* workspace; /* scratch that the library asked for; NULL on the CPU */
  int64_t workspace_bytes;
} mt_attention;

/* out (tokens, f) = silu(gate_up[:, :f]) * gate_up[:, f:]. */
typedef struct mt_silu_and_mul {
  const void* gate_up;
  int64_t gate_up_stride;
  void* out;
  int64_t out_stride;
  int32_t tokens, f, dtype;
  void* stream;
} mt_silu_and_mul;

/* Copies the first tokens of blocks: rows (source, target, tokens) of `copies`, in every cache. */
typedef struct mt_copy_blocks {
  void* const* caches;
  const int64_t* copies;
  int64_t block_bytes, token_bytes;
  int32_t num_caches, num_copies;
  void* stream;
} mt_copy_blocks;

/* See SamplingBatch; every ragged list is (flat, offsets). ids (rows) int32 receives the tokens. */
typedef struct mt_sample {
  const float* logits;
  int64_t logits_stride;
  const float *temperature, *top_p, *min_p;
  const float *repetition_penalty, *presence_penalty, *frequency_penalty;
  const int32_t *top_k, *choices, *positions;
  const int64_t* seeds;
  const int32_t *prompt_tokens, *prompt_offsets, *output_tokens, *output_offsets;
  const int32_t *bias_ids, *bias_offsets, *banned_ids, *banned_offsets;
  const float* bias_values;
  const int32_t* mask; /* (rows, mask_stride) or NULL */
  int64_t mask_stride;
  int32_t* ids;
  int32_t rows, vocab, sampleable;
  void* stream;
  void* workspace; /* as in mt_attention */
  int64_t workspace_bytes;
} mt_sample;

typedef struct mt_logprobs {
  const float* logits;
  int64_t logits_stride;
  const int32_t* ids;
  float* logprob;
  int32_t* rank;
  int32_t* top_ids;
  float* top_logprobs;
  int32_t rows, top_n, sampleable;
  void* stream;
} mt_logprobs;

#endif
