// Vectors of floats for the hot sources: one set of names over AVX-512, AVX2 and GNU vectors.
//
// Everything has internal linkage (isa.h says why). W is the number of float lanes.

#ifndef MTACTORS_KERNELS_CPU_SIMD_H
#define MTACTORS_KERNELS_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "abi.h"

// Not every build uses every one.
#define MT_INLINE inline __attribute__((always_inline, unused))
// GCC takes a lambda that does nothing but prefetch for a pure function, and drops its calls before
// it has inlined them.
#define MT_INLINE_LAMBDA __attribute__((always_inline))

namespace mt {
namespace MT_ISA {
namespace {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

MT_INLINE int imin(int a, int b) { return a < b ? a : b; }
MT_INLINE int imax(int a, int b) { return a > b ? a : b; }
MT_INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
MT_INLINE float as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
MT_INLINE uint32_t as_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

// Scalars: what single elements and the portable build use.
MT_INLINE float widen(float x) { return x; }
MT_INLINE float widen(bf16 x) { return as_float(uint32_t{x.bits} << 16); }
inline float widen(f16 x) {
  const uint32_t sign = uint32_t{x.bits} >> 15 << 31, body = x.bits & 0x7fffu;
  if (body >= 0x7c00u) return as_float(sign | 0x7f800000u | (body & 0x3ffu) << 13);
  if (body < 0x400u) {
    const float tiny = static_cast<float>(body) * 5.9604644775390625e-8f;
    return as_float(sign | as_bits(tiny));
  }
  return as_float(sign | ((body << 13) + 0x38000000u));
}
MT_INLINE void narrow(float x, float* out) { *out = x; }
MT_INLINE void narrow(float x, bf16* out) {
  const uint32_t u = as_bits(x);
  out->bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u
                                        ? (u >> 16 | 0x40u)
                                        : (u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
inline void narrow(float x, f16* out) {
  const uint32_t u = as_bits(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) {
    out->bits = static_cast<uint16_t>(sign | 0x7e00u);
  } else if (a >= 0x477ff000u) {
    out->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (a < 0x38800000u) {
    // Adding a half aligns the mantissa, and the sum rounds to nearest even by itself.
    const float sum = as_float(a) + 0.5f;
    out->bits = static_cast<uint16_t>(sign | (as_bits(sum) - 0x3f000000u));
  } else {
    out->bits = static_cast<uint16_t>(sign | (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13);
  }
}

#if defined(__AVX512F__)

constexpr int W = 16;
typedef __m512 vf;
typedef __m512i vi;

MT_INLINE vf vset(float x) { return _mm512_set1_ps(x); }
MT_INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
MT_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
MT_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
MT_INLINE vi vbits(vf a) { return _mm512_castps_si512(a); }
MT_INLINE vf vfloat(vi a) { return _mm512_castsi512_ps(a); }
MT_INLINE vi viset(int32_t x) { return _mm512_set1_epi32(x); }
MT_INLINE vi viadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
MT_INLINE vi viand(vi a, vi b) { return _mm512_and_si512(a, b); }
template <int S>
MT_INLINE vi vishl(vi a) {
  return _mm512_slli_epi32(a, S);
}
MT_INLINE vi viload(const void* p) { return _mm512_loadu_si512(p); }
// a where x >= y, else 0.
MT_INLINE vf vkeep_ge(vf a, vf x, vf y) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, y, _CMP_GE_OQ), a);
}
MT_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
MT_INLINE vf vload(const float* p) { return _mm512_loadu_ps(p); }
MT_INLINE vf vload(const bf16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
MT_INLINE vf vload(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MT_INLINE vf vloadn(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
MT_INLINE vf vloadn(const bf16* p, int n) {
  const __m256i h = _mm256_maskz_loadu_epi16(first(n), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
MT_INLINE vf vloadn(const f16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
MT_INLINE __m256i to_bf16(vf a) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a));
#else
  const __m512i u = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#endif
}
MT_INLINE __m256i to_f16(vf a) {
  return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
MT_INLINE void vstore(float* p, vf a) { _mm512_storeu_ps(p, a); }
MT_INLINE void vstore(bf16* p, vf a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(a));
}
MT_INLINE void vstore(f16* p, vf a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(a));
}
MT_INLINE void vstoren(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }
MT_INLINE void vstoren(bf16* p, vf a, int n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(a)); }
MT_INLINE void vstoren(f16* p, vf a, int n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(a)); }
#if defined(__AVX512BF16__)
// c + the products of a pair of bf16 in a dword with those in b's dwords.
MT_INLINE vf vdot_pairs(uint32_t a, vi b, vf c) {
  vi pairs = viset(static_cast<int32_t>(a));
#if defined(__clang__) && (__clang_major__ == 16 || __clang_major__ == 17)
  // These recurse for ever when they turn a broadcast of dwords into one of bf16: hide it.
  __asm__("" : "+v"(pairs));
#endif
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(b));
}
#endif

#else

#if defined(__AVX2__)

constexpr int W = 8;
typedef __m256 vf;
typedef __m256i vi;

MT_INLINE vf vset(float x) { return _mm256_set1_ps(x); }
MT_INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
MT_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
MT_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
MT_INLINE vi vbits(vf a) { return _mm256_castps_si256(a); }
MT_INLINE vf vfloat(vi a) { return _mm256_castsi256_ps(a); }
MT_INLINE vi viset(int32_t x) { return _mm256_set1_epi32(x); }
MT_INLINE vi viadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
MT_INLINE vi viand(vi a, vi b) { return _mm256_and_si256(a, b); }
template <int S>
MT_INLINE vi vishl(vi a) {
  return _mm256_slli_epi32(a, S);
}
MT_INLINE vi viload(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
MT_INLINE vf vkeep_ge(vf a, vf x, vf y) {
  return _mm256_and_ps(a, _mm256_cmp_ps(x, y, _CMP_GE_OQ));
}
MT_INLINE vf vload(const float* p) { return _mm256_loadu_ps(p); }
MT_INLINE vf vload(const bf16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
MT_INLINE vf vload(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MT_INLINE void vstore(float* p, vf a) { _mm256_storeu_ps(p, a); }
MT_INLINE void vstore(bf16* p, vf a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  r = _mm256_blendv_epi8(r, quiet, _mm256_castps_si256(nan));
  r = _mm256_srli_epi32(r, 16);
  r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(r));
}
MT_INLINE void vstore(f16* p, vf a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#else

constexpr int W = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

MT_INLINE vf vset(float x) { return vf{x, x, x, x}; }
MT_INLINE vf vfma(vf a, vf b, vf c) {
#if defined(__ARM_NEON) && defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
MT_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
MT_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
MT_INLINE vi vbits(vf a) { return (vi)a; }
MT_INLINE vf vfloat(vi a) { return (vf)a; }
MT_INLINE vi viset(int32_t x) { return vi{x, x, x, x}; }
MT_INLINE vi viadd(vi a, vi b) { return a + b; }
MT_INLINE vi viand(vi a, vi b) { return a & b; }
template <int S>
MT_INLINE vi vishl(vi a) {
  return a << S;
}
MT_INLINE vi viload(const void* p) {
  vi a;
  memcpy(&a, p, sizeof(a));
  return a;
}
MT_INLINE vf vkeep_ge(vf a, vf x, vf y) { return (vf)((vi)a & (vi)(x >= y)); }
MT_INLINE vf vload(const float* p) {
  vf a;
  memcpy(&a, p, sizeof(a));
  return a;
}
MT_INLINE vf vload(const bf16* p) { return vf{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
MT_INLINE vf vload(const f16* p) { return vf{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
MT_INLINE void vstore(float* p, vf a) { memcpy(p, &a, sizeof(a)); }
template <typename T>
MT_INLINE void vstore(T* p, vf a) {
  for (int i = 0; i < W; ++i) narrow(a[i], p + i);
}

#endif

// Tails without masks go through the stack.
template <typename T>
MT_INLINE vf vloadn(const T* p, int n) {
  T whole[W] = {};
  memcpy(whole, p, static_cast<size_t>(n) * sizeof(T));
  return vload(whole);
}
template <typename T>
MT_INLINE void vstoren(T* p, vf a, int n) {
  T whole[W];
  vstore(whole, a);
  memcpy(p, whole, static_cast<size_t>(n) * sizeof(T));
}

#endif

MT_INLINE vf vzero() { return vset(0.0f); }

// Round to T and widen again: what storing and loading would do.
MT_INLINE vf vround(vf a, const float*) { return a; }
template <typename T>
MT_INLINE vf vround(vf a, const T*) {
  T stored[W];
  vstore(stored, a);
  return vload(stored);
}
#if defined(__AVX512F__)
MT_INLINE vf vround(vf a, const bf16*) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(a)), 16));
}
#endif

// Lanes are added in one fixed tree: i with i + W/2, and so on.
MT_INLINE float vsum(vf a) {
  float lanes[W];
  vstore(lanes, a);
  for (int half = W / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
MT_INLINE float vmaximum(vf a) {
  float lanes[W];
  vstore(lanes, a);
  for (int half = W / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  }
  return lanes[0];
}

#if defined(__AVX512F__)

// exp(x) to about 1e-7 relative; 0 below -104, finite above 88. exp(0) is exactly 1.
MT_INLINE vf vexp(vf x) {
  const vf c = vmax(vmin(x, vset(88.3f)), vset(-104.0f));
  const vf n = _mm512_roundscale_ps(c * vset(1.44269504f),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  vf r = vfma(n, vset(-0.693359375f), c);
  r = vfma(n, vset(2.12194440e-4f), r);
  vf p = vfma(vset(1.9875691500e-4f), r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vfma(p, r * r, r) + vset(1.0f);
  return _mm512_scalef_ps(p, n);
}

// x / (1 + exp(-x)); a reciprocal with two Newton steps is a third of a division.
MT_INLINE vf vsilu(vf x) {
  const vf d = vset(1.0f) + vexp(vzero() - x);
  vf r = _mm512_rcp14_ps(d);
  r = r * _mm512_fnmadd_ps(d, r, vset(2.0f));
  r = r * _mm512_fnmadd_ps(d, r, vset(2.0f));
  return x * r;
}

#else

// exp(x) to about 1e-7 relative; 0 below -87, finite above 88. exp(0) is exactly 1.
MT_INLINE vf vexp(vf x) {
  const vf low = vset(-87.0f);
  // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
  const vf magic = vset(12582912.0f);
  const vf c = vmin(x, vset(88.3f));
  const vf t = vfma(c, vset(1.44269504f), magic);
  const vf n = t - magic;
  vf r = vfma(n, vset(-0.693359375f), c);
  r = vfma(n, vset(2.12194440e-4f), r);
  vf p = vfma(vset(1.9875691500e-4f), r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vfma(p, r * r, r) + vset(1.0f);
  const vf scale = vfloat(vishl<23>(viadd(vbits(t), viset(127))));
  return vkeep_ge(p * scale, x, low);
}

MT_INLINE vf vsilu(vf x) { return x / (vset(1.0f) + vexp(vzero() - x)); }

#endif

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
