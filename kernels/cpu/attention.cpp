// Causal attention over a paged cache, for prefill chunks and decode rows alike.
//
// An item is some query rows of one sequence and one kv head; its keys are copied, transposed, into
// a tile that all its rows share. In builds with AVX-512-BF16, bf16 is multiplied in pairs and
// P is rounded to bf16; everywhere else K, V and P are float32. attention.h has the softmax.

#include "attention.h"

#include <algorithm>

#include "isa.h"
#include "pool.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "attention_amx.h"
#include "attention_few.h"
#include "attention_many.h"
#endif

namespace mt {
namespace MT_ISA {
namespace {

// One unit of a product: a float, or a pair of bf16 in a dword.
MT_INLINE vf multiply_add(float a, vf b, vf c) { return vfma(vset(a), b, c); }
#if defined(__AVX512BF16__)
MT_INLINE vf multiply_add(uint32_t a, vf b, vf c) { return vdot_pairs(a, vbits(b), c); }
#endif

// c[r][j] += sum over k of a[r][k] b[k][j], k ascending.
template <int MR, int NV, typename U>
inline void product(int depth, const U* a, int lda, const U* b, int ldb, float* c, int ldc) {
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[r][j] = vload(c + r * ldc + j * W);
  }
  for (int k = 0; k < depth; ++k) {
    vf column[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      column[j] = vload(reinterpret_cast<const float*>(b + k * ldb) + j * W);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const U x = a[r * lda + k];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r][j] = multiply_add(x, column[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) vstore(c + r * ldc + j * W, acc[r][j]);
  }
}

template <int NV, typename U>
inline void product_rows(int rows, int depth, const U* a, int lda, const U* b, int ldb, float* c,
                         int ldc) {
  constexpr int kStep = W == 16 ? 4 : 2;
  int r = 0;
  for (; r + kStep <= rows; r += kStep) {
    product<kStep, NV>(depth, a + r * lda, lda, b, ldb, c + r * ldc, ldc);
  }
  if (kStep == 4 && r + 2 <= rows) {
    product<2, NV>(depth, a + r * lda, lda, b, ldb, c + r * ldc, ldc);
    r += 2;
  }
  if (r < rows) product<1, NV>(depth, a + r * lda, lda, b, ldb, c + r * ldc, ldc);
}

template <typename U>
inline void product_all(int rows, int columns, int depth, const U* a, int lda, const U* b, int ldb,
                        float* c, int ldc) {
  int j = 0;
  for (; j + 4 * W <= columns; j += 4 * W) {
    product_rows<4>(rows, depth, a, lda, b + j, ldb, c + j, ldc);
  }
  for (; j < columns; j += W) product_rows<1>(rows, depth, a, lda, b + j, ldb, c + j, ldc);
}

// How a key tile of type T lies in scratch: units of depth, and how values and weights are made.
template <typename T, typename U>
struct Layout {  // U = float: widened
  static constexpr int kPerUnit = 1;
  MT_INLINE static vi load(const T* p, int n) {
    return vbits(n >= W ? vload(p) : n > 0 ? vloadn(p, n) : vzero());
  }
  static void value_unit(const T* v, int64_t, int keys, int n, float* to) {
    vstore(to, keys > 0 ? (n >= W ? vload(v) : vloadn(v, n)) : vzero());
  }
  MT_INLINE static void weight(float* to, int j, vf p) { vstore(to + j, p); }
};

#if defined(__AVX512BF16__)
template <>
struct Layout<bf16, uint32_t> {
  [[maybe_unused]] static constexpr int kPerUnit = 2;
  MT_INLINE static vi load(const bf16* p, int n) {
    if (n >= 2 * W) return viload(p);
    return _mm512_maskz_loadu_epi16(n > 0 ? (1u << n) - 1u : 0u, p);
  }
  static void value_unit(const bf16* v, int64_t stride, int keys, int n, uint32_t* to) {
    const __mmask16 used = n >= W ? 0xffff : first(n);
    __m512i pair = _mm512_setzero_si512();
    if (keys > 0) pair = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, v));
    if (keys > 1) {
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used, v + stride));
      pair = _mm512_or_si512(pair, _mm512_slli_epi32(odd, 16));
    }
    _mm512_storeu_si512(to, pair);
  }
  MT_INLINE static void weight(uint32_t* to, int j, vf p) {
    vstore(reinterpret_cast<bf16*>(to) + j, p);
  }
};
#endif

// Query rows of an item, but for bf16 with AMX.
constexpr int kItemRows = 32;

template <typename T, typename U>
struct Attention {
  typedef Layout<T, U> L;
  static constexpr int kPer = L::kPerUnit;
  const View& view;
  const mt_attention& op;
  int depth, units;  // head_dim padded to 16 columns; padded units of depth
  U *queries, *keys, *values, *weights;
  float *scores, *out;
  float most[kItemRows], sum[kItemRows];

  explicit Attention(const View& v) : view(v), op(*v.op) {
    units = ceil_div(ceil_div(op.head_dim, kPer), 16) * 16;
    depth = ceil_div(op.head_dim, 16) * 16;
    const size_t u = size_t(units), d = size_t(depth);
    const size_t words[] = {kItemRows * u, kKeys * u, kKeys * d,
                            size_t{kItemRows} * kKeys, size_t{kItemRows} * kKeys, kItemRows * d};
    size_t total = 0;
    for (size_t w : words) total += w * 4;
    char* memory = static_cast<char*>(scratch(kScratchB, total));
    void* parts[6];
    for (int i = 0; i < 6; ++i) {
      parts[i] = memory;
      memory += words[i] * 4;
    }
    queries = static_cast<U*>(parts[0]);
    keys = static_cast<U*>(parts[1]);
    values = static_cast<U*>(parts[2]);
    weights = static_cast<U*>(parts[3]);
    scores = static_cast<float*>(parts[4]);
    out = static_cast<float*>(parts[5]);
  }

  void run(Fetch& fetch) {
    load_queries();
    const int rows = view.item.rows, end = view.keys_end();
    const int begin_tile = view.begin_tile();
    memset(out, 0, size_t(rows) * size_t(depth) * 4);
    for (int tile = begin_tile; tile < end; tile += kKeys) {
      const int valid = imin(kKeys, end - tile);
      fetch.begin(tile, kKeys);
      load_keys(tile, valid, fetch);
      memset(scores, 0, size_t(rows) * kKeys * 4);
      product_all(rows, ceil_div(valid, 16) * 16, units, queries, units, keys, kKeys, scores,
                  kKeys);
      for (int r = 0; r < rows; ++r) softmax(r, tile, valid);
      load_values(tile, valid, fetch);
      product_all(rows, depth, ceil_div(valid, kPer), weights, kKeys / kPer, values, depth, out,
                  depth);
    }
    store();
  }

  void load_queries() {
    for (int r = 0; r < view.item.rows; ++r) {
      const T* q = static_cast<const T*>(op.q) + view.token(r) * op.q_token +
                   view.head(r) * op.q_head;
      for (int i = 0; i < units; i += W) {
        const vi x = L::load(q + i * kPer, op.head_dim - i * kPer);
        memcpy(static_cast<void*>(queries + r * units + i), &x, sizeof(x));
      }
      most[r] = kNothing;
      sum[r] = 0.0f;
    }
  }

  // Transposed: [unit][key]; keys at or past `valid` are zeros up to a multiple of 16.
  void load_keys(int tile, int valid, Fetch& fetch) {
    const T* cache = static_cast<const T*>(op.k_cache);
    const int64_t stride = view.key_stride();
    for (int j = 0; j < valid; j += W) {
      const T* k = cache + view.offset(tile + j);
      fetch(W / 2);
      for (int i = 0; i < units; i += W) {
        vi rows[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          rows[r] = j + r < valid ? L::load(k + r * stride + i * kPer, op.head_dim - i * kPer)
                                  : viset(0);
        }
        transpose(rows);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r) {
          memcpy(static_cast<void*>(keys + (i + r) * kKeys + j), &rows[r], sizeof(vi));
        }
      }
    }
    for (int j = ceil_div(valid, W) * W; j < ceil_div(valid, 16) * 16; ++j) {
      for (int i = 0; i < units; ++i) keys[i * kKeys + j] = U(0);
    }
  }

  void load_values(int tile, int valid, Fetch& fetch) {
    const T* cache = static_cast<const T*>(op.v_cache);
    const int64_t stride = view.key_stride();
    for (int j = 0; j < valid; j += kPer) {
      const T* v = cache + view.offset(tile + j);
      fetch(kPer);
      for (int d = 0; d < depth; d += W) {
        L::value_unit(v + d, stride, valid - j, imin(W, imax(0, op.head_dim - d)),
                      values + j / kPer * depth + d);
      }
    }
  }

  void softmax(int r, int tile, int valid) {
    float* s = scores + r * kKeys;
    const int count = ceil_div(valid, 16) * 16;
    const int begin = imax(0, view.lowest(r) - tile);
    const int end = imin(valid, view.position(r) + 1 - tile);
    vf greatest = vset(kMasked);
    const vf scale = vset(op.scale);
    for (int j = 0; j < count; j += W) vstore(s + j, vload(s + j) * scale);
    if (op.alibi_slopes != nullptr) {
      const float slope = view.slope(r);
      const int offset = tile - view.position(r);
      for (int j = 0; j < count; ++j) s[j] += slope * static_cast<float>(offset + j);
    }
    for (int j = 0; j < begin && j < count; ++j) s[j] = kMasked;
    for (int j = imax(0, end); j < count; ++j) s[j] = kMasked;
    for (int j = 0; j < count; j += W) greatest = vmax(greatest, vload(s + j));
    const float tile_most = vmaximum(greatest);
    const float now = most[r] > tile_most ? most[r] : tile_most;
    float lanes[W];
    vstore(lanes, vexp(vset(most[r] - now)));
    const float factor = lanes[0];
    most[r] = now;
    vf total = vzero();
    U* p = weights + r * (kKeys / kPer);
    for (int j = 0; j < count; j += W) {
      const vf x = vexp(vload(s + j) - vset(now));
      total = total + x;
      L::weight(p, j, x);
    }
    sum[r] = sum[r] * factor + vsum(total);
    if (factor != 1.0f) {
      float* row = out + r * depth;
      for (int d = 0; d < depth; d += W) vstore(row + d, vload(row + d) * vset(factor));
    }
  }

  void store() const {
    for (int r = 0; r < view.item.rows; ++r) {
      T* to = static_cast<T*>(op.out) + view.token(r) * op.out_token + view.head(r) * op.head_dim;
      const float* row = out + r * depth;
      const vf l = vset(sum[r]);
      int d = 0;
      for (; d + W <= op.head_dim; d += W) vstore(to + d, vload(row + d) / l);
      if (d < op.head_dim) vstoren(to + d, vload(row + d) / l, op.head_dim - d);
    }
  }
};

// `after`: an item of the sequence that comes next, or null; `first`: nothing was fetched for `item`.
inline void attend(const mt_attention& op, const Item& item, const Item* after, bool first) {
  const View view(op, item), following(op, after == nullptr ? item : *after);
  Fetch fetch(view, after == nullptr ? nullptr : &following, first);
  if (op.dtype == MT_F32) {
    Attention<float, float>(view).run(fetch);
  } else if (op.dtype == MT_F16) {
    Attention<f16, float>(view).run(fetch);
  } else {
#if defined(__AMX_BF16__)
    if (item.rows <= kFew) {
      FewConfig few;
      AmxFewRows(view).run(fetch);
      return;
    }
    TileConfig config;
    config.set(16, 16);
    AmxManyRows(view).run(fetch);
#elif defined(__AVX512BF16__)
    Attention<bf16, uint32_t>(view).run(fetch);
#else
    Attention<bf16, float>(view).run(fetch);
#endif
  }
}

// Query rows of an item.
inline int item_rows(const mt_attention& op) {
#if defined(__AMX_BF16__)
  if (op.dtype == MT_BF16) return many_rows(op);
#endif
  (void)op;
  return kItemRows;
}

// Items in the order of the batch; returns how many.
inline int list_items(const mt_attention& op, Item* items) {
  const int group = op.q_heads / op.kv_heads, most = item_rows(op);
  int count = 0;
  for (int s = 0; s < op.sequences; ++s) {
    const int queries = op.query_start[s + 1] - op.query_start[s];
    const int rows = queries * group;
    for (int row = 0; row < rows; row += most) {
      const int n = imin(most, rows - row);
      const int last = op.seq_lens[s] - queries + (row + n - 1) / group;
      const int lowest = op.seq_lens[s] - queries + row / group - op.window + 1;
      const int first = op.window > 0 ? imax(0, lowest) : 0;
      for (int h = 0; h < op.kv_heads; ++h) {
        if (items != nullptr) items[count] = {s, h, row, n, last / kKeys - first / kKeys + 1};
        ++count;
      }
    }
  }
  return count;
}

}  // namespace

void attention(const mt_attention& op) {
  const int count = list_items(op, nullptr);
  if (count == 0) return;
  Item* items = static_cast<Item*>(scratch(kScratchC, sizeof(Item) * 2 * size_t(count)));
  Item* dealt = items + count;
  list_items(op, items);
  // The longest first, dealt out like cards: each thread begins with its long ones, and what is left
  // to steal at the end is short. The kv heads of the same rows stay together.
  const int heads = op.kv_heads, groups = count / heads;
  bool even = true;
  for (int i = 1; i < count && even; ++i) even = items[i].tiles == items[0].tiles;
  const int hands = imin(threads(), groups);
  if (even || hands == 1) {
    dealt = items;
  } else {
    std::sort(items, items + count, [](const Item& a, const Item& b) {
      if (a.tiles != b.tiles) return a.tiles > b.tiles;
      if (a.sequence != b.sequence) return a.sequence < b.sequence;
      return a.row != b.row ? a.row < b.row : a.kv_head < b.kv_head;
    });
    int to = 0;
    for (int hand = 0; hand < hands; ++hand) {
      for (int from = hand; from < groups; from += hands) {
        for (int h = 0; h < heads; ++h) dealt[to++] = items[from * heads + h];
      }
    }
  }
  auto job = [&](int chunk) {
    const Item& item = dealt[chunk];
    const Item* after = chunk + heads < count ? &dealt[chunk + heads] : nullptr;
    // What comes next of the same sequence is there already.
    if (after != nullptr && after->sequence == item.sequence) after = nullptr;
    const bool first = chunk == 0 || chunk == count / hands;
    attend(op, item, after, first);
  };
  parallel_for(count, job);
}

}  // namespace MT_ISA
}  // namespace mt
