// Attention on AMX, bf16: both products are tile products, 16 query rows side by side in the lanes.
//
// S^T (keys x rows) = K Q^T takes K as it lies in the cache. P is rounded to bf16 (the sums l add P
// before that rounding), transposed, and multiplied with V, whose rows are interleaved two by two
// into a copy. The interleaving permutes the head dimension within blocks of 32; store undoes it.
// Within a tile, p is added up in eight sums by key modulo 8, ascending, then t[i] = sum[i] +
// sum[i + 4] and (t[0] + t[1]) + (t[2] + t[3]): an order that attention_few.h has as well.

#ifndef MTACTORS_KERNELS_CPU_ATTENTION_AMX_H
#define MTACTORS_KERNELS_CPU_ATTENTION_AMX_H

#include "amx.h"
#include "attention.h"
#include "pool.h"

namespace mt {
namespace MT_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kGroups = kItemRows / kLanes;
constexpr float kLog2e = 1.44269504f;

// What both kinds of items do alike.
struct AmxTiles {
  const View& view;
  const mt_attention& op;
  int depth;   // head_dim padded to 32
  int chunks;  // depth / 32
  uint32_t* values;
  bf16* keys;

  explicit AmxTiles(const View& v)
      : view(v), op(*v.op), depth(ceil_div(op.head_dim, 32) * 32), chunks(depth / 32) {}

  // Scratch for values, keys and `bytes` more, whose start is returned.
  char* allocate(size_t bytes) {
    const size_t d = static_cast<size_t>(depth);
    char* memory = static_cast<char*>(scratch(kScratchB, kKeys * d * 2 + 16 * d * 2 + bytes));
    values = reinterpret_cast<uint32_t*>(memory);
    keys = reinterpret_cast<bf16*>(memory + kKeys * d * 2);
    return memory + (kKeys + 16) * d * 2;
  }

  // 16 rows of K, padded to `depth` in a copy if need be.
  const bf16* key_block(int position, int64_t* stride) {
    const bf16* k = static_cast<const bf16*>(op.k_cache) + view.offset(position);
    *stride = view.key_stride();
    if (op.head_dim == depth) return k;
    for (int i = 0; i < 16; ++i) {
      memcpy(keys + i * depth, k + i * *stride, size_t(op.head_dim) * 2);
      memset(static_cast<void*>(keys + i * depth + op.head_dim), 0,
             size_t(depth - op.head_dim) * 2);
    }
    *stride = depth;
    stored_before_tiles();
    return keys;
  }

  MT_INLINE static __m512i load_row(const bf16* v, int n) {
    if (n >= 32) return _mm512_loadu_si512(v);
    return _mm512_maskz_loadu_epi16(n <= 0 ? 0u : (1u << n) - 1u, v);
  }

  // Pairs of keys, [pair][depth], permuted within 32; keys at or past `valid` are zeros. A step of
  // `fetch` every so many pairs.
  void load_values(int tile, int valid, Fetch& fetch, int every = 1) {
    const bf16* cache = static_cast<const bf16*>(op.v_cache);
    const int64_t stride = view.key_stride();
    const int pairs = ceil_div(valid, 32) * 16;
    const bf16* v = nullptr;
    for (int i = 0; i < pairs; ++i) {
      uint32_t* to = values + i * depth;
      if (i % every == 0) fetch(1);
      if (2 * i >= valid) {
        memset(to, 0, size_t(depth) * 4);
        continue;
      }
      if (i % 8 == 0) v = cache + view.offset(tile + 2 * i);
      const bf16* even = v + (2 * i % 16) * stride;
      const bool both = 2 * i + 1 < valid;
      for (int d = 0; d < depth; d += 32) {
        const int n = op.head_dim - d;
        const __m512i a = load_row(even + d, n);
        const __m512i b = both ? load_row(even + stride + d, n) : _mm512_setzero_si512();
        _mm512_storeu_si512(to + d, _mm512_unpacklo_epi16(a, b));
        _mm512_storeu_si512(to + d + 16, _mm512_unpackhi_epi16(a, b));
      }
    }
  }

  // 16 scores, each of a key and a row that may lie anywhere in the vector: a masked one becomes
  // kMasked, and ALiBi is added to the others.
  MT_INLINE __m512 masked(__m512 x, __m512i key, __m512i position, __m512i lowest,
                          __m512 slope) const {
    const __mmask16 seen =
        _mm512_cmple_epi32_mask(key, position) & _mm512_cmpge_epi32_mask(key, lowest);
    if (op.alibi_slopes != nullptr) {
      const __m512 distance = _mm512_cvtepi32_ps(_mm512_sub_epi32(key, position));
      const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(op.scale * kLog2e));
      x = _mm512_fmadd_ps(slope, distance, scaled);
    }
    return _mm512_mask_mov_ps(_mm512_set1_ps(kMasked), seen, x);
  }

  // out = row / sum; `row` as multiply_values leaves it.
  void store_row(int r, const float* row, float sum) const {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high =
        _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const __m512 l = _mm512_set1_ps(1.0f / sum);
    bf16* to = static_cast<bf16*>(op.out) + view.token(r) * op.out_token +
               view.head(r) * op.head_dim;
    for (int d = 0; d < depth; d += 32) {
      const __m512 a = _mm512_loadu_ps(row + d), b = _mm512_loadu_ps(row + d + 16);
      const __m512 x = _mm512_mul_ps(_mm512_permutex2var_ps(a, low, b), l);
      const __m512 y = _mm512_mul_ps(_mm512_permutex2var_ps(a, high, b), l);
      const int n = op.head_dim - d;
      vstoren(to + d, x, imin(16, n));
      if (n > 16) vstoren(to + d + 16, y, imin(16, n - 16));
    }
  }
};

struct AmxAttention : AmxTiles {
  int groups;  // of 16 rows
  float *scores, *out;
  uint32_t *queries, *weights;
  alignas(64) int32_t position[kGroups][kLanes], lowest[kGroups][kLanes];
  alignas(64) float slope[kGroups][kLanes], most[kGroups][kLanes], sum[kGroups][kLanes],
      rescale[kGroups][kLanes];
  int least_position, greatest_lowest;

  explicit AmxAttention(const View& v) : AmxTiles(v) {
    groups = ceil_div(view.item.rows, kLanes);
    const size_t d = static_cast<size_t>(depth);
    char* memory = allocate(kItemRows * d * 6 + kGroups * kKeys * kLanes * 6);
    scores = reinterpret_cast<float*>(memory);
    memory += kGroups * kKeys * kLanes * 4;
    weights = reinterpret_cast<uint32_t*>(memory);
    memory += kGroups * kKeys * kLanes * 2;
    out = reinterpret_cast<float*>(memory);
    memory += kItemRows * d * 4;
    queries = reinterpret_cast<uint32_t*>(memory);
  }

  void run(Fetch& fetch) {
    load_queries();
    memset(out, 0, sizeof(float) * size_t(groups) * kLanes * size_t(depth));
    const int end = view.keys_end(), begin = view.lowest(0) / kKeys * kKeys;
    for (int tile = begin; tile < end; tile += kKeys) {
      const int valid = imin(kKeys, end - tile);
      fetch.begin(tile);
      multiply_keys(tile, valid, fetch);
      for (int g = 0; g < groups; ++g) softmax(g, tile, valid);
      load_values(tile, valid, fetch);
      multiply_values(valid);
    }
    for (int r = 0; r < view.item.rows; ++r) {
      store_row(r, out + r * depth, sum[r / kLanes][r % kLanes]);
    }
  }

  // Q^T as pairs: [group][chunk][pair][lane].
  void load_queries() {
    least_position = view.position(0);
    greatest_lowest = view.lowest(view.item.rows - 1);
    for (int r = 0; r < groups * kLanes; ++r) {
      const int g = r / kLanes, lane = r % kLanes;
      const bool used = r < view.item.rows;
      position[g][lane] = used ? view.position(r) : -1;
      lowest[g][lane] = used ? view.lowest(r) : 0;
      slope[g][lane] = used && op.alibi_slopes != nullptr ? view.slope(r) * kLog2e : 0.0f;
      most[g][lane] = kNothing;
      sum[g][lane] = 0.0f;
    }
    for (int g = 0; g < groups; ++g) {
      const int rows = imin(kLanes, view.item.rows - g * kLanes);
      for (int c = 0; c < chunks; ++c) {
        __m512i block[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          const int r = g * kLanes + imin(lane, rows - 1);
          const bf16* q = static_cast<const bf16*>(op.q) + view.token(r) * op.q_token +
                          view.head(r) * op.q_head;
          block[lane] = lane < rows ? load_row(q + c * 32, op.head_dim - c * 32)
                                    : _mm512_setzero_si512();
        }
        transpose(block);
        uint32_t* to = queries + (g * chunks + c) * 16 * kLanes;
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kLanes, block[i]);
      }
    }
  }

  void multiply_keys(int tile, int valid, Fetch& fetch) {
    stored_before_tiles();
    for (int block = 0; block * 16 < valid; ++block) {
      int64_t stride;
      const bf16* k = key_block(tile + block * 16, &stride);
      _tile_zero(0);
      _tile_zero(1);
      for (int c = 0; c < chunks; ++c) {
        _tile_loadd(4, k + c * 32, stride * 2);
        _tile_loadd(6, queries + c * 16 * kLanes, kLanes * 4);
        _tile_dpbf16ps(0, 4, 6);
        if (groups == 2) {
          _tile_loadd(7, queries + kLanes * depth / 2 + c * 16 * kLanes, kLanes * 4);
          _tile_dpbf16ps(1, 4, 7);
        }
      }
      fetch(8);
      _tile_stored(0, scores + block * 16 * kLanes, kLanes * 4);
      if (groups == 2) {
        _tile_stored(1, scores + kKeys * kLanes + block * 16 * kLanes, kLanes * 4);
      }
    }
  }

  // Scores are in units of log 2: p = 2^(s c - m) with c = scale * log2(e), one rounding. With
  // ALiBi s already holds the whole score and c is 1.
  void softmax(int g, int tile, int valid) {
    float* s = scores + g * kKeys * kLanes;
    const int count = ceil_div(valid, 16) * 16;
    const bool alibi = op.alibi_slopes != nullptr;
    if (alibi || tile + count - 1 > least_position || tile < greatest_lowest) {
      mask(s, g, tile, count);
    }
    const __m512 scale = _mm512_set1_ps(alibi ? 1.0f : op.scale * kLog2e);
    __m512 greatest[4];
    for (int i = 0; i < 4; ++i) greatest[i] = _mm512_set1_ps(kMasked);
    for (int j = 0; j < count; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        greatest[i] = _mm512_max_ps(greatest[i], _mm512_loadu_ps(s + (j + i) * kLanes));
      }
    }
    greatest[0] = _mm512_max_ps(_mm512_max_ps(greatest[0], greatest[1]),
                                _mm512_max_ps(greatest[2], greatest[3]));
    const __m512 before = _mm512_load_ps(most[g]);
    const __m512 now = _mm512_max_ps(before, _mm512_mul_ps(greatest[0], scale));
    const __m512 factor = vexp2(_mm512_sub_ps(before, now));
    _mm512_store_ps(most[g], now);
    _mm512_store_ps(rescale[g], factor);
    __m512 partial[8];  // by key modulo 8
    for (int i = 0; i < 8; ++i) partial[i] = _mm512_setzero_ps();
    // Pairs (key 2i, key 2i + 1) of one lane in a dword, then 16 of them side by side.
    const __m512i pair_up = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0);
    for (int half = 0; half * 32 < count; ++half) {
      __m512i pairs[16];
      const int used = imin(16, (count - half * 32) / 2);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (i >= used) {
          pairs[i] = _mm512_setzero_si512();
          continue;
        }
        const float* at = s + (half * 32 + 2 * i) * kLanes;
        const __m512 p0 = vexp2(_mm512_fmsub_ps(_mm512_loadu_ps(at), scale, now));
        const __m512 p1 = vexp2(_mm512_fmsub_ps(_mm512_loadu_ps(at + kLanes), scale, now));
        partial[2 * i % 8] = _mm512_add_ps(partial[2 * i % 8], p0);
        partial[2 * i % 8 + 1] = _mm512_add_ps(partial[2 * i % 8 + 1], p1);
        pairs[i] = _mm512_permutexvar_epi16(
            pair_up, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(p1, p0)));
      }
      transpose(pairs);
      uint32_t* to = weights + (g * 2 + half) * 16 * kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 16, pairs[i]);
    }
    for (int i = 0; i < 4; ++i) partial[i] = _mm512_add_ps(partial[i], partial[i + 4]);
    const __m512 total = _mm512_add_ps(_mm512_add_ps(partial[0], partial[1]),
                                       _mm512_add_ps(partial[2], partial[3]));
    _mm512_store_ps(sum[g], _mm512_fmadd_ps(_mm512_load_ps(sum[g]), factor, total));
    const __mmask16 changed = _mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ);
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((changed >> lane & 1) == 0) continue;
      float* row = out + (g * kLanes + lane) * depth;
      const __m512 f = _mm512_set1_ps(rescale[g][lane]);
      for (int d = 0; d < depth; d += 16) {
        _mm512_storeu_ps(row + d, _mm512_mul_ps(_mm512_loadu_ps(row + d), f));
      }
    }
  }

  void mask(float* s, int g, int tile, int count) const {
    const __m512i p = _mm512_load_si512(position[g]), lo = _mm512_load_si512(lowest[g]);
    const __m512 m = _mm512_load_ps(slope[g]);
    for (int j = 0; j < count; ++j) {
      float* at = s + j * kLanes;
      _mm512_storeu_ps(at, masked(_mm512_loadu_ps(at), _mm512_set1_epi32(tile + j), p, lo, m));
    }
  }

  void multiply_values(int valid) {
    stored_before_tiles();
    const int64_t stride = int64_t{depth} * 4;
    float* out1 = out + kLanes * depth;
    for (int d = 0; d < depth; d += 16) {
      _tile_loadd(0, out + d, stride);
      if (groups == 2) _tile_loadd(1, out1 + d, stride);
      for (int half = 0; half * 32 < valid; ++half) {
        _tile_loadd(6, values + half * 16 * depth + d, stride);
        _tile_loadd(4, weights + half * 16 * kLanes, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (groups == 2) {
          _tile_loadd(5, weights + (2 + half) * 16 * kLanes, 64);
          _tile_dpbf16ps(1, 5, 6);
        }
      }
      _tile_stored(0, out + d, stride);
      if (groups == 2) _tile_stored(1, out1 + d, stride);
    }
  }

};

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
