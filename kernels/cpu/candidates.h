// Which of a row's logits can matter: block maxima, the k-th largest, and all above a floor.
//
// Knows nothing of probabilities. Everything has internal linkage (isa.h says why).

#ifndef MTACTORS_KERNELS_CPU_CANDIDATES_H
#define MTACTORS_KERNELS_CPU_CANDIDATES_H

#include "nucleus.h"

namespace mt {
namespace MT_ISA {
namespace {

constexpr int kBlock = 64;  // logits that share one maximum

MT_INLINE float greatest_lane(vf a) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(a);
#else
  return vmaximum(a);
#endif
}

// Greatest of each block of logits; returns the greatest of all.
inline float block_maxima(const float* value, int n, float* maxima) {
  float greatest = -kInfinity;
  for (int b = 0; b * kBlock < n; ++b) {
    const float* v = value + b * kBlock;
    const int count = imin(kBlock, n - b * kBlock);
    float most;
    if (count == kBlock) {
      vf m0 = vload(v), m1 = vload(v + W);
      for (int i = 2 * W; i < kBlock; i += 2 * W) {
        m0 = vmax(m0, vload(v + i));
        m1 = vmax(m1, vload(v + i + W));
      }
      most = greatest_lane(vmax(m0, m1));
    } else {
      most = v[0];
      for (int i = 1; i < count; ++i) most = v[i] > most ? v[i] : most;
    }
    maxima[b] = most;
    greatest = most > greatest ? most : greatest;
  }
  return greatest;
}

inline int first_equal(const float* value, int n, const float* maxima, float wanted) {
  for (int b = 0; b * kBlock < n; ++b) {
    if (maxima[b] != wanted) continue;
    const int end = imin(n, (b + 1) * kBlock);
    for (int i = b * kBlock; i < end; ++i) {
      if (value[i] == wanted) return i;
    }
  }
  return 0;
}

// Bytes that `kth_largest` needs for n values.
inline size_t kth_bytes(int n) { return size_t(n) * 2 * sizeof(double); }

// The k-th largest of n floats, k from 1.
inline float kth_largest(const float* value, int n, int k, void* memory) {
  double* key = static_cast<double*>(memory);
  double* weight = key + n;
  for (int i = 0; i < n; ++i) key[i] = value[i];
  for (int i = 0; i < n; ++i) weight[i] = 1.0;
  return static_cast<float>(nucleus_of(key, weight, n, k).end);
}

// A floor that at least k of the logits reach: the k-th largest block maximum.
inline float floor_for(int k, const float* maxima, int blocks, void* memory) {
  return k > blocks ? -kInfinity : kth_largest(maxima, blocks, k, memory);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each set of lanes, their numbers in order.
struct Orders {
  uint8_t lanes[256][8];

  constexpr Orders() : lanes() {
    for (int set = 0; set < 256; ++set) {
      for (int j = 0, k = 0; j < 8; ++j) {
        if (set >> j & 1) lanes[set][k++] = static_cast<uint8_t>(j);
      }
    }
  }
};
constexpr Orders kOrders;
#endif

// Some of a row's logits, in id order.
struct Candidates {
  float* value;
  int32_t* id;
  double* weight;

  // Bytes for all of n logits, and for a whole vector of weights behind the last.
  static size_t bytes(int n) { return (size_t(n) + WD) * sizeof(double) + size_t(n) * 8; }

  Candidates(void* memory, int n) {
    weight = static_cast<double*>(memory);
    value = reinterpret_cast<float*>(weight + n + WD);
    id = reinterpret_cast<int32_t*>(value + n);
  }

  // Take those of n logits that reach the floor; returns how many.
  int collect(const float* from, int n, const float* maxima, float floor) {
    int count = 0;
    for (int b = 0; b * kBlock < n; ++b) {
      if (!(maxima[b] >= floor)) continue;
      const int end = imin(n, (b + 1) * kBlock);
      int i = b * kBlock;
#if defined(__AVX2__)
      for (; i + W <= end; i += W) count = take_vector(from + i, i, floor, count);
#endif
      for (; i < end; ++i) count = take(from[i], i, floor, count);
    }
    return count;
  }

 private:
  // Both without a branch, which would be foreseen as badly as logits are.
  MT_INLINE int take(float x, int i, float floor, int count) {
    value[count] = x;
    id[count] = i;
    return count + (x >= floor ? 1 : 0);
  }

#if defined(__AVX2__)
  MT_INLINE int take_vector(const float* from, int i, float floor, int count) {
    const vf v = vload(from);
#if defined(__AVX512F__)
    const vi lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __mmask16 kept = _mm512_cmp_ps_mask(v, vset(floor), _CMP_GE_OQ);
    vstore(value + count, _mm512_maskz_compress_ps(kept, v));
    _mm512_storeu_si512(id + count, _mm512_maskz_compress_epi32(kept, viadd(lanes, viset(i))));
#else
    const int kept = _mm256_movemask_ps(_mm256_cmp_ps(v, vset(floor), _CMP_GE_OQ));
    int64_t lanes;
    memcpy(&lanes, kOrders.lanes[kept], sizeof(lanes));
    const vi order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(lanes));
    vstore(value + count, _mm256_permutevar8x32_ps(v, order));
    _mm256_storeu_si256(reinterpret_cast<vi*>(id + count), viadd(order, viset(i)));
#endif
    return count + __builtin_popcount(static_cast<unsigned>(kept));
  }
#endif
};

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
