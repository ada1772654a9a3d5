// What logits weigh in a draw: their exponentials in float64, sums of those, and the draw itself.
//
// Knows nothing of a request's limits. Everything has internal linkage (isa.h says why).

#ifndef MTACTORS_KERNELS_CPU_WEIGHTS_H
#define MTACTORS_KERNELS_CPU_WEIGHTS_H

#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

constexpr int WD = W / 2;  // doubles in a vector
typedef double vd __attribute__((vector_size(W * 4)));
typedef int64_t vl __attribute__((vector_size(W * 4)));
typedef uint64_t vu __attribute__((vector_size(W * 4)));
typedef float vh __attribute__((vector_size(W * 2)));

constexpr int kChunk = 512;  // weights that share one sum
constexpr float kInfinity = __builtin_inff();

MT_INLINE vd vdset(double x) { return x - vd{}; }
MT_INLINE vd vdfma(vd a, vd b, vd c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
  return (vd)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}
MT_INLINE vd vdload(const double* p) {
  vd a;
  memcpy(&a, p, sizeof(a));
  return a;
}
MT_INLINE void vdstore(double* p, vd a) { memcpy(p, &a, sizeof(a)); }
MT_INLINE vd vdload(const float* p) {
#if defined(__AVX512F__)
  return _mm512_cvtps_pd(_mm256_loadu_ps(p));  // gcc would convert halves and join them
#else
  vh a;
  memcpy(&a, p, sizeof(a));
  return __builtin_convertvector(a, vd);
#endif
}
// a where a comparison holds, else 0.
MT_INLINE vd vdkeep(vd a, vl holds) { return (vd)((vl)a & holds); }
MT_INLINE double vdsum(vd a) {
  double total = 0.0;
  for (int j = 0; j < WD; ++j) total += a[j];
  return total;
}

// The weight of a logit x is exp((x - largest) / temperature), to a few roundings; that of the
// largest is exactly 1, and what would weigh less than 2^-1021, or is nan, weighs 0.
struct Scale {
  double largest, factor, lowest;

  Scale(float most, float temperature)
      : largest(most), factor(1.4426950408889634 / temperature),
        lowest(factor > 0.0 ? -1021.0 / factor : -__DBL_MAX__) {}

#if defined(__AVX512F__)

  MT_INLINE vd weigh(const float* value) const {
    // 2^(j / 16), less j << 48, which the index brings back when it is shifted to the exponent.
    const vu low = {0x3ff0000000000000, 0x3fefb5586cf9890f, 0x3fef72b83c7d517b, 0x3fef387a6e756238,
                    0x3fef06fe0a31b715, 0x3feedea64c123422, 0x3feebfdad5362a27, 0x3feeab07dd485429};
    const vu high = {0x3feea09e667f3bcd, 0x3feea11473eb0187, 0x3feeace5422aa0db, 0x3feec49182a3f090,
                     0x3feee89f995ad3ad, 0x3fef199bdd85529c, 0x3fef5818dcfba487, 0x3fefa4afa2a490da};
    // Adding 1.5 * 2^48 leaves the nearest sixteenth in the low mantissa bits.
    const vd magic = vdset(422212465065984.0);
    const vd x = vdload(value) - largest, times = vdset(factor);
    const vd t = vdfma(x, times, magic);
    const vd r = vdfma(x, times, magic - t);
    const vu near = (vu)_mm512_permutex2var_epi64((__m512i)low, (__m512i)t, (__m512i)high);
    const vd power = (vd)(near + ((vu)t << 48));
    vd p = vdfma(vdset(0.00015403788504571653), r, vdset(0.0013333781576905016));
    p = vdfma(p, r, vdset(0.009618129106131895));
    p = vdfma(p, r, vdset(0.05550410865663929));
    p = vdfma(p, r, vdset(0.24022650695910094));
    p = vdfma(p, r, vdset(0.6931471805599457));
    const __mmask8 counts = _mm512_cmp_pd_mask(x, vdset(lowest), _CMP_GE_OQ);
    return _mm512_maskz_fmadd_pd(counts, power, p * r, power);
  }

#else

  MT_INLINE vd weigh(const float* value) const {
    // Adding 1.5 * 2^52 leaves the nearest integer in the low mantissa bits.
    const vd magic = vdset(6755399441055744.0);
    const vd x = vdload(value) - largest, times = vdset(factor);
    const vd t = vdfma(x, times, magic);
    const vd r = vdfma(x, times, magic - t);
    vd p = vdfma(vdset(7.074194025882968e-09), r, vdset(1.0205905876923807e-07));
    p = vdfma(p, r, vdset(1.3215433542273942e-06));
    p = vdfma(p, r, vdset(1.5252672922526465e-05));
    p = vdfma(p, r, vdset(0.000154035304586972));
    p = vdfma(p, r, vdset(0.0013333558200798246));
    p = vdfma(p, r, vdset(0.00961812910759511));
    p = vdfma(p, r, vdset(0.05550410866465166));
    p = vdfma(p, r, vdset(0.2402265069591012));
    p = vdfma(p, r, vdset(0.6931471805599462));
    p = vdfma(p, r, vdset(1.0));
    return vdkeep((vd)((vu)p + ((vu)t << 52)), x >= lowest);
  }

#endif

  // The last n < WD logits; the lanes behind them weigh nothing.
  MT_INLINE vd weigh(const float* value, int n) const {
    float in[WD];
    for (int j = 0; j < WD; ++j) in[j] = j < n ? value[j] : -kInfinity;
    return weigh(in);
  }
  // A little lower than any logit that weighs `weight` or more, with room for every rounding.
  float floor(double weight) const {
    const double least = (__builtin_log2(weight) - 0.001) / factor + largest;
    return static_cast<float>(least - 1.2e-7 * __builtin_fabs(least));
  }
};

// weight[i] = that of value[i]; `weight` has room for whole vectors.
inline void weigh(const float* value, int n, const Scale& scale, double* weight) {
  int i = 0;
  for (; i + WD <= n; i += WD) vdstore(weight + i, scale.weigh(value + i));
  if (i < n) vdstore(weight + i, scale.weigh(value + i, n - i));
}

// Bring n floats near: the next row comes from memory while this one is computed.
MT_INLINE void fetch(const float* p, int n) {
  for (int i = 0; i < n; i += 16) __builtin_prefetch(p + i);
}

// The sum of the weights alone.
inline double weigh_sum(const float* value, int n, const Scale& scale) {
  vd even = {}, odd = {};
  int i = 0;
  for (; i + 2 * WD <= n; i += 2 * WD) {
    even += scale.weigh(value + i);
    odd += scale.weigh(value + i + WD);
  }
  for (; i + WD <= n; i += WD) even += scale.weigh(value + i);
  if (i < n) odd += scale.weigh(value + i, n - i);
  return vdsum(even + odd);
}

inline double sum(const double* weight, int n) {
  vd even = {}, odd = {};
  int i = 0;
  for (; i + 2 * WD <= n; i += 2 * WD) {
    even += vdload(weight + i);
    odd += vdload(weight + i + WD);
  }
  double total = vdsum(even + odd);
  for (; i < n; ++i) total += weight[i];
  return total;
}

// The first of n weights at which the running sum exceeds the part u of all, 0 < u < 1. `sums` has
// the sum of each chunk, and weights_of(chunk) points to its weights.
template <typename F>
inline int draw(int n, const double* sums, double u, F weights_of) {
  const int chunks = ceil_div(n, kChunk);
  double total = 0.0, reached = 0.0;
  for (int c = 0; c < chunks; ++c) total += sums[c];
  int last = 0;
  for (int c = 0; c < chunks; ++c) {
    if (c + 1 < chunks && reached + sums[c] <= u * total) {
      reached += sums[c];
      continue;
    }
    const double* weight = weights_of(c);
    for (int i = 0; i < imin(kChunk, n - c * kChunk); ++i) {
      if (weight[i] > 0.0) last = c * kChunk + i;
      reached += weight[i];
      if (reached > u * total) return last;
    }
  }
  return last;
}

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
