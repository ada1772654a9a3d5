// Matrix products with packed weights, packing, and the gather of packed rows.
//
// out[t][n] = sum over k of x[t][k] * w[n][k]. Each output element has one float32 accumulator that
// takes k in ascending order over the full K, whatever the number of rows, so that a row's bits do
// not depend on the rest of the batch. On AMX the unit of that order is a tile product of 32 k.
// ops.h has the packed layout. K is never split; work is split over panels of columns and, for many
// rows, blocks of rows.

#include "isa.h"
#include "pool.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "amx.h"
#endif

namespace mt {
namespace MT_ISA {
namespace {

// Rows of x that stay in a core's L2 while a panel passes by.
constexpr int kRowBlock = 256;
constexpr int kTileRows = 32;

struct Tile {
  alignas(64) float v[2][kTileRows * kPanel];
};

#if defined(__AVX512F__)
constexpr int kMaxRows = 12;
#elif defined(__AVX2__)
constexpr int kMaxRows = 6;
#else
constexpr int kMaxRows = 4;
#endif

// Two k of 32 columns, as floats: even k then odd k.
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

// In the paired bf16 layout a column is two elements wide.
MT_INLINE const bf16* at_column(const bf16* b, int column) { return b + 2 * column; }
template <typename B>
MT_INLINE const B* at_column(const B* b, int column) {
  return b + column;
}

MT_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// MR rows times NV vectors of columns; `b` is the panel at its first column.
template <int MR, int NV, typename B>
inline void multiply(const float* a, int64_t lda, const B* b, int k, float* out) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[r][j] = vzero();
  }
  const int pairs = k / 2;
  for (int i = 0; i < pairs; ++i) {
    vf even[NV], odd[NV];
    load_pair<NV>(b, even, odd);
    prefetch(reinterpret_cast<const char*>(b) + 4096);
    if (sizeof(B) == 4) prefetch(reinterpret_cast<const char*>(b) + 4096 + 128);
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

template <int MR, typename B>
inline void multiply_rows(const float* a, int64_t lda, const B* b, int k, float* out) {
  // Columns per pass: as many vectors as leave the accumulators in registers.
  constexpr int kAll = kPanel / W;
  constexpr int NV = W == 16 ? 2 : W == 8 ? (MR <= 2 ? 4 : 2) : (MR == 1 ? 8 : 2);
  for (int pass = 0; pass < kAll / NV; ++pass) {
    const int column = pass * NV * W;
    multiply<MR, NV>(a, lda, at_column(b, column), k, out + column);
  }
}

template <typename B>
inline void multiply_tile(int rows, const float* a, int64_t lda, const B* b, int k, float* out) {
  switch (rows) {
    case 1: return multiply_rows<1>(a, lda, b, k, out);
    case 2: return multiply_rows<2>(a, lda, b, k, out);
    case 3: return multiply_rows<3>(a, lda, b, k, out);
    case 4: return multiply_rows<4>(a, lda, b, k, out);
#if defined(__AVX2__)
    case 5: return multiply_rows<5>(a, lda, b, k, out);
    case 6: return multiply_rows<6>(a, lda, b, k, out);
#endif
#if defined(__AVX512F__)
    case 7: return multiply_rows<7>(a, lda, b, k, out);
    case 8: return multiply_rows<8>(a, lda, b, k, out);
    case 9: return multiply_rows<9>(a, lda, b, k, out);
    case 10: return multiply_rows<10>(a, lda, b, k, out);
    case 11: return multiply_rows<11>(a, lda, b, k, out);
    case 12: return multiply_rows<12>(a, lda, b, k, out);
#endif
  }
}

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

// Products of bf16 pairs; x stays bf16.
template <int MR>
inline void multiply_bf16(const bf16* a, int64_t lda, const bf16* b, int k, float* out) {
  __m512 acc[MR][2];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  const int pairs = k / 2;
  for (int i = 0; i < pairs; ++i) {
    const __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + kPanel);
    prefetch(reinterpret_cast<const char*>(b) + 4096);
    prefetch(reinterpret_cast<const char*>(b) + 4096 + 64);
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

inline void multiply_tile(int rows, const bf16* a, int64_t lda, const bf16* b, int k, float* out) {
  switch (rows) {
    case 1: return multiply_bf16<1>(a, lda, b, k, out);
    case 2: return multiply_bf16<2>(a, lda, b, k, out);
    case 3: return multiply_bf16<3>(a, lda, b, k, out);
    case 4: return multiply_bf16<4>(a, lda, b, k, out);
    case 5: return multiply_bf16<5>(a, lda, b, k, out);
    case 6: return multiply_bf16<6>(a, lda, b, k, out);
    case 7: return multiply_bf16<7>(a, lda, b, k, out);
    case 8: return multiply_bf16<8>(a, lda, b, k, out);
    case 9: return multiply_bf16<9>(a, lda, b, k, out);
    case 10: return multiply_bf16<10>(a, lda, b, k, out);
    case 11: return multiply_bf16<11>(a, lda, b, k, out);
    case 12: return multiply_bf16<12>(a, lda, b, k, out);
  }
}

#endif

#if defined(__AVX512BF16__)
// bf16 is multiplied as it is; everything else is widened to float first.
template <typename B>
struct Activations {
  typedef float type;
};
template <>
struct Activations<bf16> {
  typedef bf16 type;
};
#else
template <typename B>
struct Activations {
  typedef float type;
};
#endif

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

template <typename T>
struct Job {
  typedef typename Activations<T>::type A;
  const mt_linear* op;
  const A* a;
  int64_t lda;
  int row_blocks, rows_per_block, units, units_per_chunk;
  // Where only the likeliest id is asked for: (chunks of units, tokens), and the ids that count.
  Best* best = nullptr;
  int sampleable = 0;

  const T* panel(int index) const {
    const char* base = static_cast<const char*>(op->weight);
    return reinterpret_cast<const T*>(base + index * panel_bytes(op->k, op->dtype));
  }

  void store(const Tile& tile, int which, int row0, int rows, int p) const {
    store_rows(tile, which, row0, 0, rows, p);
  }

  // Finishes rows first..first+rows-1 of a tile whose row 0 is row0 of the result.
  void store_rows(const Tile& tile, int which, int row0, int first, int rows, int p) const {
    const int width = op->fuse == MT_FUSE_SILU_MUL ? op->n / 2 : op->n;
    const int column0 = p * kPanel, columns = imin(kPanel, width - column0);
    const float *y = tile.v[which] + first * kPanel, *up = tile.v[1] + first * kPanel;
    row0 += first;
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
    run(row_begin, row_end, unit_begin, unit_end);
  }

  void run(int row_begin, int row_end, int unit_begin, int unit_end) const {
    Tile tile;
    const bool pair = op->fuse == MT_FUSE_SILU_MUL;
    const int rows = row_end - row_begin, tiles = ceil_div(rows, kMaxRows);
    const int k = op->dtype == MT_BF16 ? padded_k(op->k, op->dtype) : op->k;
    for (int p = unit_begin; p < unit_end; ++p) {
      for (int i = 0; i < tiles; ++i) {
        const int row = row_begin + rows * i / tiles, end = row_begin + rows * (i + 1) / tiles;
        multiply_tile(end - row, a + row * lda, lda, panel(p), k, tile.v[0]);
        if (pair) multiply_tile(end - row, a + row * lda, lda, panel(p + units), k, tile.v[1]);
        store(tile, 0, row, end - row, p);
      }
    }
  }
};

#if defined(__AMX_BF16__)

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

// A tile whose sums are there and whose rows are finished while the next one is multiplied.
struct Pending {
  enum Work { kGeneric, kWhole, kGate };
  const Job<bf16>* job;
  Tile* tile = nullptr;
  int row0 = 0, rows = 0, p = 0, done = 0;
  Work work = kGeneric;

  explicit Pending(const Job<bf16>* j) : job(j) {}

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
      job->store_rows(*tile, 0, row0, done, count, p);
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
inline void run_few(const Job<bf16>& job, int row, int rows, int unit_begin, int unit_end) {
  const mt_linear& op = *job.op;
  Tile buffers[2];
  alignas(64) char ring[2 * kRing * kStepBytes];
  Pending pending(&job);
  TileConfig config;
  const bool pair = op.fuse == MT_FUSE_SILU_MUL, two = rows > 16;
  config.set(two ? 16 : rows, two ? rows - 16 : rows);
  const int steps = padded_k(op.k, MT_BF16) / kKPad;
  const int rows_per_step = ceil_div(rows, pair && two ? 2 * steps : steps);
  const int64_t bytes = panel_bytes(op.k, MT_BF16);
  const bf16* a = job.a + row * job.lda;
  const auto meanwhile = [&] { pending.finish_some(rows_per_step); };
  for (int p = unit_begin, turn = 0; p < unit_end; ++p, turn ^= 1) {
    Tile& now = buffers[turn];
    float* out[] = {now.v[0], now.v[1]};
    const char* gate = reinterpret_cast<const char*>(job.panel(p));
    const char* up = gate + job.units * bytes;
    const char* both[] = {gate, up};
    const char* next[] = {gate + bytes, up + bytes};
    if (!two && pair) {
      amx_stream<1, 2>(a, job.lda, both, next, steps, out, ring, meanwhile);
    } else if (!two) {
      amx_stream<1, 1>(a, job.lda, both, next, steps, out, ring, meanwhile);
    } else if (!pair) {
      amx_stream<2, 1>(a, job.lda, both, next, steps, out, ring, meanwhile);
    } else {
      amx_stream<2, 1>(a, job.lda, both, both + 1, steps, out, ring, meanwhile);
      amx_stream<2, 1>(a, job.lda, both + 1, next, steps, out + 1, ring, meanwhile);
    }
    pending.finish_some(kTileRows);
    pending.set(&now, row, rows, p);
  }
  pending.finish_some(kTileRows);
}

// Steps of a panel that stay in the first cache while rows pass by.
constexpr int kNearSteps = 18;

// More rows: they pass by one panel after another, or by one piece of it where the first cache
// holds no whole panel. A gate's rows are activated while others are multiplied, as rows are
// finished.
inline void run_many(const Job<bf16>& job, int row_begin, int row_end, int unit_begin,
                     int unit_end) {
  const mt_linear& op = *job.op;
  const int tiles = ceil_div(row_end - row_begin, kTileRows);
  const int height = ceil_div(row_end - row_begin, tiles);  // of a tile; the last has what is left
  const int steps = padded_k(op.k, MT_BF16) / kKPad, pieces = ceil_div(steps, kNearSteps);
  const bool pair = op.fuse == MT_FUSE_SILU_MUL;
  const int passes = pair ? 2 * pieces : pieces, width = pair ? op.n / 2 : op.n;
  const int64_t bytes = panel_bytes(op.k, MT_BF16);
  const int lines = ceil_div(kStepBytes / 64, tiles);
  // All tiles wait for the next pass, or one to be finished while the next is multiplied.
  const int buffers = passes > 1 ? tiles : 2;
  Tile* sums = static_cast<Tile*>(scratch(kScratchB, sizeof(Tile) * size_t(buffers)));
  Pending pending(&job);
  TileConfig config;
  for (int p = unit_begin; p < unit_end; ++p) {
    const bool whole = op.bias == nullptr && op.out_dtype == MT_BF16 && (p + 1) * kPanel <= width;
    for (int pass = 0; pass < passes; ++pass) {
      const int part = pass / pieces, piece = pass % pieces;
      const int first = steps * piece / pieces, count = steps * (piece + 1) / pieces - first;
      const char* b = reinterpret_cast<const char*>(job.panel(p + part * job.units)) +
                      int64_t{first} * kStepBytes;
      // Every tile fetches its share of the same piece of the next panel.
      Ahead ahead = {b + bytes, lines};
      for (int i = 0; i < tiles; ++i) {
        const int row = row_begin + i * height, rows = imin(height, row_end - row);
        Tile& tile = sums[i % buffers];
        if (pending.tile == &tile) pending.finish_some(kTileRows);
        config.set(ceil_div(rows, 2), rows / 2);
        const int rows_per_step = ceil_div(pending.rows, count);
        const auto meanwhile = [&] {
          ahead();
          pending.finish_some(rows_per_step);
        };
        amx_two_by_one(job.a + row * job.lda + first * kKPad, job.lda, ceil_div(rows, 2), b, count,
                       piece > 0, tile.v[part], meanwhile);
        if (piece + 1 < pieces) continue;
        pending.finish_some(kTileRows);
        if (pass + 1 == passes) {
          pending.set(&tile, row, rows, p, whole ? Pending::kWhole : Pending::kGeneric);
        } else if (whole) {
          pending.set(&tile, row, rows, p, Pending::kGate);
        }
      }
    }
  }
  pending.finish_some(kTileRows);
}

template <>
inline void Job<bf16>::run(int row_begin, int row_end, int unit_begin, int unit_end) const {
  if (row_end - row_begin <= kTileRows) {
    run_few(*this, row_begin, row_end - row_begin, unit_begin, unit_end);
  } else {
    run_many(*this, row_begin, row_end, unit_begin, unit_end);
  }
}

#endif

// x as the kernel wants it: itself where the type fits and K needs no padding, else a copy.
template <typename T, typename A>
struct Copy {
  const mt_linear* op;
  A* to;
  int64_t stride;
  int rows_per_chunk;

  void operator()(int chunk) const {
    const int end = imin(op->tokens, (chunk + 1) * rows_per_chunk);
    for (int row = chunk * rows_per_chunk; row < end; ++row) {
      const T* from = static_cast<const T*>(op->x) + row * op->x_stride;
      A* out = to + row * stride;
      if (sizeof(T) == sizeof(A)) {
        memcpy(out, from, static_cast<size_t>(op->k) * sizeof(A));
      } else {
        int j = 0;
        for (; j + W <= op->k; j += W) store_as(out + j, vload(from + j));
        for (; j < op->k; ++j) narrow(widen(from[j]), out + j);
      }
      for (int j = op->k; j < stride; ++j) memset(static_cast<void*>(out + j), 0, sizeof(A));
    }
  }

  static void store_as(A* out, vf x) { vstore(out, x); }
};

// With `ids`, the likeliest of `sampleable` columns instead of op.out.
template <typename T>
void linear_as(const mt_linear& op, int sampleable = 0, int32_t* ids = nullptr) {
  typedef typename Activations<T>::type A;
  Job<T> job;
  job.op = &op;
  job.lda = op.x_stride;
  job.a = static_cast<const A*>(op.x);
  const int k = padded_k(op.k, op.dtype);
  if (sizeof(A) != sizeof(T) || k != op.k) {
    A* wide = static_cast<A*>(scratch(kScratchA, sizeof(A) * size_t(k) * size_t(op.tokens)));
    Copy<T, A> copy = {&op, wide, k, 16};
    parallel_for(ceil_div(op.tokens, 16), copy);
    job.a = wide;
    job.lda = k;
  }
  job.units = panels(op.n) / (op.fuse == MT_FUSE_SILU_MUL ? 2 : 1);
  job.row_blocks = ceil_div(op.tokens, kRowBlock);
  job.rows_per_block = ceil_div(ceil_div(op.tokens, job.row_blocks), kTileRows) * kTileRows;
  // Enough chunks that stealing evens out the end, not so many that claiming costs.
  const int wanted = threads() * 12;
  int per_chunk = imax(1, job.units * job.row_blocks / wanted);
  job.units_per_chunk = imin(per_chunk, 32);
  const int unit_chunks = ceil_div(job.units, job.units_per_chunk);
  if (ids != nullptr) {
    const size_t count = size_t(unit_chunks) * size_t(op.tokens);
    job.best = static_cast<Best*>(scratch(kScratchC, count * sizeof(Best)));
    job.sampleable = sampleable;
  }
  parallel_for(unit_chunks * job.row_blocks, job);
  for (int row = 0; ids != nullptr && row < op.tokens; ++row) ids[row] = job.likeliest(row);
}

// Copies panels of a row-major matrix into the packed layout.
struct PackJob {
  const mt_pack* op;

  void operator()(int p) const {
    char* out = static_cast<char*>(op->packed) + p * panel_bytes(op->k, op->dtype);
    const int rows = imin(kPanel, op->n - p * kPanel);
    const char* in = static_cast<const char*>(op->source) +
                     int64_t{p} * kPanel * op->source_stride * element_size(op->dtype);
    if (op->dtype == MT_BF16) {
      pairs(reinterpret_cast<const uint16_t*>(in), rows, reinterpret_cast<uint32_t*>(out));
    } else if (op->dtype == MT_F32) {
      columns(reinterpret_cast<const uint32_t*>(in), rows, reinterpret_cast<uint32_t*>(out));
    } else {
      columns(reinterpret_cast<const uint16_t*>(in), rows, reinterpret_cast<uint16_t*>(out));
    }
  }

  // Blocks of 16 pairs: 32 source rows of one cache line each, 16 whole target rows.
  void pairs(const uint16_t* in, int rows, uint32_t* out) const {
    const int total = padded_k(op->k, MT_BF16) / 2;
    for (int k0 = 0; k0 < total; k0 += 16) {
      for (int r = 0; r < kPanel; ++r) {
        uint32_t line[16] = {};
        if (r < rows) {
          const int n = imin(32, op->k - 2 * k0);
          if (n > 0) memcpy(line, in + r * op->source_stride + 2 * k0, size_t(n) * 2);
        }
        for (int i = 0; i < 16; ++i) out[(k0 + i) * kPanel + r] = line[i];
      }
    }
  }

  template <typename E>
  void columns(const E* in, int rows, E* out) const {
    for (int k0 = 0; k0 < op->k; k0 += 16) {
      const int n = imin(16, op->k - k0);
      for (int r = 0; r < kPanel; ++r) {
        for (int i = 0; i < n; ++i) {
          out[(k0 + i) * kPanel + r] = r < rows ? in[r * op->source_stride + k0 + i] : E(0);
        }
      }
    }
  }
};

template <typename E>
inline void gather(const mt_embedding& op, int token) {
  E* out = static_cast<E*>(op.out) + token * op.out_stride;
  const int row = op.ids[token] - op.first_row;
  if (row < 0 || row >= op.n) {
    memset(out, 0, size_t(op.k) * sizeof(E));
    return;
  }
  const char* base = static_cast<const char*>(op.weight) + row / kPanel * panel_bytes(op.k, op.dtype);
  if (op.dtype == MT_BF16) {
    const uint16_t* in = reinterpret_cast<const uint16_t*>(base) + row % kPanel * 2;
    for (int k = 0; k < op.k; ++k) out[k] = E(in[k / 2 * 2 * kPanel + k % 2]);
  } else {
    const E* in = reinterpret_cast<const E*>(base) + row % kPanel;
    for (int k = 0; k < op.k; ++k) out[k] = in[k * kPanel];
  }
}

}  // namespace

void pack(const mt_pack& op) {
  PackJob job = {&op};
  parallel_for(panels(op.n), job);
}

void linear(const mt_linear& op) {
  if (op.tokens == 0) return;
  if (op.dtype == MT_BF16) {
    linear_as<bf16>(op);
  } else if (op.dtype == MT_F32) {
    linear_as<float>(op);
  } else {
    linear_as<f16>(op);
  }
}

void likeliest(const mt_linear& op, int sampleable, int32_t* ids) {
  if (op.tokens == 0) return;
  if (op.dtype == MT_BF16) {
    linear_as<bf16>(op, sampleable, ids);
  } else if (op.dtype == MT_F32) {
    linear_as<float>(op, sampleable, ids);
  } else {
    linear_as<f16>(op, sampleable, ids);
  }
}

void embedding(const mt_embedding& op) {
  const int per_chunk = 8;
  auto job = [&](int chunk) {
    const int end = imin(op.tokens, (chunk + 1) * per_chunk);
    for (int t = chunk * per_chunk; t < end; ++t) {
      if (op.dtype == MT_F32) {
        gather<uint32_t>(op, t);
      } else {
        gather<uint16_t>(op, t);
      }
    }
  };
  parallel_for(ceil_div(op.tokens, per_chunk), job);
}

}  // namespace MT_ISA
}  // namespace mt
