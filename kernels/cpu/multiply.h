// A few rows times a piece of a packed panel in vector registers, by element type and vector width.
//
// Each sum takes k in ascending order. ops.h has the packed layout. Knows neither
// threads nor what becomes of the sums.

#ifndef MTACTORS_KERNELS_CPU_MULTIPLY_H
#define MTACTORS_KERNELS_CPU_MULTIPLY_H

#include <stdint.h>
#include <string.h>

#include "ops.h"
#include "panel.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kMaxRows = 12;
#elif defined(__AVX2__)
constexpr int kMaxRows = 6;
#else
constexpr int kMaxRows = 4;
#endif

// In the paired bf16 layout a column is two elements wide.
MT_INLINE const bf16* at_column(const bf16* b, int column) { return b + 2 * column; }
template <typename B>
MT_INLINE const B* at_column(const B* b, int column) {
  return b + column;
}

// What a multiplication does with the sums so far, and whether it fetches the panel from memory.
enum class Sums { kNew, kMore };
enum class From { kMemory, kBuffer };

// MR rows times NV vectors of columns; `b` is the piece at its first column.
template <int MR, int NV, From FROM, typename B>
inline void multiply(const float* a, int64_t lda, const B* b, int k, Sums sums, float* out) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      acc[r][j] = sums == Sums::kMore ? vload(out + r * kPanel + j * W) : vzero();
    }
  }
  const int pairs = k / 2;
  for (int i = 0; i < pairs; ++i) {
    vf even[NV], odd[NV];
    load_pair<NV>(b, even, odd);
    if (FROM == From::kMemory) {
      prefetch(reinterpret_cast<const char*>(b) + 4096);
      if (sizeof(B) == 4) prefetch(reinterpret_cast<const char*>(b) + 4096 + 128);
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      const vf x0 = vset(a[r * lda + 2 * i]), x1 = vset(a[r * lda + 2 * i + 1]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r][j] = vfma(x1, odd[j], vfma(x0, even[j], acc[r][j]));
    }
    b += 2 * kPanel;
  }
  // Never for bf16, which is padded.
  if (k % 2 != 0) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      const vf last = vload(b + j * W);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) acc[r][j] = vfma(vset(a[r * lda + k - 1]), last, acc[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) vstore(out + r * kPanel + j * W, acc[r][j]);
  }
}

template <int MR, From FROM, typename B>
inline void multiply_rows(const float* a, int64_t lda, const B* b, int k, Sums sums, float* out) {
  // Columns per pass: as many vectors as leave the accumulators in registers.
  constexpr int kAll = kPanel / W;
  constexpr int NV = W == 16 ? 2 : W == 8 ? (MR <= 2 ? 4 : 2) : (MR == 1 ? 8 : 2);
  for (int pass = 0; pass < kAll / NV; ++pass) {
    const int column = pass * NV * W;
    multiply<MR, NV, FROM>(a, lda, at_column(b, column), k, sums, out + column);
  }
}

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

// Products of bf16 pairs; x stays bf16.
template <int MR, From FROM>
inline void multiply_rows(const bf16* a, int64_t lda, const bf16* b, int k, Sums sums, float* out) {
  __m512 acc[MR][2];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      acc[r][j] = sums == Sums::kMore ? vload(out + r * kPanel + j * W) : vzero();
    }
  }
  const int pairs = k / 2;
  for (int i = 0; i < pairs; ++i) {
    const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + kPanel);
    if (FROM == From::kMemory) {
      prefetch(reinterpret_cast<const char*>(b) + 4096);
      prefetch(reinterpret_cast<const char*>(b) + 4096 + 64);
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
      uint32_t pair;
      memcpy(&pair, a + r * lda + 2 * i, 4);
      acc[r][0] = vdot_pairs(pair, b0, acc[r][0]);
      acc[r][1] = vdot_pairs(pair, b1, acc[r][1]);
    }
    b += 2 * kPanel;
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    _mm512_storeu_ps(out + r * kPanel, acc[r][0]);
    _mm512_storeu_ps(out + r * kPanel + 16, acc[r][1]);
  }
}

#endif

template <From FROM, typename A, typename B>
inline void multiply_tile(int rows, const A* a, int64_t lda, const B* b, int k, Sums sums,
                          float* out) {
  switch (rows) {
    case 1: return multiply_rows<1, FROM>(a, lda, b, k, sums, out);
    case 2: return multiply_rows<2, FROM>(a, lda, b, k, sums, out);
    case 3: return multiply_rows<3, FROM>(a, lda, b, k, sums, out);
    case 4: return multiply_rows<4, FROM>(a, lda, b, k, sums, out);
#if defined(__AVX2__)
    case 5: return multiply_rows<5, FROM>(a, lda, b, k, sums, out);
    case 6: return multiply_rows<6, FROM>(a, lda, b, k, sums, out);
#endif
#if defined(__AVX512F__)
    case 7: return multiply_rows<7, FROM>(a, lda, b, k, sums, out);
    case 8: return multiply_rows<8, FROM>(a, lda, b, k, sums, out);
    case 9: return multiply_rows<9, FROM>(a, lda, b, k, sums, out);
    case 10: return multiply_rows<10, FROM>(a, lda, b, k, sums, out);
    case 11: return multiply_rows<11, FROM>(a, lda, b, k, sums, out);
    case 12: return multiply_rows<12, FROM>(a, lda, b, k, sums, out);
#endif
  }
}

// The type in which x is multiplied: float, but where there are products of bf16.
template <typename T, typename Panel>
struct Activations {
  typedef float type;
};
#if defined(__AVX512BF16__)
template <typename Panel>
struct Activations<bf16, Panel> {
  typedef bf16 type;
};
#endif

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
