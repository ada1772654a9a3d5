// Operations on rows: norm, rope, cache writes, silu_and_mul, block copies, ordered reduction.
//
// Each output row depends on its own input row only, and is computed by one thread.

#include "isa.h"
#include "pool.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

// Rows a chunk should hold so that it moves about 16 KB.
inline int rows_per_chunk(int row_bytes) { return imax(1, 32768 / imax(1, row_bytes)); }

template <typename T>
inline void norm_row(const mt_rms_norm& op, const T* x, const T* residual, T* total, T* out) {
  const int n = op.hidden;
  const T* as = nullptr;
  const T* weight = static_cast<const T*>(op.weight);
  // Four chains hide the latency of the additions; their order is part of the contract.
  vf squares[4] = {vzero(), vzero(), vzero(), vzero()};
  int chain = 0;
  for (int i = 0; i < n; i += W, chain = (chain + 1) % 4) {
    const int lanes = imin(W, n - i);
    vf v = lanes == W ? vload(x + i) : vloadn(x + i, lanes);
    if (residual != nullptr) {
      v = vround(v + (lanes == W ? vload(residual + i) : vloadn(residual + i, lanes)), as);
      if (lanes == W) {
        vstore(total + i, v);
      } else {
        vstoren(total + i, v, lanes);
      }
    }
    squares[chain] = vfma(v, v, squares[chain]);
  }
  const float sum = vsum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  const float mean = sum / static_cast<float>(n) + op.eps;
  const vf factor = vset(1.0f / __builtin_sqrtf(mean));
  const T* from = residual != nullptr ? total : x;
  for (int i = 0; i < n; i += W) {
    const int lanes = imin(W, n - i);
    vf v = (lanes == W ? vload(from + i) : vloadn(from + i, lanes)) * factor;
    if (op.cast_first) v = vround(v, as);
    v = v * (lanes == W ? vload(weight + i) : vloadn(weight + i, lanes));
    if (lanes == W) {
      vstore(out + i, v);
    } else {
      vstoren(out + i, v, lanes);
    }
  }
}

template <typename T>
inline void norm_as(const mt_rms_norm& op) {
  const int rows = op.outer * op.inner;
  const int per_chunk = rows_per_chunk(op.hidden * static_cast<int>(sizeof(T)) * 3);
  auto job = [&](int chunk) {
    const int end = imin(rows, (chunk + 1) * per_chunk);
    for (int row = chunk * per_chunk; row < end; ++row) {
      const int64_t outer = row / op.inner, inner = row % op.inner;
      const T* residual = static_cast<const T*>(op.residual);
      if (residual != nullptr) residual += outer * op.total_stride;
      norm_row(op, static_cast<const T*>(op.x) + outer * op.x_outer + inner * op.x_inner, residual,
               static_cast<T*>(op.total) + outer * op.total_stride,
               static_cast<T*>(op.out) + outer * op.out_outer + inner * op.out_inner);
    }
  };
  parallel_for(ceil_div(rows, per_chunk), job);
}

template <typename T>
inline void rotate_half(T* x, const float* cosine, const float* sine, int half) {
  for (int i = 0; i < half; i += W) {
    const int n = imin(W, half - i);
    if (n == W) {
      const vf a = vload(x + i), b = vload(x + half + i);
      const vf c = vload(cosine + i), s = vload(sine + i);
      vstore(x + i, a * c - b * s);
      vstore(x + half + i, b * c + a * s);
    } else {
      const vf a = vloadn(x + i, n), b = vloadn(x + half + i, n);
      const vf c = vloadn(cosine + i, n), s = vloadn(sine + i, n);
      vstoren(x + i, a * c - b * s, n);
      vstoren(x + half + i, b * c + a * s, n);
    }
  }
}

template <typename T>
inline void rotate_pairs(T* x, const float* cosine, const float* sine, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = widen(x[2 * i]), b = widen(x[2 * i + 1]);
    narrow(a * cosine[i] - b * sine[i], x + 2 * i);
    narrow(b * cosine[i] + a * sine[i], x + 2 * i + 1);
  }
}

template <typename T>
inline void scale_head(T* x, float factor, int n) {
  const vf f = vset(factor);
  int i = 0;
  for (; i + W <= n; i += W) vstore(x + i, vload(x + i) * f);
  if (i < n) vstoren(x + i, vloadn(x + i, n - i) * f, n - i);
}

template <typename T>
inline void rope_token(const mt_rope& op, int t) {
  const int half = op.rotary_dim / 2;
  const float* cosine = op.cos_sin + int64_t{op.rows[t]} * op.rotary_dim;
  for (int h = 0; h < op.q_heads + op.k_heads; ++h) {
    const bool is_q = h < op.q_heads;
    T* x = is_q ? static_cast<T*>(op.q) + t * op.q_token + h * op.q_head
                : static_cast<T*>(op.k) + t * op.k_token + (h - op.q_heads) * op.k_head;
    if (op.interleaved) {
      rotate_pairs(x, cosine, cosine + half, half);
    } else {
      rotate_half(x, cosine, cosine + half, half);
    }
    if (is_q && op.q_scale != nullptr) scale_head(x, op.q_scale[t], op.head_dim);
  }
}

template <typename T>
inline void silu_row(const mt_silu_and_mul& op, int t) {
  const T* gate = static_cast<const T*>(op.gate_up) + t * op.gate_up_stride;
  const T* up = gate + op.f;
  T* out = static_cast<T*>(op.out) + t * op.out_stride;
  const T* as = nullptr;
  int i = 0;
  for (; i + W <= op.f; i += W) {
    vstore(out + i, vround(vsilu(vload(gate + i)), as) * vload(up + i));
  }
  const int n = op.f - i;
  if (n > 0) vstoren(out + i, vround(vsilu(vloadn(gate + i, n)), as) * vloadn(up + i, n), n);
}

template <typename T>
inline void reduce_row(const float* const* partials, int ranks, const T* bias, const T* residual,
                       T* out, int64_t row, int n) {
  const T* as = nullptr;
  for (int i = 0; i < n; i += W) {
    const int lanes = imin(W, n - i);
    vf sum = vloadn(partials[0] + row * n + i, lanes);
    for (int r = 1; r < ranks; ++r) sum = sum + vloadn(partials[r] + row * n + i, lanes);
    if (bias != nullptr) sum = sum + vloadn(bias + i, lanes);
    if (residual != nullptr) sum = vround(sum, as) + vloadn(residual + row * n + i, lanes);
    vstoren(out + row * n + i, sum, lanes);
  }
}

template <typename T>
inline void reduce_as(const float* const* partials, int ranks, const void* bias,
                      const void* residual, void* out, int rows, int n) {
  const int per_chunk = rows_per_chunk(n * 4 * ranks);
  auto job = [&](int chunk) {
    const int end = imin(rows, (chunk + 1) * per_chunk);
    for (int row = chunk * per_chunk; row < end; ++row) {
      reduce_row(partials, ranks, static_cast<const T*>(bias), static_cast<const T*>(residual),
                 static_cast<T*>(out), row, n);
    }
  };
  parallel_for(ceil_div(rows, per_chunk), job);
}

}  // namespace

void rms_norm(const mt_rms_norm& op) {
  if (op.dtype == MT_BF16) {
    norm_as<bf16>(op);
  } else if (op.dtype == MT_F32) {
    norm_as<float>(op);
  } else {
    norm_as<f16>(op);
  }
}

void rope(const mt_rope& op) {
  const int row_bytes = (op.q_heads + op.k_heads) * op.head_dim * element_size(op.dtype) * 2;
  const int per_chunk = rows_per_chunk(row_bytes);
  auto job = [&](int chunk) {
    const int end = imin(op.tokens, (chunk + 1) * per_chunk);
    for (int t = chunk * per_chunk; t < end; ++t) {
      if (op.dtype == MT_BF16) {
        rope_token<bf16>(op, t);
      } else if (op.dtype == MT_F32) {
        rope_token<float>(op, t);
      } else {
        rope_token<f16>(op, t);
      }
    }
  };
  parallel_for(ceil_div(op.tokens, per_chunk), job);
}

void kv_write(const mt_kv_write& op) {
  const int64_t size = element_size(op.dtype), head_bytes = op.head_dim * size;
  const int per_chunk = rows_per_chunk(static_cast<int>(head_bytes) * op.kv_heads * 4);
  auto job = [&](int chunk) {
    const int end = imin(op.tokens, (chunk + 1) * per_chunk);
    for (int t = chunk * per_chunk; t < end; ++t) {
      if (op.slots[t] < 0) continue;
      char* k_out = static_cast<char*>(op.k_cache) + op.slots[t] * op.kv_heads * head_bytes;
      char* v_out = static_cast<char*>(op.v_cache) + op.slots[t] * op.kv_heads * head_bytes;
      const char* k = static_cast<const char*>(op.k) + t * op.k_token * size;
      const char* v = static_cast<const char*>(op.v) + t * op.v_token * size;
      for (int h = 0; h < op.kv_heads; ++h) {
        memcpy(k_out + h * head_bytes, k + h * op.k_head * size, static_cast<size_t>(head_bytes));
        memcpy(v_out + h * head_bytes, v + h * op.v_head * size, static_cast<size_t>(head_bytes));
      }
    }
  };
  parallel_for(ceil_div(op.tokens, per_chunk), job);
}

void silu_and_mul(const mt_silu_and_mul& op) {
  const int per_chunk = rows_per_chunk(op.f * element_size(op.dtype) * 2);
  auto job = [&](int chunk) {
    const int end = imin(op.tokens, (chunk + 1) * per_chunk);
    for (int t = chunk * per_chunk; t < end; ++t) {
      if (op.dtype == MT_BF16) {
        silu_row<bf16>(op, t);
      } else if (op.dtype == MT_F32) {
        silu_row<float>(op, t);
      } else {
        silu_row<f16>(op, t);
      }
    }
  };
  parallel_for(ceil_div(op.tokens, per_chunk), job);
}

void copy_blocks(const mt_copy_blocks& op) {
  auto job = [&](int chunk) {
    char* cache = static_cast<char*>(op.caches[chunk]);
    for (int i = 0; i < op.num_copies; ++i) {
      const int64_t* copy = op.copies + 3 * i;
      memcpy(cache + copy[1] * op.block_bytes, cache + copy[0] * op.block_bytes,
             static_cast<size_t>(copy[2] * op.token_bytes));
    }
  };
  parallel_for(op.num_caches, job);
}

void reduce(const float* const* partials, int ranks, const void* bias, const void* residual,
            void* out, int rows, int n, int dtype) {
  if (dtype == MT_BF16) {
    reduce_as<bf16>(partials, ranks, bias, residual, out, rows, n);
  } else if (dtype == MT_F32) {
    reduce_as<float>(partials, ranks, bias, residual, out, rows, n);
  } else {
    reduce_as<f16>(partials, ranks, bias, residual, out, rows, n);
  }
}

}  // namespace MT_ISA
}  // namespace mt
