// Attention on AMX, bf16, for more query rows than few: the rows of a prompt, 32 at a time.
//
// Keys are transposed and values interleaved into matrix tiles once for all rows of an item, some
// tiles of keys at a time, which the second cache holds. S = Q K^T and P V are tile products of 32
// rows, in turn with the vectors' work: side by side they would use the same ports and gain nothing.
// P takes the place of S row by row.

#ifndef MTACTORS_KERNELS_CPU_ATTENTION_MANY_H
#define MTACTORS_KERNELS_CPU_ATTENTION_MANY_H

#include "attention_amx.h"

namespace mt {
namespace MT_ISA {
namespace {

// Rows that pass by a tile of keys together: two matrix tiles.
constexpr int kUnit = 32;
// The more rows, the less each takes part in reading and transposing keys.
constexpr int kMostRows = 384;
// Bytes of transposed keys at a time, and as many of values: a small part of the second cache.
constexpr int kHeldBytes = 32 << 10;

// Rows of an item: many, but each thread should have some items.
inline int many_rows(const mt_attention& op) {
  const int64_t rows = int64_t{op.query_start[op.sequences] - op.query_start[0]} * op.q_heads;
  const int64_t share = rows / (6 * threads());
  return share >= kMostRows ? kMostRows : static_cast<int>(share) / kUnit * kUnit + kUnit;
}

struct AmxManyRows : AmxTiles {
  int units, tiles;             // of 32 rows; of keys that are ready at a time
  bf16* queries;                // [row][depth]
  uint32_t *keys, *values;      // [tile][16 keys][chunk][pair][key], [tile][32 keys][pair][depth]
  float *scores, *out, *sums;   // [row of the unit][key], [row][depth], [row][16]
  float *most, *slopes;         // [row]
  int32_t *positions, *lowest;  // [row]

  explicit AmxManyRows(const View& v) : AmxTiles(v) {
    units = ceil_div(view.item.rows, kUnit);
    tiles = imin(imax(1, kHeldBytes / (kKeys * depth * 2)), view.item.tiles);
    const size_t rows = size_t(units) * kUnit, d = size_t(depth), k = size_t(tiles) * kKeys;
    const size_t bytes[] = {rows * d * 2, k * d * 2, k * d * 2, size_t{kUnit} * kKeys * 4,
                            rows * d * 4, rows * 64, rows * 4, rows * 4, rows * 4, rows * 4};
    size_t total = 0;
    for (size_t n : bytes) total += n;
    char* memory = static_cast<char*>(scratch(kScratchB, total));
    void* parts[10];
    for (int i = 0; i < 10; ++i) {
      parts[i] = memory;
      memory += bytes[i];
    }
    queries = static_cast<bf16*>(parts[0]);
    keys = static_cast<uint32_t*>(parts[1]);
    values = static_cast<uint32_t*>(parts[2]);
    scores = static_cast<float*>(parts[3]);
    out = static_cast<float*>(parts[4]);
    sums = static_cast<float*>(parts[5]);
    most = static_cast<float*>(parts[6]);
    slopes = static_cast<float*>(parts[7]);
    positions = static_cast<int32_t*>(parts[8]);
    lowest = static_cast<int32_t*>(parts[9]);
  }

  void run(Fetch& fetch) {
    load_queries();
    const int end = view.keys_end(), ready = tiles * kKeys;
    for (int at = view.begin_tile(); at < end; at += ready) {
      fetch.begin(at, ready);
      const int stop = imin(end, at + ready);
      for (int tile = at; tile < stop; tile += kKeys) {
        const int i = (tile - at) / kKeys * kKeys * depth / 2;
        load_keys(tile, imin(kKeys, end - tile), keys + i);
        load_values(tile, imin(kKeys, end - tile), values + i, [](int) {});
      }
      const int steps = ceil_div(ready, units * tiles);
      for (int u = 0; u < units; ++u) attend(u, at, stop, steps, fetch);
    }
    each_row([&](int r, int token, int head) {
      store_row(token, head, out + r * depth, sum_of(r));
    });
  }

  // Tiles of keys in at..stop-1 for the rows of a unit.
  void attend(int u, int at, int stop, int steps, Fetch& fetch) {
    const int row = u * kUnit, rows = imin(kUnit, view.item.rows - row);
    const int end = imin(stop, positions[row + rows - 1] + 1);
    for (int tile = imax(at, view.begin_tile(row)); tile < end; tile += kKeys) {
      const int count = ceil_div(imin(kKeys, end - tile), 32) * 32;
      const int i = (tile - at) / kKeys * kKeys * depth / 2;
      fetch(steps);
      if (rows > 16) {
        multiply_keys<true>(row, keys + i, count);
      } else {
        multiply_keys<false>(row, keys + i, count);
      }
      for (int first = 0; first < rows; first += 16) {
        softmax(row + first, imin(16, rows - first), scores + first * kKeys, tile, count);
      }
      if (rows > 16) {
        multiply_values<true>(row, values + i, count);
      } else {
        multiply_values<false>(row, values + i, count);
      }
    }
  }

  // Calls f(r, token, head) for each row: dividing would take longer than what f does.
  template <typename F>
  MT_INLINE void each_row(F f) const {
    int token = view.token(0), head = view.head(0);
    const int end = (view.item.kv_head + 1) * view.group;
    for (int r = 0; r < view.item.rows; ++r) {
      f(r, token, head);
      if (++head < end) continue;
      head -= view.group;
      ++token;
    }
  }

  void load_queries() {
    const int rows = view.item.rows, all = units * kUnit;
    memset(static_cast<void*>(out), 0, size_t(all) * size_t(depth) * 4);
    memset(static_cast<void*>(sums), 0, size_t(all) * 64);
    memset(static_cast<void*>(queries + rows * depth), 0, size_t(all - rows) * size_t(depth) * 2);
    const int shift = view.first_position - view.first_token;
    each_row([&](int r, int token, int head) {
      positions[r] = token + shift;
      lowest[r] = op.window > 0 ? imax(0, token + shift - op.window + 1) : 0;
      slopes[r] = op.alibi_slopes != nullptr ? op.alibi_slopes[head] * kLog2e : 0.0f;
      most[r] = kNothing;
      const bf16* q = static_cast<const bf16*>(op.q) + token * op.q_token + head * op.q_head;
      for (int d = 0; d < depth; d += 32) {
        _mm512_store_si512(queries + r * depth + d, load_row(q + d, op.head_dim - d));
      }
    });
  }

  // Keys at or past `valid` are zeros up to a multiple of 32.
  void load_keys(int tile, int valid, uint32_t* to) const {
    const bf16* cache = static_cast<const bf16*>(op.k_cache);
    const int64_t stride = view.key_stride();
    for (int j = 0; j < ceil_div(valid, 32) * 32; j += 16) {
      const bf16* k = j < valid ? cache + view.offset(tile + j) : nullptr;
      for (int d = 0; d < depth; d += 32, to += kTile) {
        __m512i block[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          block[i] = j + i < valid ? load_row(k + i * stride + d, op.head_dim - d)
                                   : _mm512_setzero_si512();
        }
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * 16, block[i]);
      }
    }
  }

  // Scores of a unit, of more than 16 rows if `Both`, with `count` keys.
  template <bool Both>
  void multiply_keys(int row, const uint32_t* k, int count) {
    stored_before_tiles();
    const bf16* q = queries + row * depth;
    const int64_t stride = int64_t{depth} * 2;
    for (int j = 0; j < count; j += 32, k += 2 * chunks * kTile) {
      _tile_zero(0);
      _tile_zero(1);
      if (Both) _tile_zero(2);
      if (Both) _tile_zero(3);
      for (int c = 0; c < chunks; ++c) {
        _tile_loadd(6, k + c * kTile, 64);
        _tile_loadd(4, q + c * 32, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, k + (chunks + c) * kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (!Both) continue;
        _tile_loadd(5, q + 16 * depth + c * 32, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, scores + j, kKeys * 4);
      _tile_stored(1, scores + j + 16, kKeys * 4);
      if (!Both) continue;
      _tile_stored(2, scores + 16 * kKeys + j, kKeys * 4);
      _tile_stored(3, scores + 16 * kKeys + j + 16, kKeys * 4);
    }
    stored_before_tiles();
  }

  // S becomes P in 16 rows or fewer from `row`, whose scores `s` points to.
  void softmax(int row, int rows, float* s, int tile, int count) {
    if (op.alibi_slopes != nullptr || tile + count - 1 > positions[row] ||
        tile < lowest[row + rows - 1]) {
      for (int r = 0; r < rows; ++r) mask(row + r, s + r * kKeys, tile, count);
    }
    if (count == 32) {
      softmax_of<2>(row, rows, s);
    } else {
      softmax_of<4>(row, rows, s);
    }
  }

  void mask(int r, float* s, int tile, int count) const {
    const __m512i position = _mm512_set1_epi32(positions[r]), low = _mm512_set1_epi32(lowest[r]);
    const __m512 m = _mm512_set1_ps(slopes[r]);
    const __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // Blocks of 16 keys that the row sees wholly stay as they are.
    const bool all = op.alibi_slopes != nullptr || lowest[r] > tile;
    for (int j = all ? 0 : imax(0, positions[r] + 1 - tile) / 16 * 16; j < count; j += 16) {
      const __m512i key = _mm512_add_epi32(_mm512_set1_epi32(tile + j), lanes);
      _mm512_store_ps(s + j, masked(_mm512_load_ps(s + j), key, position, low, m));
    }
  }

  // `N` blocks of 16 keys.
  template <int N>
  void softmax_of(int row, int rows, float* s) {
    const __m512 scales = _mm512_set1_ps(scale()), limit = _mm512_set1_ps(kLimit);
    for (int r = row; r < row + rows; ++r, s += kKeys) {
      if (most[r] == kNothing) raise(r, s, N * 16);
      __m512 p[N];
      __m512 total = weigh<N>(s, scales, _mm512_set1_ps(most[r]), p);
      if (_mm512_cmp_ps_mask(total, limit, _CMP_NLE_UQ) != 0) {
        raise(r, s, N * 16);
        total = weigh<N>(s, scales, _mm512_set1_ps(most[r]), p);
      }
#pragma GCC unroll 4
      for (int j = 0; j < N; j += 2) {
        const __m512bh pairs = _mm512_cvtne2ps_pbh(p[j + 1], p[j]);
        _mm512_store_si512(s + j * 8, reinterpret_cast<__m512i>(pairs));
      }
      _mm512_store_ps(sums + r * 16, _mm512_add_ps(_mm512_load_ps(sums + r * 16), total));
    }
  }

  // P of a row, and its sums.
  template <int N>
  MT_INLINE static __m512 weigh(const float* s, __m512 scales, __m512 m, __m512* p) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int j = 0; j < N; j += 2) {
      p[j] = vexp2(_mm512_fmsub_ps(_mm512_load_ps(s + j * 16), scales, m));
      p[j + 1] = vexp2(_mm512_fmsub_ps(_mm512_load_ps(s + j * 16 + 16), scales, m));
      even = _mm512_add_ps(even, p[j]);
      odd = _mm512_add_ps(odd, p[j + 1]);
    }
    return _mm512_add_ps(even, odd);
  }

  // Makes m of a row the greatest score so far, with what was added up before.
  __attribute__((noinline)) void raise(int r, const float* s, int count) {
    __m512 greatest = _mm512_load_ps(s);
    for (int j = 16; j < count; j += 16) greatest = _mm512_max_ps(greatest, _mm512_load_ps(s + j));
    const __m512 m = _mm512_set1_ps(most[r]);
    const __m512 scaled = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(greatest)),
                                        _mm512_set1_ps(scale()));
    const __m512 now = _mm512_max_ps(m, scaled);
    const __m512 factor = vexp2(_mm512_sub_ps(m, now));
    most[r] = _mm512_cvtss_f32(now);
    _mm512_store_ps(sums + r * 16, _mm512_mul_ps(_mm512_load_ps(sums + r * 16), factor));
    if (_mm512_cvtss_f32(m) == kNothing) return;
    float* o = out + r * depth;
    for (int d = 0; d < depth; d += 16) {
      _mm512_store_ps(o + d, _mm512_mul_ps(_mm512_load_ps(o + d), factor));
    }
  }

  // The 16 sums of a row as a tree.
  float sum_of(int r) const {
    __m512 x = _mm512_load_ps(sums + r * 16);
    x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e));
    x = _mm512_add_ps(x, _mm512_permute_ps(x, 0xb1));
    return _mm512_cvtss_f32(x);
  }

  // out += P V of a unit.
  template <bool Both>
  void multiply_values(int row, const uint32_t* v, int count) {
    stored_before_tiles();
    const int64_t stride = int64_t{depth} * 4, p_stride = kKeys * 4;
    float* o = out + row * depth;
    float* o1 = o + 16 * depth;
    for (int d = 0; d < depth; d += 32) {
      _tile_loadd(0, o + d, stride);
      _tile_loadd(1, o + d + 16, stride);
      if (Both) _tile_loadd(2, o1 + d, stride);
      if (Both) _tile_loadd(3, o1 + d + 16, stride);
      for (int j = 0; j < count; j += 32) {
        const uint32_t* from = v + j / 2 * depth + d * 16;
        _tile_loadd(4, scores + j / 2, p_stride);
        _tile_loadd(6, from, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, from + kTile, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (!Both) continue;
        _tile_loadd(5, scores + 16 * kKeys + j / 2, p_stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, o + d, stride);
      _tile_stored(1, o + d + 16, stride);
      if (Both) _tile_stored(2, o1 + d, stride);
      if (Both) _tile_stored(3, o1 + d + 16, stride);
    }
    stored_before_tiles();
  }
};

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
