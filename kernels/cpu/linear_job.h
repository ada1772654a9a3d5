// One product as a job of the thread pool: its chunks, and what becomes of finished sums.
//
// Sums are stored with bias, rounding and a fused function, or only the best of each row is kept.
// Knows no AMX: linear_amx.h replaces how a chunk is multiplied.

#ifndef MTACTORS_KERNELS_CPU_LINEAR_JOB_H
#define MTACTORS_KERNELS_CPU_LINEAR_JOB_H

#include <string.h>

#include "multiply.h"
#include "ops.h"
#include "pool.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

// Rows of x that stay in a core's L2 while a panel passes by.
constexpr int kRowBlock = 256;
constexpr int kTileRows = 32;
// Steps of a panel that stay in the first cache, widened, while rows pass by.
constexpr int kPieceSteps = 6;

// One vector of finished sums: bias, fused function; rounded by the store that follows.
template <typename T, int FUSE>
MT_INLINE vf finish_vector(vf y, vf up, const T* bias, const T* up_bias, const T* residual, int n) {
  const T* as = nullptr;
  if (bias != nullptr) y = y + (n == W ? vload(bias) : vloadn(bias, n));
  if (FUSE == MT_FUSE_SILU_MUL) {
    if (bias != nullptr) up = up + vload(up_bias);
    y = vround(vsilu(vround(y, as)), as) * vround(up, as);
  }
  if (FUSE == MT_FUSE_RESIDUAL) {
    y = vround(y, as) + (n == W ? vload(residual) : vloadn(residual, n));
  }
  return y;
}

// Stores `rows` x `columns` finished sums of a tile.
template <typename T, typename O, int FUSE>
inline void finish(const mt_linear& op, const float* tile, const float* tile2, int row0, int rows,
                   int column0, int columns) {
  const T* bias = op.bias == nullptr ? nullptr : static_cast<const T*>(op.bias) + column0;
  const T* up_bias = bias == nullptr ? nullptr : bias + op.n / 2;
  for (int r = 0; r < rows; ++r) {
    O* out = static_cast<O*>(op.out) + (row0 + r) * op.out_stride + column0;
    const T* residual = nullptr;
    if (FUSE == MT_FUSE_RESIDUAL) {
      residual = static_cast<const T*>(op.residual) + (row0 + r) * op.residual_stride + column0;
    }
    const float* y = tile + r * kPanel;
    const float* up = tile2 + r * kPanel;
    if (columns == kPanel && bias == nullptr) {
#pragma GCC unroll 8
      for (int j = 0; j < kPanel; j += W) {
        const vf second = FUSE == MT_FUSE_SILU_MUL ? vload(up + j) : vzero();
        const T* none = nullptr;
        vstore(out + j, finish_vector<T, FUSE>(vload(y + j), second, none, none, residual + j, W));
      }
      continue;
    }
    for (int j = 0; j < columns; j += W) {
      const int n = imin(W, columns - j);
      const vf second = FUSE == MT_FUSE_SILU_MUL ? vload(up + j) : vzero();
      const T* b = bias == nullptr ? nullptr : bias + j;
      const T* b2 = bias == nullptr ? nullptr : up_bias + j;
      const vf x = finish_vector<T, FUSE>(vload(y + j), second, b, b2, residual + j, n);
      if (n == W) {
        vstore(out + j, x);
      } else {
        vstoren(out + j, x, n);
      }
    }
  }
}

// The greatest of what each lane has seen of a row, and the first id of the vector it came from.
struct Best {
  typedef float Floats __attribute__((vector_size(W * 4)));
  typedef int32_t Ints __attribute__((vector_size(W * 4)));
  alignas(64) float value[W];
  alignas(64) int32_t from[W];

  void clear() {
    for (int i = 0; i < W; ++i) {
      value[i] = -__builtin_inff();
      from[i] = 0;
    }
  }

  // Ids ascend from call to call, so of equals the lowest stays.
  MT_INLINE void take(const float* logits, int first_id) {
    Floats most;
    Ints where;
    memcpy(&most, value, sizeof(most));
    memcpy(&where, from, sizeof(where));
    for (int j = 0; j < kPanel; j += W) {
      Floats now;
      memcpy(&now, logits + j, sizeof(now));
      const Ints greater = (Ints)(now > most);
      most = (Floats)(((Ints)now & greater) | ((Ints)most & ~greater));
      where = ((Ints{} + (first_id + j)) & greater) | (where & ~greater);
    }
    memcpy(value, &most, sizeof(most));
    memcpy(from, &where, sizeof(where));
  }
};

template <typename T, typename Panel>
struct Job;
template <typename T, typename Panel>
inline void run_chunk(const Job<T, Panel>& job, int row_begin, int row_end, int unit_begin,
                      int unit_end, bool goes_on);

// T: what is read and written. Panel: how the weights are held.
template <typename T, typename Panel>
struct Job {
  typedef typename Activations<T, Panel>::type A;
  const mt_linear* op;
  const A* a;
  int64_t lda;
  int k;  // of a row of a and of the weights, padding included
  const char* first_panel;
  int64_t bytes_per_panel;
  int row_blocks, rows_per_block, units, units_per_chunk;
  // Where only the likeliest id is asked for: (chunks of units, tokens), and the ids that count.
  Best* best = nullptr;
  int sampleable = 0;

  const char* panel(int index) const { return first_panel + index * bytes_per_panel; }

  // Finishes sums of the panels of one unit: `up` where the product has two parts.
  void store(const float* y, const float* up, int row0, int rows, int p) const {
    const int width = op->fuse == MT_FUSE_SILU_MUL ? op->n / 2 : op->n;
    const int column0 = p * kPanel, columns = imin(kPanel, width - column0);
    if (best != nullptr) {
      keep_best(y, row0, rows, p);
    } else if (op->fuse == MT_FUSE_SILU_MUL) {
      finish<T, T, MT_FUSE_SILU_MUL>(*op, y, up, row0, rows, column0, columns);
    } else if (op->fuse == MT_FUSE_RESIDUAL) {
      finish<T, T, MT_FUSE_RESIDUAL>(*op, y, up, row0, rows, column0, columns);
    } else if (op->out_dtype == MT_F32) {
      finish<T, float, MT_FUSE_NONE>(*op, y, up, row0, rows, column0, columns);
    } else {
      finish<T, T, MT_FUSE_NONE>(*op, y, up, row0, rows, column0, columns);
    }
  }

  void keep_best(const float* y, int row0, int rows, int p) const {
    Best* to = best + int64_t{p / units_per_chunk} * op->tokens + row0;
    const int column0 = p * kPanel, columns = imin(kPanel, sampleable - column0);
    for (int r = 0; r < rows; ++r, y += kPanel) {
      if (p % units_per_chunk == 0) to[r].clear();
      if (columns == kPanel) {
        to[r].take(y, column0);
      } else if (columns > 0) {
        float some[kPanel];
        for (int j = 0; j < kPanel; ++j) some[j] = j < columns ? y[j] : -__builtin_inff();
        to[r].take(some, column0);
      }
    }
  }

  // The lowest of a row's likeliest ids; 0 where all are impossible.
  int32_t likeliest(int row) const {
    float most = -__builtin_inff();
    int32_t id = 0;
    for (int c = 0; c * units_per_chunk < units; ++c) {
      const Best& b = best[int64_t{c} * op->tokens + row];
      for (int i = 0; i < W; ++i) {
        const int32_t own = b.from[i] + i;
        if (b.value[i] > most || (b.value[i] == most && own < id)) {
          most = b.value[i];
          id = own;
        }
      }
    }
    return id;
  }

  void operator()(int chunk) const {
    const int row_begin = chunk % row_blocks * rows_per_block;
    const int row_end = imin(op->tokens, row_begin + rows_per_block);
    const int unit_begin = chunk / row_blocks * units_per_chunk;
    const int unit_end = imin(units, unit_begin + units_per_chunk);
    const bool goes_on = row_blocks > 1 || !last_of_range(chunk, ceil_div(units, units_per_chunk));
    run_chunk(*this, row_begin, row_end, unit_begin, unit_end, goes_on);
  }

  void run(int row_begin, int row_end, int unit_begin, int unit_end, bool goes_on) const {
    if (row_end - row_begin <= kMaxRows) {
      run_few(row_begin, row_end - row_begin, unit_begin, unit_end, goes_on);
    } else {
      run_many(row_begin, row_end, unit_begin, unit_end, goes_on);
    }
  }

  int parts() const { return op->fuse == MT_FUSE_SILU_MUL ? 2 : 1; }

  // What to fetch while the panel at `start` passes by. `next`: the panel of this thread that comes
  // after it, or null.
  Coming coming(const char* start, const char* next, const char* anything) const {
    static thread_local const char* fetched = nullptr;
    if (bytes_per_panel > kMostAhead) next = nullptr;
    const bool fresh = start != fetched;
    fetched = next;
    const char* first = next == nullptr ? nullptr : Panel::first_step(next);
    return Coming(first, k / kKPad, Panel::kBytes, fresh, anything);
  }
  // The panel after part `part` of unit p; null after the last one.
  const char* after(int p, int part, int unit_end, bool goes_on) const {
    if (part + 1 < parts()) return panel(p + units);
    return p + 1 < unit_end || goes_on ? panel(p + 1) : nullptr;
  }

  // Each panel passes by all rows.
  void run_few(int row, int rows, int unit_begin, int unit_end, bool goes_on) const {
    alignas(64) float sums[2][kMaxRows * kPanel];
    for (int p = unit_begin; p < unit_end; ++p) {
      for (int part = 0; part < parts(); ++part) {
        const char* start = panel(p + part * units);
        const char* next = after(p, part, unit_end, goes_on);
        multiply_panel(rows, a + row * lda, lda, Panel(start, k / kKPad), k,
                       coming(start, next, start), sums[part]);
      }
      store(sums[0], sums[1], row, rows, p);
    }
  }

  // All rows pass by one piece of a panel after another.
  void run_many(int row_begin, int row_end, int unit_begin, int unit_end, bool goes_on) const {
    constexpr From from = Panel::template direct<A>() ? From::kMemory : From::kBuffer;
    constexpr int kPieceK = kPieceSteps * kKPad, kSums = kMaxRows * kPanel;
    alignas(64) A buffer[from == From::kMemory ? 1 : kPieceK * kPanel];
    const int piece_k = from == From::kMemory ? k : kPieceK;
    const int rows = row_end - row_begin, tiles = ceil_div(rows, kMaxRows);
    const size_t bytes = sizeof(float) * 2 * kSums * size_t(tiles);
    float* sums = static_cast<float*>(scratch(kScratchB, bytes));
    for (int p = unit_begin; p < unit_end; ++p) {
      for (int part = 0; part < parts(); ++part) {
        const char* start = panel(p + part * units);
        const Coming later = coming(start, after(p, part, unit_end, goes_on), start);
        Panel weights(start, k / kKPad);
        for (int first = 0; first < k; first += piece_k) {
          const int count = imin(piece_k, k - first);
          const A* b = weights.piece(first, count, later, buffer);
          const bool last = part + 1 == parts() && first + count == k;
          for (int i = 0; i < tiles; ++i) {
            const int row = row_begin + rows * i / tiles, end = row_begin + rows * (i + 1) / tiles;
            float* y = sums + i * 2 * kSums;
            multiply_tile<from>(end - row, a + row * lda + first, lda, b, count,
                                first == 0 ? Sums::kNew : Sums::kMore, y + part * kSums);
            if (last) store(y, y + kSums, row, end - row, p);
          }
        }
      }
    }
  }
};

template <typename T, typename Panel>
inline void run_chunk(const Job<T, Panel>& job, int row_begin, int row_end, int unit_begin,
                      int unit_end, bool goes_on) {
  job.run(row_begin, row_end, unit_begin, unit_end, goes_on);
}

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
