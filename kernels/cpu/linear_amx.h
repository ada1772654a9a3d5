// How a chunk of a bf16 product is multiplied on AMX: few rows at the speed of memory, many rows at
// that of the multipliers. Rows are finished while the next ones are multiplied.
//
// linear_job.h has the job itself, amx.h the tile products.

#ifndef MTACTORS_KERNELS_CPU_LINEAR_AMX_H
#define MTACTORS_KERNELS_CPU_LINEAR_AMX_H

#include "amx.h"
#include "linear_job.h"
#include "pool.h"

namespace mt {
namespace MT_ISA {
namespace {

// Row by row, what `finish` does to a whole panel without bias and rounded to bf16. A gate becomes,
// in place, what its up is multiplied with.
MT_INLINE void activate_row(float* gate) {
  const bf16* as = nullptr;
  for (int j = 0; j < kPanel; j += W) {
    vstore(gate + j, vround(vsilu(vround(vload(gate + j), as)), as));
  }
}
MT_INLINE void finish_row(int fuse, const float* y, const float* up, const bf16* residual,
                          bf16* out) {
  const bf16* as = nullptr;
  vf low = vload(y), high = vload(y + W);
  if (fuse == MT_FUSE_SILU_MUL) {
    low = low * vround(vload(up), as);
    high = high * vround(vload(up + W), as);
  } else if (fuse == MT_FUSE_RESIDUAL) {
    low = vround(low, as) + vload(residual);
    high = vround(high, as) + vload(residual + W);
  }
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  _mm512_storeu_si512(out, reinterpret_cast<__m512i>(both));
}

struct Tile {
  alignas(64) float v[2][kTileRows * kPanel];
};

// A tile whose sums are there and whose rows are finished while the next one is multiplied.
template <typename Panel>
struct Pending {
  enum Work { kGeneric, kWhole, kGate };
  const Job<bf16, Panel>* job;
  Tile* tile = nullptr;
  int row0 = 0, rows = 0, p = 0, done = 0;
  Work work = kGeneric;

  explicit Pending(const Job<bf16, Panel>* j) : job(j) {}

  void set(Tile* t, int row, int count, int panel, Work what = kGeneric) {
    tile = t;
    row0 = row;
    rows = count;
    p = panel;
    done = 0;
    work = what;
  }

  MT_INLINE void finish_some(int count) {
    count = imin(count, rows - done);
    if (count <= 0) return;
    if (work == kGeneric) {
      const int at = done * kPanel;
      job->store(tile->v[0] + at, tile->v[1] + at, row0 + done, count, p);
    } else if (work == kGate) {
      for (int r = done; r < done + count; ++r) activate_row(tile->v[0] + r * kPanel);
    } else {
      const mt_linear& op = *job->op;
      bf16* out = static_cast<bf16*>(op.out) + p * kPanel;
      const bf16* residual = static_cast<const bf16*>(op.residual) + p * kPanel;
      for (int r = done; r < done + count; ++r) {
        finish_row(op.fuse, tile->v[0] + r * kPanel, tile->v[1] + r * kPanel,
                   residual + (row0 + r) * op.residual_stride, out + (row0 + r) * op.out_stride);
      }
    }
    done += count;
  }
};

// At most kTileRows rows: a unit's panels pass by once.
template <typename Panel>
inline void run_few(const Job<bf16, Panel>& job, int row, int rows, int unit_begin, int unit_end,
                    bool goes_on) {
  const mt_linear& op = *job.op;
  Tile buffers[2];
  alignas(64) char ring[2 * kRing * kStepBytes];
  Pending<Panel> pending(&job);
  TileConfig config;
  const bool pair = op.fuse == MT_FUSE_SILU_MUL, two = rows > 16;
  config.set(two ? 16 : rows, two ? rows - 16 : rows);
  const int steps = job.k / kKPad;
  const int rows_per_step = ceil_div(rows, pair && two ? 2 * steps : steps);
  const bf16* a = job.a + row * job.lda;
  const auto meanwhile = [&] { pending.finish_some(rows_per_step); };
  for (int p = unit_begin, turn = 0; p < unit_end; ++p, turn ^= 1) {
    Tile& now = buffers[turn];
    float* out[] = {now.v[0], now.v[1]};
    const char* gate = job.panel(p);
    const char* up = pair ? job.panel(p + job.units) : gate;
    Panel both[] = {Panel(gate, steps), Panel(up, steps)};
    const char* next = p + 1 < unit_end || goes_on ? job.panel(p + 1) : nullptr;
    if (!two && pair) {
      const Coming coming = job.coming(gate, next, ring);
      const char* next_up = Panel::first_step(job.panel(p + 1 + job.units));
      const Coming each[] = {coming, coming.with(next_up)};
      amx_stream<1, 2>(a, job.lda, both, each, steps, out, ring, meanwhile);
    } else if (!two) {
      const Coming coming = job.coming(gate, next, ring);
      amx_stream<1, 1>(a, job.lda, both, &coming, steps, out, ring, meanwhile);
    } else if (!pair) {
      const Coming coming = job.coming(gate, next, ring);
      amx_stream<2, 1>(a, job.lda, both, &coming, steps, out, ring, meanwhile);
    } else {
      const Coming coming = job.coming(gate, up, ring), then = job.coming(up, next, ring);
      amx_stream<2, 1>(a, job.lda, both, &coming, steps, out, ring, meanwhile);
      amx_stream<2, 1>(a, job.lda, both + 1, &then, steps, out + 1, ring, meanwhile);
    }
    pending.finish_some(kTileRows);
    pending.set(&now, row, rows, p);
  }
  pending.finish_some(kTileRows);
}

// Steps of a panel that stay in the first cache while rows pass by.
constexpr int kNearSteps = 18;

// A piece of a panel beside the rows that pass by. A plain one is where it is; another is expanded
// while the first of the tiles is multiplied, two steps before their turn.
template <typename Panel>
class Near {
 public:
  static constexpr bool kExpands = Panel::kBytes != kStepBytes;

  Near(Panel panel, int first, int count, char* buffer)
      : panel_(panel), first_(first), count_(count), buffer_(buffer) {}

  const char* start() {
    if (!kExpands) return panel_.at(first_);
    expand();
    expand();
    return buffer_;
  }
  MT_INLINE void expand() {
    if (!kExpands || done_ >= count_) return;
    panel_.expand(first_ + done_, buffer_ + done_ * kStepBytes, [](int) {});
    stored_before_tiles();
    ++done_;
  }

 private:
  Panel panel_;
  int first_, count_, done_ = 0;
  char* buffer_;
};

// More rows: they pass by one panel after another, or by one piece of it where the first cache
// holds no whole panel. A gate's rows are activated while others are multiplied, as rows are
// finished.
template <typename Panel>
inline void run_many(const Job<bf16, Panel>& job, int row_begin, int row_end, int unit_begin,
                     int unit_end) {
  typedef Pending<Panel> Later;
  const mt_linear& op = *job.op;
  const int tiles = ceil_div(row_end - row_begin, kTileRows);
  const int height = ceil_div(row_end - row_begin, tiles);  // of a tile; the last has what is left
  const int steps = job.k / kKPad, pieces = ceil_div(steps, kNearSteps);
  const bool pair = op.fuse == MT_FUSE_SILU_MUL;
  const int passes = pair ? 2 * pieces : pieces, width = pair ? op.n / 2 : op.n;
  const int lines = ceil_div(Panel::kBytes / 64, tiles);
  alignas(64) char near_bytes[Near<Panel>::kExpands ? kNearSteps * kStepBytes : 64];
  // All tiles wait for the next pass, or one to be finished while the next is multiplied.
  const int buffers = passes > 1 ? tiles : 2;
  Tile* sums = static_cast<Tile*>(scratch(kScratchB, sizeof(Tile) * size_t(buffers)));
  Later pending(&job);
  TileConfig config;
  for (int p = unit_begin; p < unit_end; ++p) {
    const bool whole = op.bias == nullptr && op.out_dtype == MT_BF16 && (p + 1) * kPanel <= width;
    for (int pass = 0; pass < passes; ++pass) {
      const int part = pass / pieces, piece = pass % pieces;
      const int first = steps * piece / pieces, count = steps * (piece + 1) / pieces - first;
      const char* start = job.panel(p + part * job.units);
      const Panel panel(start, steps);
      Near<Panel> near(panel, first, count, near_bytes);
      const char* b = near.start();
      // Every tile fetches its share of the same piece of the next panel.
      Ahead ahead = {panel.at(first) + job.bytes_per_panel, lines};
      for (int i = 0; i < tiles; ++i) {
        const int row = row_begin + i * height, rows = imin(height, row_end - row);
        Tile& tile = sums[i % buffers];
        if (pending.tile == &tile) pending.finish_some(kTileRows);
        config.set(ceil_div(rows, 2), rows / 2);
        const int rows_per_step = ceil_div(pending.rows, count);
        const auto meanwhile = [&] {
          near.expand();
          ahead();
          pending.finish_some(rows_per_step);
        };
        amx_two_by_one(job.a + row * job.lda + first * kKPad, job.lda, ceil_div(rows, 2), b, count,
                       piece > 0, tile.v[part], meanwhile);
        if (piece + 1 < pieces) continue;
        pending.finish_some(kTileRows);
        if (pass + 1 == passes) {
          pending.set(&tile, row, rows, p, whole ? Later::kWhole : Later::kGeneric);
        } else if (whole) {
          pending.set(&tile, row, rows, p, Later::kGate);
        }
      }
    }
  }
  pending.finish_some(kTileRows);
}

// In the place of the generic way of linear_job.h.
template <typename Panel>
inline void run_chunk(const Job<bf16, Panel>& job, int row_begin, int row_end, int unit_begin,
                      int unit_end, bool goes_on) {
  if (row_end - row_begin <= kTileRows) {
    run_few(job, row_begin, row_end - row_begin, unit_begin, unit_end, goes_on);
  } else {
    run_many(job, row_begin, row_end, unit_begin, unit_end);
  }
}

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
