// Panels of packed weights, and pieces of them as the multipliers take them: where they lie, or
// expanded and widened into a buffer.
//
// ops.h has the layout, compact.h that of compact panels.

#ifndef MTACTORS_KERNELS_CPU_PANEL_H
#define MTACTORS_KERNELS_CPU_PANEL_H

#include <stdint.h>

#include "compact.h"
#include "ops.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

MT_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// Two k of the columns from `b` on, as floats: even k then odd k.
template <int NV>
MT_INLINE void load_pair(const bf16* b, vf* even, vf* odd) {
  for (int j = 0; j < NV; ++j) {
    const vi raw = viload(b + 2 * j * W);
    even[j] = vfloat(vishl<16>(raw));
    odd[j] = vfloat(viand(raw, viset(static_cast<int32_t>(0xffff0000u))));
  }
}
template <int NV, typename B>
MT_INLINE void load_pair(const B* b, vf* even, vf* odd) {
  for (int j = 0; j < NV; ++j) {
    even[j] = vload(b + j * W);
    odd[j] = vload(b + kPanel + j * W);
  }
}

// Widens k / 2 pairs, and a last k where it is odd.
template <typename B>
inline void widen_pairs(const B* from, int k, float* to) {
  constexpr int NV = kPanel / W;
  for (int i = 0; i + 1 < k; i += 2, from += 2 * kPanel, to += 2 * kPanel) {
    vf even[NV], odd[NV];
    load_pair<NV>(from, even, odd);
    for (int j = 0; j < NV; ++j) {
      vstore(to + j * W, even[j]);
      vstore(to + kPanel + j * W, odd[j]);
    }
  }
}
inline void widen_pairs(const f16* from, int k, float* to) {
  for (int i = 0; i < k * kPanel; i += W) vstore(to + i, vload(from + i));
}

template <typename X, typename Y>
struct Same {
  static constexpr bool value = false;
};
template <typename X>
struct Same<X, X> {
  static constexpr bool value = true;
};

// What is fetched while a panel passes by: the one that comes next, from two places of it in turn,
// which memory gives a tenth faster than lines one after another. And, where nobody has fetched the
// panel itself, its own steps, kStepsAhead before their turn. Panels beyond kMostAhead bytes would
// not stay in the second cache of every CPU until their turn.
constexpr int kStepsAhead = 8;
constexpr int64_t kMostAhead = 256 * 1024;

class Coming {
 public:
  // The panel of `steps` steps of `step_bytes` whose first step is at `next`, or, if that is null,
  // nothing: `anything` is some memory that is near.
  Coming(const char* next, int steps, int step_bytes, bool fresh, const char* anything)
      : from_(next == nullptr ? anything : next),
        per_step_(next == nullptr ? 0 : step_bytes / 2),
        half_(per_step_ * steps),
        own_steps_(fresh ? steps - kStepsAhead : 0) {}

  // The same for a second panel, whose follower's first step is at `next`, if there is one.
  Coming with(const char* next) const {
    Coming other = *this;
    if (per_step_ != 0) other.from_ = next;
    return other;
  }

  // For the line at `offset` of a step.
  MT_INLINE void fetch(int step, int offset) const {
    const int line = offset / 64;
    prefetch(from_ + line % 2 * half_ + step * per_step_ + line / 2 * 64);
  }
  // Whether the step after kStepsAhead is to be fetched as well.
  MT_INLINE bool own(int step) const { return step < own_steps_; }

 private:
  const char* from_;
  int64_t per_step_, half_;
  int own_steps_;
};

// A panel in the type of its weights.
template <typename B>
class PlainPanel {
 public:
  typedef B Element;
  // Whether pieces for a multiplier of P need no buffer.
  template <typename P>
  static constexpr bool direct() {
    return Same<P, B>::value;
  }
  static constexpr int kBytes = kKPad * kPanel * int(sizeof(B));  // of a step

  MT_INLINE PlainPanel(const char* panel, int) : data_(panel) {}

  static const char* first_step(const char* panel) { return panel; }
  MT_INLINE const char* at(int step) const { return data_ + int64_t{step} * kBytes; }

  // `count` k from `first` on, a multiple of kKPad.
  MT_INLINE const B* piece(int first, int, const Coming&, B*) {
    return reinterpret_cast<const B*>(at(first / kKPad));
  }
  template <typename P>
  MT_INLINE const P* piece(int first, int count, const Coming&, P* buffer) {
    widen_pairs(reinterpret_cast<const B*>(at(first / kKPad)), count, buffer);
    return buffer;
  }

#if defined(__AVX512F__)
  // As CompactPanel's.
  template <typename F>
  MT_INLINE void expand(int step, char* to, F fetch) {
    const char* from = at(step);
#pragma GCC unroll 4
    for (int i = 0; i < kBytes; i += 64) {
      fetch(i);
      _mm512_store_si512(to + i, _mm512_load_si512(from + i));
      asm volatile("" : : : "memory");
    }
  }
#endif

 private:
  const char* data_;
};

#if defined(__AVX2__)

class CompactPieces : public CompactPanel {
 public:
  typedef bf16 Element;
  template <typename P>
  static constexpr bool direct() {
    return false;
  }

  MT_INLINE CompactPieces(const char* panel, int steps)
      : CompactPanel(panel, steps), steps_(steps) {}

  int steps() const { return steps_; }

  // Pieces ascend.
  MT_INLINE const bf16* piece(int first, int count, const Coming& coming, bf16* buffer) {
    char* to = reinterpret_cast<char*>(buffer);
    for (int step = first / kKPad; count > 0; count -= kKPad, ++step, to += kStepBytes) {
      expand(step, to, [&](int line) MT_INLINE_LAMBDA { coming.fetch(step, line); });
    }
    return buffer;
  }
  MT_INLINE const float* piece(int first, int count, const Coming& coming, float* buffer) {
    for (int k = 0; k < count; k += kKPad) {
      const int step = (first + k) / kKPad;
      float* to = buffer + k * kPanel;
      widen(step, to, [&](int line) MT_INLINE_LAMBDA { coming.fetch(step, line); });
    }
    return buffer;
  }

 private:
  int steps_;
};

#endif

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
