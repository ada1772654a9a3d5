// bf16 weights in 12 bits without loss: how a panel lies in memory, and how it is expanded.
//
// Trained weights have few exponents: the upper byte of a bf16 number, its sign and seven bits of
// exponent, is one of sixteen in all but some of 100,000 weights of a panel. So a panel has a table
// of sixteen upper bytes, and of each weight it holds the lower byte and a code of four bits. What
// has no code is listed behind the panel and put right when its step was expanded. A product of few
// rows is bound by memory, and expanding takes less time than a quarter of the reads.
//
// That bf16 exponents can be coded without loss for inference is from DFloat11 (arXiv:2504.11651),
// whose codes have variable lengths; codes of one length need a byte shuffle.
//
// A step is 16 pairs of k. Two pairs, 256 bytes when expanded, are three lines: the lower bytes of
// the one, those of the other, and codes, in the lower four bits the one's.

#ifndef MTACTORS_KERNELS_CPU_COMPACT_H
#define MTACTORS_KERNELS_CPU_COMPACT_H

#include <stdint.h>
#include <string.h>

#include "ops.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

// Bytes of a step of 32 k of a plain bf16 panel, and elements of a pair of k.
constexpr int kStepBytes = 2048;
constexpr int kPairElements = 2 * kPanel;

struct CompactHead {
  uint8_t upper[16];
  uint32_t first_odd_step;  // the first step with a weight that has no code
  uint8_t reserved[44];
};
static_assert(sizeof(CompactHead) == kCompactHead, "the steps begin at a cache line");

// A weight without a code: step, element of the step, upper byte; ascending, kNone behind the last.
constexpr uint32_t kNone = 0xffffffffu;
constexpr int kMaxCompactSteps = 1 << 14;
MT_INLINE uint32_t odd_weight(int step, int element, int upper) {
  return uint32_t(step) << 18 | uint32_t(element) << 8 | uint32_t(upper);
}
MT_INLINE uint32_t odd_step(uint32_t odd) { return odd >> 18; }
MT_INLINE int odd_element(uint32_t odd) { return int(odd >> 8 & 1023u); }
MT_INLINE uint8_t odd_upper(uint32_t odd) { return uint8_t(odd); }

// Where a pair's element lies in its line, so that interleaving bytes within 16 puts it in place.
MT_INLINE int compact_place(int element) {
  return element % 32 / 8 * 16 + element / 32 * 8 + element % 8;
}

#if defined(__AVX2__)

// A vector of bytes, and how many of them side by side are a line.
typedef vi Bytes;
constexpr int kParts = 64 / int(sizeof(Bytes));

// The same part of the four lines of two pairs.
#if defined(__AVX512F__)
MT_INLINE Bytes sixteen_in_each_lane(const uint8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MT_INLINE void expand_part(const char* from, Bytes upper, Bytes* lines) {
  const Bytes four_bits = _mm512_set1_epi8(15);
  const Bytes low0 = _mm512_load_si512(from), low1 = _mm512_load_si512(from + 64);
  const Bytes codes = _mm512_load_si512(from + 128);
  const Bytes high0 = _mm512_shuffle_epi8(upper, _mm512_and_si512(codes, four_bits));
  const Bytes high1 =
      _mm512_shuffle_epi8(upper, _mm512_and_si512(_mm512_srli_epi16(codes, 4), four_bits));
  lines[0] = _mm512_unpacklo_epi8(low0, high0);
  lines[1] = _mm512_unpackhi_epi8(low0, high0);
  lines[2] = _mm512_unpacklo_epi8(low1, high1);
  lines[3] = _mm512_unpackhi_epi8(low1, high1);
}
MT_INLINE void store_bytes(char* to, Bytes x) { _mm512_store_si512(to, x); }
#else
MT_INLINE Bytes sixteen_in_each_lane(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MT_INLINE void expand_part(const char* from, Bytes upper, Bytes* lines) {
  const Bytes four_bits = _mm256_set1_epi8(15);
  const Bytes *first = reinterpret_cast<const Bytes*>(from), low0 = _mm256_load_si256(first),
              low1 = _mm256_load_si256(first + 2), codes = _mm256_load_si256(first + 4);
  const Bytes high0 = _mm256_shuffle_epi8(upper, _mm256_and_si256(codes, four_bits));
  const Bytes high1 =
      _mm256_shuffle_epi8(upper, _mm256_and_si256(_mm256_srli_epi16(codes, 4), four_bits));
  lines[0] = _mm256_unpacklo_epi8(low0, high0);
  lines[1] = _mm256_unpackhi_epi8(low0, high0);
  lines[2] = _mm256_unpacklo_epi8(low1, high1);
  lines[3] = _mm256_unpackhi_epi8(low1, high1);
}
MT_INLINE void store_bytes(char* to, Bytes x) {
  _mm256_store_si256(reinterpret_cast<Bytes*>(to), x);
}
#endif

// Two pairs: three lines to four.
MT_INLINE void expand_group(const char* from, Bytes upper, char* to) {
  for (int part = 0; part < 64; part += int(sizeof(Bytes))) {
    Bytes lines[4];
    expand_part(from + part, upper, lines);
    for (int i = 0; i < 4; ++i) store_bytes(to + 64 * i + part, lines[i]);
  }
}

// A panel whose steps are expanded one after another.
class CompactPanel {
 public:
  static constexpr int kBytes = kCompactStep;

  MT_INLINE CompactPanel(const char* panel, int steps)
      : steps_(panel + kCompactHead), odd_(steps_ + int64_t{steps} * kCompactStep) {
    const CompactHead* head = reinterpret_cast<const CompactHead*>(panel);
    upper_ = sixteen_in_each_lane(head->upper);
    next_odd_step_ = head->first_odd_step;
  }

  static const char* first_step(const char* panel) { return panel + kCompactHead; }
  MT_INLINE const char* at(int step) const { return steps_ + int64_t{step} * kBytes; }
  MT_INLINE Bytes upper() const { return upper_; }
  // Whether all weights have codes from the last step that was expanded to this one.
  MT_INLINE bool all_coded(int step) const { return uint32_t(step) < next_odd_step_; }

  // The step as floats, [k][kPanel], a part at a time.
  template <typename F>
  MT_INLINE void widen(int step, float* to, F fetch) {
    if (!all_coded(step)) {
      alignas(64) char plain[kStepBytes];
      expand(step, plain, fetch);
      for (int i = 0; i < kStepBytes; i += 256) {
        for (int part = 0; part < 64; part += int(sizeof(Bytes))) {
          Bytes lines[4];
          for (int j = 0; j < 4; ++j) lines[j] = viload(plain + i + 64 * j + part);
          widen_lines(lines, to + i / 256 * 4 * kPanel + part / 4);
        }
      }
      return;
    }
    const char* from = at(step);
    for (int i = 0; i < kBytes; i += 192, from += 192) {
      for (int j = 0; j < 192; j += 64) fetch(i + j);
      for (int part = 0; part < 64; part += int(sizeof(Bytes))) {
        Bytes lines[4];
        expand_part(from + part, upper_, lines);
        widen_lines(lines, to + i / 192 * 4 * kPanel + part / 4);
      }
    }
  }

  // The step as it lies in a plain panel: kStepBytes, 64-byte aligned. Steps ascend from call to
  // call. `fetch` is called with the offset of each line.
  template <typename F>
  MT_INLINE void expand(int step, char* to, F fetch) {
    const char* from = at(step);
#pragma GCC unroll 8
    for (int i = 0; i < kBytes; i += 192) {
      expand_group(from + i, upper_, to + i / 192 * 256);
      fetch(i);
      fetch(i + 64);
      fetch(i + 128);
      // Side by side: a burst of either would wait for the other.
      asm volatile("" : : : "memory");
    }
    if (!all_coded(step)) put_right(step, to);
  }

 private:
  // A part of the lines of two pairs, to four rows of k.
  static MT_INLINE void widen_lines(const Bytes* lines, float* to) {
    const Bytes upper_half = viset(static_cast<int32_t>(0xffff0000u));
    for (int j = 0; j < 4; ++j) {
      float* even = to + j / 2 * 2 * kPanel + j % 2 * (kPanel / 2);
      vstore(even, vfloat(vishl<16>(lines[j])));
      vstore(even + kPanel, vfloat(viand(lines[j], upper_half)));
    }
  }

  __attribute__((noinline)) void put_right(int step, char* to) {
    uint32_t odd;
    for (; memcpy(&odd, odd_, 4), odd_step(odd) <= uint32_t(step); odd_ += 4) {
      if (odd_step(odd) == uint32_t(step)) {
        to[2 * odd_element(odd) + 1] = static_cast<char>(odd_upper(odd));
      }
    }
    next_odd_step_ = odd_step(odd);
  }

  const char* steps_;
  const char* odd_;
  Bytes upper_;
  uint32_t next_odd_step_;
};

#endif

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
