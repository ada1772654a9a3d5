// Attention on AMX, bf16, for at most 4 query rows, as in decode: 4 keys x 4 rows in a vector.
//
// The same operations on each row as in attention_many.h, hence the same bits; there a vector holds
// 16 keys of a row, and keys are transposed for it, which pays with many rows alone.

#ifndef MTACTORS_KERNELS_CPU_ATTENTION_FEW_H
#define MTACTORS_KERNELS_CPU_ATTENTION_FEW_H

#include "attention_amx.h"

namespace mt {
namespace MT_ISA {
namespace {

constexpr int kFew = 4;

// Tiles of S^T = K Q^T: 0 (16 x 4), 4 (K), 6 (4 columns); of P V: 1, 2 (4 x 16), 5 (P), 7 (V).
class FewConfig {
 public:
  FewConfig() {
    TileShapes shapes;
    shapes.bytes[0] = shapes.bytes[6] = kFew * 4;
    shapes.rows[1] = shapes.rows[2] = shapes.rows[5] = kFew;
    shapes.load();
  }
  ~FewConfig() { _tile_release(); }
};

// Transposes 4 vectors of 4 quarters.
MT_INLINE void transpose_quarters(__m512i* r) {
  const __m512i a = _mm512_shuffle_i32x4(r[0], r[1], 0x88);
  const __m512i b = _mm512_shuffle_i32x4(r[0], r[1], 0xdd);
  const __m512i c = _mm512_shuffle_i32x4(r[2], r[3], 0x88);
  const __m512i d = _mm512_shuffle_i32x4(r[2], r[3], 0xdd);
  r[0] = _mm512_shuffle_i32x4(a, c, 0x88);
  r[1] = _mm512_shuffle_i32x4(b, d, 0x88);
  r[2] = _mm512_shuffle_i32x4(a, c, 0xdd);
  r[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

struct AmxFewRows : AmxTiles {
  float *scores, *out;  // [key][row], [row][depth]
  uint32_t *queries, *weights, *values;
  bf16* keys;
  // Per row, the same in each quarter.
  __m512i position, lowest;
  __m512 slopes, most;
  __m512 sums[4];  // lane 4 i + r of vector j: row r, keys that are 4 j + i modulo 16
  int least_position, greatest_lowest;

  explicit AmxFewRows(const View& v) : AmxTiles(v) {
    const size_t d = size_t(depth);
    const size_t bytes[] = {kKeys * d * 2, 16 * d * 2, kKeys * kFew * 4, kKeys * kFew * 2,
                            kFew * d * 4, kFew * d * 2};
    size_t total = 0;
    for (size_t n : bytes) total += n;
    char* memory = static_cast<char*>(scratch(kScratchB, total));
    void* parts[6];
    for (int i = 0; i < 6; ++i) {
      parts[i] = memory;
      memory += bytes[i];
    }
    values = static_cast<uint32_t*>(parts[0]);
    keys = static_cast<bf16*>(parts[1]);
    scores = static_cast<float*>(parts[2]);
    weights = static_cast<uint32_t*>(parts[3]);
    out = static_cast<float*>(parts[4]);
    queries = static_cast<uint32_t*>(parts[5]);
  }

  void run(Fetch& fetch) {
    load_queries();
    memset(out, 0, sizeof(float) * kFew * size_t(depth));
    const int end = view.keys_end();
    for (int tile = view.begin_tile(); tile < end; tile += kKeys) {
      const int valid = imin(kKeys, end - tile);
      fetch.begin(tile, kKeys);
      multiply_keys(tile, valid, fetch);
      softmax(tile, valid, fetch);
      load_values(tile, valid, values, [&](int pair) { fetch(pair % 2); });
      multiply_values(valid, fetch);
    }
    alignas(64) float sum[16];
    _mm512_store_ps(sum, add_quarters(_mm512_add_ps(_mm512_add_ps(sums[0], sums[2]),
                                                    _mm512_add_ps(sums[1], sums[3]))));
    for (int r = 0; r < view.item.rows; ++r) {
      store_row(view.token(r), view.head(r), out + r * depth, sum[r]);
    }
  }

  // Q^T as pairs: [chunk][pair][row].
  void load_queries() {
    const int rows = view.item.rows;
    alignas(64) int32_t positions[16], lows[16];
    alignas(64) float slope_of[16], most_of[16];
    for (int i = 0; i < 16; ++i) {
      const int r = i % kFew;
      positions[i] = r < rows ? view.position(r) : -1;
      lows[i] = r < rows ? view.lowest(r) : 0;
      slope_of[i] = r < rows && op.alibi_slopes != nullptr ? view.slope(r) * kLog2e : 0.0f;
      most_of[i] = r < rows ? kNothing : 0.0f;
    }
    position = _mm512_load_si512(positions);
    lowest = _mm512_load_si512(lows);
    slopes = _mm512_load_ps(slope_of);
    most = _mm512_load_ps(most_of);
    for (__m512& sum : sums) sum = _mm512_setzero_ps();
    least_position = view.position(0);
    greatest_lowest = view.lowest(rows - 1);
    const bf16* q[kFew];
    for (int r = 0; r < rows; ++r) {
      q[r] = static_cast<const bf16*>(op.q) + view.token(r) * op.q_token +
             view.head(r) * op.q_head;
    }
    for (int c = 0; c < chunks; ++c) {
      __m512i a[kFew], b[kFew];
      for (int r = 0; r < kFew; ++r) {
        a[r] = r < rows ? load_row(q[r] + c * 32, op.head_dim - c * 32) : _mm512_setzero_si512();
      }
      for (int i = 0; i < kFew; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
      }
      a[0] = _mm512_unpacklo_epi64(b[0], b[2]);
      a[1] = _mm512_unpackhi_epi64(b[0], b[2]);
      a[2] = _mm512_unpacklo_epi64(b[1], b[3]);
      a[3] = _mm512_unpackhi_epi64(b[1], b[3]);
      transpose_quarters(a);
      for (int i = 0; i < 4; ++i) _mm512_storeu_si512(queries + (c * 4 + i) * 16, a[i]);
    }
  }

  // 16 rows of K, padded to `depth` in a copy if need be.
  const bf16* key_block(int at, int64_t* stride) {
    const bf16* k = static_cast<const bf16*>(op.k_cache) + view.offset(at);
    *stride = view.key_stride();
    if (op.head_dim == depth) return k;
    for (int i = 0; i < 16; ++i) {
      for (int d = 0; d < depth; d += 32) {
        _mm512_store_si512(keys + i * depth + d, load_row(k + i * *stride + d, op.head_dim - d));
      }
    }
    *stride = depth;
    stored_before_tiles();
    return keys;
  }

  MT_INLINE void multiply_keys(int tile, int valid, Fetch& fetch) {
    stored_before_tiles();
    for (int block = 0; block * 16 < valid; ++block) {
      int64_t stride;
      const bf16* k = key_block(tile + block * 16, &stride);
      _tile_zero(0);
      for (int c = 0; c < chunks; ++c) {
        _tile_loadd(4, k + c * 32, stride * 2);
        _tile_loadd(6, queries + c * 16 * kFew, kFew * 4);
        _tile_dpbf16ps(0, 4, 6);
      }
      fetch(4);
      _tile_stored(0, scores + block * 16 * kFew, kFew * 4);
    }
    stored_before_tiles();
  }

  MT_INLINE static __m512 greatest_quarter(__m512 x) {
    x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    return _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  }
  MT_INLINE static __m512 add_quarters(__m512 x) {
    x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    return _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  }

  MT_INLINE void softmax(int tile, int valid, Fetch& fetch) {
    const int count = ceil_div(valid, 16) * 16;
    if (op.alibi_slopes != nullptr || tile + count - 1 > least_position ||
        tile < greatest_lowest) {
      mask(tile, count);
    }
    __mmask16 rows = _mm512_cmp_ps_mask(most, _mm512_set1_ps(kNothing), _CMP_EQ_OQ);
    __m512 added[4];
    for (bool again = false;; again = true) {
      if (rows != 0) raise(rows, count);
      rows = weigh(count, added, fetch);
      if (rows == 0 || again) break;
    }
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_add_ps(sums[i], added[i]);
  }

  // P of the tile and its sums. Returns the rows, in each quarter, of which one passes the limit.
  MT_INLINE __mmask16 weigh(int count, __m512* total, Fetch& fetch) {
    const __m512 scales = _mm512_set1_ps(scale());
    // Eight keys of 4 rows each become 4 rows of eight keys.
    const __m512i by_row = _mm512_set_epi16(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10,
                                            6, 2, 29, 25, 21, 17, 13, 9, 5, 1, 28, 24, 20, 16, 12,
                                            8, 4, 0);
    __m512 added[8];  // four of even blocks of 16 keys, four of odd ones
    for (__m512& sum : added) sum = _mm512_setzero_ps();
    for (int half = 0; half * 32 < count; ++half) {
      const float* s = scores + half * 32 * kFew;
      const int used = imin(4, (count - half * 32) / 8);
      __m512i p[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if (i >= used) {
          p[i] = _mm512_setzero_si512();
          continue;
        }
        fetch(2);
        const __m512 p0 = vexp2(_mm512_fmsub_ps(_mm512_load_ps(s + i * 32), scales, most));
        const __m512 p1 = vexp2(_mm512_fmsub_ps(_mm512_load_ps(s + i * 32 + 16), scales, most));
        added[2 * i] = _mm512_add_ps(added[2 * i], p0);
        added[2 * i + 1] = _mm512_add_ps(added[2 * i + 1], p1);
        p[i] = _mm512_permutexvar_epi16(by_row,
                                        reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p1, p0)));
      }
      transpose_quarters(p);
      uint32_t* to = weights + half * kFew * 16;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) _mm512_store_si512(to + i * 16, p[i]);
    }
    unsigned over = 0;
    for (int i = 0; i < 4; ++i) {
      total[i] = _mm512_add_ps(added[i], added[i + 4]);
      over |= _mm512_cmp_ps_mask(total[i], _mm512_set1_ps(kLimit), _CMP_NLE_UQ);
    }
    over |= over >> 8;
    over = (over | over >> 4) & 15u;
    return static_cast<__mmask16>(over * 0x1111u);
  }

  // Makes m of some rows the greatest score so far, with what was added up before.
  __attribute__((noinline)) void raise(__mmask16 rows, int count) {
    __m512 greatest[4];
    for (int i = 0; i < 4; ++i) greatest[i] = _mm512_load_ps(scores + i * 16);
    for (int j = 16; j < count; j += 16) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        greatest[i] = _mm512_max_ps(greatest[i], _mm512_load_ps(scores + j * kFew + i * 16));
      }
    }
    greatest[0] = greatest_quarter(_mm512_max_ps(_mm512_max_ps(greatest[0], greatest[1]),
                                                 _mm512_max_ps(greatest[2], greatest[3])));
    const __m512 scaled = _mm512_mul_ps(greatest[0], _mm512_set1_ps(scale()));
    const __m512 now = _mm512_mask_max_ps(most, rows, most, scaled);
    const __m512 factor = vexp2(_mm512_sub_ps(most, now));
    most = now;
    for (__m512& sum : sums) sum = _mm512_mul_ps(sum, factor);
    alignas(64) float factors[16];
    _mm512_store_ps(factors, factor);
    for (int r = 0; r < view.item.rows; ++r) {
      if ((rows >> r & 1) == 0) continue;
      float* row = out + r * depth;
      const __m512 f = _mm512_set1_ps(factors[r]);
      for (int d = 0; d < depth; d += 16) {
        _mm512_store_ps(row + d, _mm512_mul_ps(_mm512_load_ps(row + d), f));
      }
    }
  }

  void mask(int tile, int count) {
    const __m512i quarter = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (int j = 0; j < count; j += 4) {
      const __m512i key = _mm512_add_epi32(_mm512_set1_epi32(tile + j), quarter);
      float* at = scores + j * kFew;
      _mm512_storeu_ps(at, masked(_mm512_loadu_ps(at), key, position, lowest, slopes));
    }
  }

  MT_INLINE void multiply_values(int valid, Fetch& fetch) {
    stored_before_tiles();
    const int64_t stride = int64_t{depth} * 4;
    for (int d = 0; d < depth; d += 32) {
      _tile_loadd(1, out + d, stride);
      _tile_loadd(2, out + d + 16, stride);
      for (int half = 0; half * 32 < valid; ++half) {
        const uint32_t* v = values + half * 16 * depth + d * 16;
        _tile_loadd(5, weights + half * kFew * 16, 64);
        _tile_loadd(7, v, 64);
        _tile_dpbf16ps(1, 5, 7);
        _tile_loadd(7, v + kTile, 64);
        _tile_dpbf16ps(2, 5, 7);
        fetch(4);
      }
      _tile_stored(1, out + d, stride);
      _tile_stored(2, out + d + 16, stride);
    }
    stored_before_tiles();
  }
};

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
