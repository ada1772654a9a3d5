// What the two kinds of attention on AMX, bf16, do alike.
//
// Scores are in units of log 2: p = 2^(s c - m) with c = scale * log2(e), one rounding. With ALiBi s
// already holds the whole score and c is 1. m need not be the greatest score so far, only keep p
// from overflowing: a row raises it to that at the first tile of which it sees something, and again
// where one of its sums over a tile passes kLimit, which depends on the row alone.
//
// P is rounded to bf16, the sums l add it before that rounding: a row has 16 of them, of the keys
// that are equal modulo 16. In a tile, blocks of 16 keys are added up ascending, the even ones and
// the odd ones, then both; at the end the 16 sums are added as a tree, i and i + 8 first.

#ifndef MTACTORS_KERNELS_CPU_ATTENTION_AMX_H
#define MTACTORS_KERNELS_CPU_ATTENTION_AMX_H

#include "amx.h"
#include "attention.h"
#include "pool.h"

namespace mt {
namespace MT_ISA {
namespace {

// What one of a row's 16 sums over a tile may reach before m is raised.
constexpr float kLimit = 1048576.0f;
constexpr float kLog2e = 1.44269504f;
// Dwords of a matrix tile.
constexpr int kTile = 256;

// 2^x to 4e-6 relative, a five-hundredth of the rounding to bf16; 0 below -150. 2^0 is exactly 1.
MT_INLINE __m512 vexp2(__m512 x) {
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.355574723e-2f), r, _mm512_set1_ps(5.203236901e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.413797629e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.930321208e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

struct AmxTiles {
  const View& view;
  const mt_attention& op;
  int depth;   // head_dim padded to 32
  int chunks;  // depth / 32

  explicit AmxTiles(const View& v)
      : view(v), op(*v.op), depth(ceil_div(op.head_dim, 32) * 32), chunks(depth / 32) {}

  MT_INLINE static __m512i load_row(const bf16* v, int n) {
    if (n >= 32) return _mm512_loadu_si512(v);
    return _mm512_maskz_loadu_epi16(n <= 0 ? 0u : (1u << n) - 1u, v);
  }

  // Pairs of keys as matrix tiles, [32 keys][16 columns]. The columns are permuted within 32, which
  // store_row undoes; keys at or past `valid` are zeros. Calls each_pair with the number of each.
  template <typename F>
  MT_INLINE void load_values(int tile, int valid, uint32_t* values, F each_pair) {
    const bf16* cache = static_cast<const bf16*>(op.v_cache);
    const int64_t stride = view.key_stride();
    const int pairs = ceil_div(valid, 32) * 16;
    const bf16* v = nullptr;
    for (int i = 0; i < pairs; ++i) {
      uint32_t* to = values + i / 16 * 16 * depth + i % 16 * 16;
      each_pair(i);
      if (2 * i >= valid) {
        for (int d = 0; d < depth; d += 16) {
          _mm512_store_si512(to + d * 16, _mm512_setzero_si512());
        }
        continue;
      }
      if (i % 8 == 0) v = cache + view.offset(tile + 2 * i);
      const bf16* even = v + (2 * i % 16) * stride;
      const bool both = 2 * i + 1 < valid;
      for (int d = 0; d < depth; d += 32, to += 2 * kTile) {
        const int n = op.head_dim - d;
        const __m512i a = load_row(even + d, n);
        const __m512i b = both ? load_row(even + stride + d, n) : _mm512_setzero_si512();
        _mm512_store_si512(to, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(to + kTile, _mm512_unpackhi_epi16(a, b));
      }
    }
  }

  // 16 scores, each of a key and a row that may lie anywhere in the vector: a masked one becomes
  // kMasked, and ALiBi is added to the others.
  MT_INLINE __m512 masked(__m512 x, __m512i key, __m512i position, __m512i lowest,
                          __m512 slope) const {
    const __mmask16 seen =
        _mm512_cmple_epi32_mask(key, position) & _mm512_cmpge_epi32_mask(key, lowest);
    if (op.alibi_slopes != nullptr) {
      const __m512 distance = _mm512_cvtepi32_ps(_mm512_sub_epi32(key, position));
      const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(op.scale * kLog2e));
      x = _mm512_fmadd_ps(slope, distance, scaled);
    }
    return _mm512_mask_mov_ps(_mm512_set1_ps(kMasked), seen, x);
  }
  float scale() const { return op.alibi_slopes != nullptr ? 1.0f : op.scale * kLog2e; }

  // out = row / sum; `row` has the columns of load_values.
  void store_row(int token, int head, const float* row, float sum) const {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high =
        _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const __m512 l = _mm512_set1_ps(1.0f / sum);
    bf16* to = static_cast<bf16*>(op.out) + token * op.out_token + head * op.head_dim;
    for (int d = 0; d < depth; d += 32) {
      const __m512 a = _mm512_loadu_ps(row + d), b = _mm512_loadu_ps(row + d + 16);
      const __m512 x = _mm512_mul_ps(_mm512_permutex2var_ps(a, low, b), l);
      const __m512 y = _mm512_mul_ps(_mm512_permutex2var_ps(a, high, b), l);
      const int n = op.head_dim - d;
      vstoren(to + d, x, imin(16, n));
      if (n > 16) vstoren(to + d + 16, y, imin(16, n - 16));
    }
  }
};

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
