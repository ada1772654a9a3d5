// Tile products for builds with AMX: C (16 x 16 floats) += A (16 x 32 bf16) * B (16 x 16 pairs).
//
// The order within a tile product is fixed by the instruction: even and odd k in two chains of 16,
// then their sum is added to C. It does not depend on the number of rows.

#ifndef MTACTORS_KERNELS_CPU_AMX_H
#define MTACTORS_KERNELS_CPU_AMX_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "compact.h"
#include "panel.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

// The operand of the instruction that sets the tiles' shapes.
struct TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};

  MT_INLINE void load() const {
    static_assert(sizeof(TileShapes) == 64, "the layout of the instruction's operand");
    // gcc 12 believes that the instruction reads 8 bytes, and would leave the others unwritten.
    asm volatile("" : : "r"(this) : "memory");
    _tile_loadconfig(this);
  }
};

// The calling thread's tile shapes; released when it goes out of scope. Tiles 0-3 are C, 4 and 5 A,
// 6 and 7 B. The first half of each group has `first` rows, the second `second`.
class TileConfig {
 public:
  ~TileConfig() {
    if (first_ != 0) _tile_release();
  }

  // C: tiles 0, 1 and A: tile 4 have `first` rows; C: 2, 3 and A: 5 have `second`.
  void set(int first, int second) {
    if (first == first_ && second == second_) return;
    first_ = first;
    second_ = second;
    TileShapes shapes;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<uint8_t>(first);
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(second);
    shapes.load();
  }

 private:
  int first_ = 0, second_ = 0;
};

// Bytes from a pair of k to the next in a plain panel.
constexpr int kPairStride = 128;

// The compiler does not know that a tile load reads memory: what was stored stays stored before it.
MT_INLINE void stored_before_tiles() { asm volatile("" ::: "memory"); }

// What a product fetches into L2 meanwhile: `lines` cache lines per k step, one after another.
struct Ahead {
  const char* from;
  int lines;

  MT_INLINE void operator()() {
    for (int i = 0; i < lines; ++i) __builtin_prefetch(from + 64 * i, 0, 2);
    from += 64 * lines;
  }
};

// C (up to 32 rows: those of tile A 4 and of A 5) = or, with `more`, += A times `steps` steps of a
// panel. Rows of A come from L2 and pass by the first cache, where they would push the panel out.
// `meanwhile` is called once per k step: vector work that the tile unit's time hides.
template <typename F>
inline void amx_two_by_one(const bf16* a, int64_t lda, int second, const char* b, int steps,
                           bool more, float* out, F meanwhile) {
  stored_before_tiles();
  const char* a0 = reinterpret_cast<const char*>(a);
  const int64_t stride = lda * 2;
  const char* a1 = a0 + second * stride;
  float* out1 = out + second * 32;
  if (more) {
    _tile_loadd(0, out, 128);
    _tile_loadd(1, out + 16, 128);
    _tile_loadd(2, out1, 128);
    _tile_loadd(3, out1 + 16, 128);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int i = 0; i < steps; ++i) {
    _tile_loadd(6, b, kPairStride);
    _tile_stream_loadd(4, a0, stride);
    _tile_loadd(7, b + 64, kPairStride);
    _tile_stream_loadd(5, a1, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    meanwhile();
    a0 += 64;
    a1 += 64;
    b += kStepBytes;
  }
  _tile_stored(0, out, 128);
  _tile_stored(1, out + 16, 128);
  _tile_stored(2, out1, 128);
  _tile_stored(3, out1 + 16, 128);
  stored_before_tiles();
}

// Few rows (R groups of up to 16) times S panels, at the speed of memory; R * S is at most 2. Tile
// loads that miss the first cache keep fewer misses under way than plain loads do (28 GB/s instead
// of 35 on two cores), so a step is expanded to where it stays near, two steps before its turn.
// `coming`: what to fetch meanwhile, for each of the panels. `ring`: S * kRing steps.
constexpr int kRing = 4;

template <int R, int S, typename Panel, typename F>
inline void amx_stream(const bf16* a, int64_t lda, Panel* panel, const Coming* coming, int steps,
                       float* const* out, char* ring, F meanwhile) {
  const auto expand = [&](int i) {
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s) {
      char* to = ring + (i % kRing * S + s) * kStepBytes;
      const Coming later = coming[s];
      if (later.own(i)) {
        const char* own = panel[s].at(i + kStepsAhead);
        panel[s].expand(i, to, [=](int line) MT_INLINE_LAMBDA {
          prefetch(own + line);
          later.fetch(i, line);
        });
      } else {
        panel[s].expand(i, to, [=](int line) MT_INLINE_LAMBDA { later.fetch(i, line); });
      }
    }
  };
  const char* a0 = reinterpret_cast<const char*>(a);
  const int64_t stride = lda * 2;
  const char* a1 = a0 + 16 * stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int i = 0; i < imin(2, steps); ++i) expand(i);
  for (int i = 0; i < steps; ++i) {
    if (i + 2 < steps) expand(i + 2);
    const char* b = ring + i % kRing * S * kStepBytes;
    stored_before_tiles();
    _tile_loadd(4, a0, stride);
    _tile_loadd(6, b, kPairStride);
    _tile_loadd(7, b + 64, kPairStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (R == 2) {
      _tile_loadd(5, a1, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else if (S == 2) {
      _tile_loadd(6, b + kStepBytes, kPairStride);
      _tile_loadd(7, b + kStepBytes + 64, kPairStride);
      _tile_dpbf16ps(2, 4, 6);
      _tile_dpbf16ps(3, 4, 7);
    }
    meanwhile();
    a0 += 64;
    a1 += 64;
  }
  _tile_stored(0, out[0], 128);
  _tile_stored(1, out[0] + 16, 128);
  if (R == 1 && S == 1) return;
  float* second = R == 2 ? out[0] + 16 * 32 : out[S - 1];
  _tile_stored(2, second, 128);
  _tile_stored(3, second + 16, 128);
}

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
