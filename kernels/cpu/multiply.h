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

#if defined(__AVX2__)

// Two k of MR rows times the columns of two vectors of pairs. A row's x serves both at once: kept
// for later, they would not fit into the registers beside the sums.
template <int MR>
MT_INLINE void add_pairs(const float* a, int64_t lda, const vi* pairs, vf* first, vf* second) {
  const vi upper_half = viset(static_cast<int32_t>(0xffff0000u));
  const vf even0 = vfloat(vishl<16>(pairs[0])), odd0 = vfloat(viand(pairs[0], upper_half));
  const vf even1 = vfloat(vishl<16>(pairs[1])), odd1 = vfloat(viand(pairs[1], upper_half));
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    const vf x0 = vset(a[r * lda]), x1 = vset(a[r * lda + 1]);
    first[r] = vfma(x1, odd0, vfma(x0, even0, first[r]));
    second[r] = vfma(x1, odd1, vfma(x0, even1, second[r]));
  }
}
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
template <int MR>
MT_INLINE void add_pairs(const bf16* a, int64_t lda, const vi* pairs, vf* first, vf* second) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    uint32_t x;
    memcpy(&x, a + r * lda, 4);
    first[r] = vdot_pairs(x, pairs[0], first[r]);
    second[r] = vdot_pairs(x, pairs[1], second[r]);
  }
}
#endif

// MR rows times one part of all lines of a compact panel, expanded in registers: the columns of W
// pairs in the first of a pair's two lines, and those in the second.
template <int MR, typename A, typename F>
inline void multiply_part(const A* a, int64_t lda, CompactPieces panel, int part, float* out,
                          F fetch) {
  vf first[MR], second[MR];
  for (int r = 0; r < MR; ++r) first[r] = second[r] = vzero();
  const int offset = part * int(sizeof(Bytes));
  const auto add_lines = [&](const vi* lines) {
    for (int i = 0; i < 2; ++i, a += 2) add_pairs<MR>(a, lda, lines + 2 * i, first, second);
  };
  for (int step = 0; step < panel.steps(); ++step) {
    if (panel.all_coded(step)) {
      const char* from = panel.at(step) + offset;
      for (int i = 0; i < kCompactStep; i += 192) {
        vi lines[4];
        expand_part(from + i, panel.upper(), lines);
        for (int j = 0; j < 192; j += 64) fetch(step, i + j);
        add_lines(lines);
      }
    } else {
      alignas(64) char plain[kStepBytes];
      panel.expand(step, plain, [&](int line) MT_INLINE_LAMBDA { fetch(step, line); });
      for (int i = 0; i < kStepBytes; i += 256) {
        vi lines[4];
        for (int j = 0; j < 4; ++j) lines[j] = viload(plain + i + 64 * j + offset);
        add_lines(lines);
      }
    }
  }
  for (int r = 0; r < MR; ++r) {
    vstore(out + r * kPanel + part * W, first[r]);
    vstore(out + r * kPanel + kPanel / 2 + part * W, second[r]);
  }
}

template <int MR, typename A>
inline void multiply_compact(const A* a, int64_t lda, const CompactPieces& panel,
                             const Coming& coming, float* out) {
  multiply_part<MR>(a, lda, panel, 0, out, [&](int step, int line) MT_INLINE_LAMBDA {
    coming.fetch(step, line);
    if (coming.own(step)) prefetch(panel.at(step + kStepsAhead) + line);
  });
  for (int part = 1; part < kParts; ++part) {
    multiply_part<MR>(a, lda, panel, part, out, [](int, int) {});
  }
}

#endif

// Calls f with `rows` as a constant of a type.
template <int N>
struct Rows {
  static constexpr int value = N;
};
template <typename F>
MT_INLINE void with_rows(int rows, F f) {
  switch (rows) {
    case 1: return f(Rows<1>());
    case 2: return f(Rows<2>());
    case 3: return f(Rows<3>());
    case 4: return f(Rows<4>());
#if defined(__AVX2__)
    case 5: return f(Rows<5>());
    case 6: return f(Rows<6>());
#endif
#if defined(__AVX512F__)
    case 7: return f(Rows<7>());
    case 8: return f(Rows<8>());
    case 9: return f(Rows<9>());
    case 10: return f(Rows<10>());
    case 11: return f(Rows<11>());
    case 12: return f(Rows<12>());
#endif
  }
}

// At most kMaxRows rows times a piece of a panel, or all of one.
template <From FROM, typename A, typename B>
inline void multiply_tile(int rows, const A* a, int64_t lda, const B* b, int k, Sums sums,
                          float* out) {
  with_rows(rows, [&](auto count) {
    multiply_rows<decltype(count)::value, FROM>(a, lda, b, k, sums, out);
  });
}
template <typename A, typename B>
inline void multiply_panel(int rows, const A* a, int64_t lda, PlainPanel<B> panel, int k,
                           const Coming&, float* out) {
  multiply_tile<From::kMemory>(rows, a, lda, reinterpret_cast<const B*>(panel.at(0)), k,
                               Sums::kNew, out);
}
#if defined(__AVX2__)
template <typename A>
inline void multiply_panel(int rows, const A* a, int64_t lda, const CompactPieces& panel, int,
                           const Coming& coming, float* out) {
  with_rows(rows, [&](auto count) {
    multiply_compact<decltype(count)::value>(a, lda, panel, coming, out);
  });
}
#endif

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
