// Operations on rows: embedding, norm, rope, cache writes, silu_and_mul, block copies.
//
// Formulas, strides and rounding are those of mtactors.kernels.Operations; each function must match
// the one of the same name in kernels/reference.py: bit for bit but for the norm's sum (another
// order of additions) and silu (another exp), which are within one rounding of it. Layouts: abi.h.
// dtypes: float32, float16, bfloat16. Any alignment of elements; rows that are aligned to 16 bytes
// are moved 16 bytes at a time, with the same result. A row's result depends on nothing but itself.

#include "common.muh"

namespace mt {
namespace {

constexpr int kThreads = 256;       // of other elementwise kernels
constexpr int kWriteThreads = 128;  // of cache writes: 8 heads of 128 in fp16 are 128 pieces
constexpr int kShortRow = 1024;     // a norm's rows up to here are summed by 128 threads
constexpr int kCachesPerLaunch = 64;
constexpr int64_t kMostBlocks = 0x7fffffff;

inline int element_bytes(int dtype) {
  if (dtype == MT_F32) return 4;
  return dtype == MT_F16 || dtype == MT_BF16 ? 2 : 0;
}

// The block's threads copy `bytes` (even) bytes.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, int64_t bytes, bool wide) {
  const int64_t whole = wide ? bytes / 16 : 0;
  for (int64_t i = threadIdx.x; i < whole; i += blockDim.x) {
    store16(static_cast<char*>(to) + i * 16, load16(static_cast<const char*>(from) + i * 16));
  }
  const uint16_t* source = static_cast<const uint16_t*>(from);
  uint16_t* target = static_cast<uint16_t*>(to);
  for (int64_t i = whole * 8 + threadIdx.x; i < bytes / 2; i += blockDim.x) target[i] = source[i];
}

__global__ void __launch_bounds__(kThreads)
    embedding_rows(const mt_embedding op, const int bytes_each) {
  const int64_t token = blockIdx.x, bytes = static_cast<int64_t>(op.k) * bytes_each;
  const int64_t row = static_cast<int64_t>(op.ids[token]) - op.first_row;
  char* to = static_cast<char*>(op.out) + token * op.out_stride * bytes_each;
  if (row < 0 || row >= op.n) {
    uint16_t* zeros = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = threadIdx.x; i < bytes / 2; i += blockDim.x) zeros[i] = 0;
    return;
  }
  const char* from = static_cast<const char*>(op.weight) + row * bytes;
  copy_bytes(to, from, bytes, aligned16(to) && aligned16(from));
}

// The elements at i..i+kWide-1 of a row of n; zeros behind its end.
template <typename T>
__device__ __forceinline__ void load_part(const T* row, int i, int n, bool wide,
                                          float (&out)[kWide<T>]) {
  if (i + kWide<T> <= n) {
    load_floats(row + i, wide, out);
    return;
  }
  MT_UNROLL
  for (int j = 0; j < kWide<T>; ++j) out[j] = i + j < n ? to_float(row[i + j]) : 0.0f;
}
template <typename T>
__device__ __forceinline__ void store_part(T* row, int i, int n, bool wide,
                                           const float (&values)[kWide<T>]) {
  if (i + kWide<T> <= n) {
    store_floats(row + i, wide, values);
    return;
  }
  MT_UNROLL
  for (int j = 0; j < kWide<T>; ++j) {
    if (i + j < n) row[i + j] = from_float<T>(values[j]);
  }
}

// One block a row. The number of threads, and with it the order of the sum, follows from `hidden`.
template <typename T, int kBlock>
__global__ void __launch_bounds__(kBlock) norm_rows(const mt_rms_norm op) {
  const int64_t outer = blockIdx.x / op.inner, inner = blockIdx.x % op.inner;
  const int n = op.hidden, step = kBlock * kWide<T>;
  const int first = static_cast<int>(threadIdx.x) * kWide<T>;
  const T* x = static_cast<const T*>(op.x) + outer * op.x_outer + inner * op.x_inner;
  const T* weight = static_cast<const T*>(op.weight);
  T* out = static_cast<T*>(op.out) + outer * op.out_outer + inner * op.out_inner;
  bool wide = aligned16(x);
  float values[kWide<T>], other[kWide<T>];
  float sum = 0.0f;
  if (op.residual != nullptr) {
    const T* residual = static_cast<const T*>(op.residual) + outer * op.total_stride;
    T* total = static_cast<T*>(op.total) + outer * op.total_stride;
    const bool all_wide = wide && aligned16(residual) && aligned16(total);
    for (int i = first; i < n; i += step) {
      load_part(x, i, n, all_wide, values);
      load_part(residual, i, n, all_wide, other);
      MT_UNROLL
      for (int j = 0; j < kWide<T>; ++j) {
        values[j] = rounded<T>(values[j] + other[j]);
        sum = fmaf(values[j], values[j], sum);
      }
      store_part(total, i, n, all_wide, values);
    }
    x = total;  // each thread reads again what it wrote itself
    wide = all_wide;
  } else {
    for (int i = first; i < n; i += step) {
      load_part(x, i, n, wide, values);
      MT_UNROLL
      for (int j = 0; j < kWide<T>; ++j) sum = fmaf(values[j], values[j], sum);
    }
  }
  sum = block_sum<kBlock>(sum);
  const float factor = 1.0f / sqrtf(sum / static_cast<float>(n) + op.eps);
  const bool wide_weight = aligned16(weight), wide_out = aligned16(out);
  for (int i = first; i < n; i += step) {
    load_part(x, i, n, wide, values);
    load_part(weight, i, n, wide_weight, other);
    MT_UNROLL
    for (int j = 0; j < kWide<T>; ++j) {
      float scaled = values[j] * factor;
      if (op.cast_first) scaled = rounded<T>(scaled);
      values[j] = scaled * other[j];
    }
    store_part(out, i, n, wide_out, values);
  }
}

template <typename T>
int rms_norm_as(const mt_rms_norm& op) {
  const int64_t rows = static_cast<int64_t>(op.outer) * op.inner;
  if (rows == 0 || op.hidden == 0) return 0;
  if (rows > kMostBlocks) return MT_DEVICE_UNSUPPORTED;
  if (op.hidden <= kShortRow) {
    MT_LAUNCH((norm_rows<T, 128>), static_cast<unsigned>(rows), 128, 0, op.stream, op);
  } else {
    MT_LAUNCH((norm_rows<T, 256>), static_cast<unsigned>(rows), 256, 0, op.stream, op);
  }
  return launched();
}

// a * c - b * s and b * c + a * s, each rounded; then times the scale, rounded again.
template <typename T>
__device__ __forceinline__ void turn(float& a, float& b, float c, float s, float scale,
                                     bool scaled) {
  const float first = rounded<T>(a * c - b * s), second = rounded<T>(b * c + a * s);
  a = scaled ? first * scale : first;
  b = scaled ? second * scale : second;
}

// kWide pairs whose first halves begin at x[i], their second halves at x[half + i].
template <typename T>
__device__ __forceinline__ void rotate_halves(T* x, const float* cosine, const float* sine, int half,
                                              int i, float scale, bool scaled) {
  float a[kWide<T>], b[kWide<T>];
  const bool wide = aligned16(x) && aligned16(x + half);
  load_part(x, i, half, wide, a);
  load_part(x + half, i, half, wide, b);
  MT_UNROLL
  for (int j = 0; j < kWide<T>; ++j) {
    if (i + j < half) turn<T>(a[j], b[j], cosine[i + j], sine[i + j], scale, scaled);
  }
  store_part(x, i, half, wide, a);
  store_part(x + half, i, half, wide, b);
}

// kWide elements, neighbours in pairs, from x[i] on.
template <typename T>
__device__ __forceinline__ void rotate_neighbours(T* x, const float* cosine, const float* sine,
                                                  int rotary, int i, float scale, bool scaled) {
  float v[kWide<T>];
  const bool wide = aligned16(x);
  load_part(x, i, rotary, wide, v);
  MT_UNROLL
  for (int j = 0; j < kWide<T>; j += 2) {
    const int pair = (i + j) / 2;
    if (i + j < rotary) turn<T>(v[j], v[j + 1], cosine[pair], sine[pair], scale, scaled);
  }
  store_part(x, i, rotary, wide, v);
}

// One block a token: its threads share out the pieces of kWide pairs or elements of all heads.
template <typename T>
__global__ void __launch_bounds__(kThreads) rope_tokens(const mt_rope op) {
  const int64_t token = blockIdx.x;
  const int half = op.rotary_dim / 2;
  const int pieces = ceil_div(op.interleaved ? op.rotary_dim : half, kWide<T>);
  const float* cosine = op.cos_sin + static_cast<int64_t>(op.rows[token]) * op.rotary_dim;
  const float* sine = cosine + half;
  const float scale = op.q_scale != nullptr ? op.q_scale[token] : 1.0f;
  T* q = static_cast<T*>(op.q) + token * op.q_token;
  T* k = static_cast<T*>(op.k) + token * op.k_token;
  const int work = (op.q_heads + op.k_heads) * pieces;
  for (int w = static_cast<int>(threadIdx.x); w < work; w += kThreads) {
    const int head = w / pieces, i = w % pieces * kWide<T>;
    const bool is_q = head < op.q_heads;
    const bool scaled = is_q && op.q_scale != nullptr;
    T* x = is_q ? q + head * op.q_head : k + (head - op.q_heads) * op.k_head;
    if (op.interleaved) {
      rotate_neighbours(x, cosine, sine, op.rotary_dim, i, scale, scaled);
    } else {
      rotate_halves(x, cosine, sine, half, i, scale, scaled);
    }
  }
  const int rest = op.q_scale != nullptr ? op.head_dim - op.rotary_dim : 0;
  for (int w = static_cast<int>(threadIdx.x); w < op.q_heads * rest; w += kThreads) {
    T* x = q + w / rest * op.q_head + op.rotary_dim + w % rest;
    *x = from_float<T>(to_float(*x) * scale);
  }
}

template <typename T>
int rope_as(const mt_rope& op) {
  if (op.rotary_dim % 2 != 0 || op.rotary_dim > op.head_dim) return MT_DEVICE_UNSUPPORTED;
  if (op.tokens == 0) return 0;
  MT_LAUNCH(rope_tokens<T>, op.tokens, kThreads, 0, op.stream, op);
  return launched();
}

// Two blocks a token, for K and for V: their threads share out all heads' pieces.
__global__ void __launch_bounds__(kWriteThreads)
    kv_write_tokens(const mt_kv_write op, const int bytes_each) {
  const int64_t token = blockIdx.x / 2, slot = op.slots[token];
  if (slot < 0) return;
  const bool is_k = blockIdx.x % 2 == 0;
  const int64_t head_bytes = static_cast<int64_t>(op.head_dim) * bytes_each;
  const int64_t step = (is_k ? op.k_head : op.v_head) * bytes_each;
  const char* from = static_cast<const char*>(is_k ? op.k : op.v) +
                     token * (is_k ? op.k_token : op.v_token) * bytes_each;
  char* to = static_cast<char*>(is_k ? op.k_cache : op.v_cache) + slot * op.kv_heads * head_bytes;
  const bool wide = aligned16(from) && aligned16(to) && step % 16 == 0 && head_bytes % 16 == 0;
  const int pieces = static_cast<int>(head_bytes / (wide ? 16 : 2)), work = op.kv_heads * pieces;
  for (int w = static_cast<int>(threadIdx.x); w < work; w += kWriteThreads) {
    const int head = w / pieces, piece = w % pieces;
    const char* source = from + head * step;
    char* target = to + head * head_bytes;
    if (wide) {
      store16(target + piece * 16, load16(source + piece * 16));
    } else {
      reinterpret_cast<uint16_t*>(target)[piece] =
          reinterpret_cast<const uint16_t*>(source)[piece];
    }
  }
}

// kWide elements a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    silu_and_mul_rows(const mt_silu_and_mul op, const int pieces) {
  const int64_t token = blockIdx.x / static_cast<unsigned>(pieces);
  const int piece = static_cast<int>(blockIdx.x % static_cast<unsigned>(pieces));
  const int i = (piece * kThreads + static_cast<int>(threadIdx.x)) * kWide<T>;
  if (i >= op.f) return;
  const T* gate = static_cast<const T*>(op.gate_up) + token * op.gate_up_stride;
  const T* up = gate + op.f;
  T* out = static_cast<T*>(op.out) + token * op.out_stride;
  float g[kWide<T>], u[kWide<T>];
  load_part(gate, i, op.f, aligned16(gate), g);
  load_part(up, i, op.f, aligned16(up), u);
  MT_UNROLL
  for (int j = 0; j < kWide<T>; ++j) g[j] = rounded<T>(mt_silu(g[j])) * u[j];
  store_part(out, i, op.f, aligned16(out), g);
}

template <typename T>
int silu_and_mul_as(const mt_silu_and_mul& op) {
  const int pieces = ceil_div(op.f, kThreads * kWide<T>);
  const int64_t blocks = static_cast<int64_t>(op.tokens) * pieces;
  if (blocks == 0) return 0;
  if (blocks > kMostBlocks) return MT_DEVICE_UNSUPPORTED;
  MT_LAUNCH(silu_and_mul_rows<T>, static_cast<unsigned>(blocks), kThreads, 0, op.stream, op, pieces);
  return launched();
}

// Device pointers on their way to a kernel, by value.
struct CacheList {
  char* cache[kCachesPerLaunch];
};

// Block (part, copy, cache): a stripe of what one copy moves within one cache.
__global__ void __launch_bounds__(kThreads)
    copy_block_parts(const CacheList caches, const int64_t* copies, const int64_t block_bytes,
                     const int64_t token_bytes, const int64_t part_bytes) {
  const int64_t* copy = copies + 3 * static_cast<int64_t>(blockIdx.y);
  const int64_t begin = blockIdx.x * part_bytes;
  const int64_t end = smaller(begin + part_bytes, copy[2] * token_bytes);
  if (begin >= end) return;
  char* cache = caches.cache[blockIdx.z];
  const char* from = cache + copy[0] * block_bytes + begin;
  char* to = cache + copy[1] * block_bytes + begin;
  copy_bytes(to, from, end - begin, aligned16(to) && aligned16(from));
}

}  // namespace
}  // namespace mt

int mt_device_embedding(const mt_embedding* op) {
  const int bytes_each = mt::element_bytes(op->dtype);
  if (bytes_each == 0) return MT_DEVICE_UNSUPPORTED;
  if (op->tokens == 0 || op->k == 0) return 0;
  MT_LAUNCH(mt::embedding_rows, op->tokens, mt::kThreads, 0, op->stream, *op, bytes_each);
  return mt::launched();
}

int mt_device_rms_norm(const mt_rms_norm* op) {
  MT_RETURN_FOR_DTYPE(op->dtype, mt::rms_norm_as, *op)
}

int mt_device_rope(const mt_rope* op) { MT_RETURN_FOR_DTYPE(op->dtype, mt::rope_as, *op) }

int mt_device_kv_write(const mt_kv_write* op) {
  const int bytes_each = mt::element_bytes(op->dtype);
  const int64_t blocks = int64_t{2} * op->tokens;
  if (bytes_each == 0 || blocks > mt::kMostBlocks) return MT_DEVICE_UNSUPPORTED;
  if (blocks == 0 || op->kv_heads == 0 || op->head_dim == 0) return 0;
  MT_LAUNCH(mt::kv_write_tokens, static_cast<unsigned>(blocks), mt::kWriteThreads, 0, op->stream,
            *op, bytes_each);
  return mt::launched();
}

int mt_device_silu_and_mul(const mt_silu_and_mul* op) {
  MT_RETURN_FOR_DTYPE(op->dtype, mt::silu_and_mul_as, *op)
}

int mt_device_copy_blocks(const mt_copy_blocks* op) {
  // Even sizes, as all dtypes have. Parts of 16 KiB keep several blocks busy with one copy.
  if (op->block_bytes % 2 != 0 || op->token_bytes % 2 != 0) return MT_DEVICE_UNSUPPORTED;
  constexpr int64_t kPartBytes = 16 * 1024;
  constexpr int kCopiesPerLaunch = 32768;
  const unsigned parts = static_cast<unsigned>(mt::ceil_div(op->block_bytes, kPartBytes));
  if (parts == 0) return 0;
  for (int first = 0; first < op->num_caches; first += mt::kCachesPerLaunch) {
    const int caches = mt::smaller(mt::kCachesPerLaunch, op->num_caches - first);
    mt::CacheList list;
    for (int i = 0; i < mt::kCachesPerLaunch; ++i) {
      list.cache[i] = i < caches ? static_cast<char*>(op->caches[first + i]) : nullptr;
    }
    for (int start = 0; start < op->num_copies; start += kCopiesPerLaunch) {
      const int copies = mt::smaller(kCopiesPerLaunch, op->num_copies - start);
      const dim3 grid(parts, static_cast<unsigned>(copies), static_cast<unsigned>(caches));
      MT_LAUNCH(mt::copy_block_parts, grid, mt::kThreads, 0, op->stream, list,
                op->copies + 3 * static_cast<int64_t>(start), op->block_bytes, op->token_bytes,
                kPartBytes);
      const int failed = mt::launched();
      if (failed != 0) return failed;
    }
  }
  return 0;
}
