// The fewest largest keys whose weights reach a sum, without sorting.
//
// Knows nothing of logits or ids. Everything has internal linkage (isa.h says why).

#ifndef MTACTORS_KERNELS_CPU_NUCLEUS_H
#define MTACTORS_KERNELS_CPU_NUCLEUS_H

#include "weights.h"

namespace mt {
namespace MT_ISA {
namespace {

// All keys above `end` belong to it, and all but `beyond` of those equal to it.
struct Nucleus {
  double end;
  int beyond;
};

// What lies above a pivot: its weight, and how many. And how many lie at the pivot.
struct Split {
  double weight;
  int above, at;
};

inline Split split(const double* key, const double* weight, int n, double pivot) {
  vd sum = {};
  vl above = {}, at = {};
  int i = 0;
  for (; i + WD <= n; i += WD) {
    const vd k = vdload(key + i);
    const vl greater = k > pivot;
    sum += vdkeep(vdload(weight + i), greater);
    above -= greater;
    at -= k == pivot;
  }
  Split result = {vdsum(sum), 0, 0};
  for (int j = 0; j < WD; ++j) {
    result.above += static_cast<int>(above[j]);
    result.at += static_cast<int>(at[j]);
  }
  for (; i < n; ++i) {
    result.weight += key[i] > pivot ? weight[i] : 0.0;
    result.above += key[i] > pivot ? 1 : 0;
    result.at += key[i] == pivot ? 1 : 0;
  }
  return result;
}

// Move what lies on one side of the pivot to the front; returns how many.
template <bool ABOVE>
inline int keep_side(double* key, double* weight, int n, double pivot) {
  int kept = 0, i = 0;
#if defined(__AVX512F__)
  for (; i + WD <= n; i += WD) {
    const vd k = vdload(key + i), w = vdload(weight + i);
    const __mmask8 side = _mm512_cmp_pd_mask(k, vdset(pivot), ABOVE ? _CMP_GT_OQ : _CMP_LT_OQ);
    vdstore(key + kept, _mm512_maskz_compress_pd(side, k));
    vdstore(weight + kept, _mm512_maskz_compress_pd(side, w));
    kept += __builtin_popcount(side);
  }
#endif
  for (; i < n; ++i) {
    const double k = key[i], w = weight[i];
    key[kept] = k;
    weight[kept] = w;
    kept += (ABOVE ? k > pivot : k < pivot) ? 1 : 0;
  }
  return kept;
}

// How many of `count` equal weights, one at least, are needed to come from `reached` to `need`.
inline int equal_ones(double each, int count, double reached, double need) {
  const double guess = (need - reached) / each;
  int inside = guess > 1.0 ? (guess < count ? static_cast<int>(guess) : count) : 1;
  while (inside < count && reached + each * inside < need) ++inside;
  while (inside > 1 && reached + each * (inside - 1) >= need) --inside;
  return inside;
}

// The nucleus of n > 0 keys, whose weights follow from them, for the sum `need`. Reorders them.
inline Nucleus nucleus_of(double* key, double* weight, int n, double need) {
  double reached = 0.0;
  uint32_t state = 0x9E3779B9u;
  for (;;) {
    state = state * 1664525u + 1013904223u;
    const int chosen = static_cast<int>(uint64_t{state} * static_cast<uint32_t>(n) >> 32);
    const double pivot = key[chosen], each = weight[chosen];
    const Split part = split(key, weight, n, pivot);
    if (part.above > 0 && reached + part.weight >= need) {
      n = keep_side<true>(key, weight, n, pivot);
      continue;
    }
    reached += part.weight;
    const double with_pivot = reached + each * part.at;
    if (with_pivot >= need || part.above + part.at >= n) {
      return {pivot, part.at - equal_ones(each, part.at, reached, need)};
    }
    reached = with_pivot;
    n = keep_side<false>(key, weight, n, pivot);
  }
}

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
