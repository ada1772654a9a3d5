// What the attention kernels share: the division of a call into items, and the tile of keys.
//
// Keys are taken in tiles of kKeys absolute positions, in ascending order, with an online softmax:
//   m' = max(m, max of the tile), c = exp(m - m'), p = exp(s - m'), l' = l c + sum p,
//   o' = o c + sum p v, and out = o / l at the end.
// bf16 with AMX raises m more seldom (attention_amx.h). A masked key has p = 0 exactly, so a tile of
// which a row sees nothing leaves the row's bits alone and the items may be cut anywhere: a row has
// the same bits in a prefill chunk and in a decode row.

#ifndef MTACTORS_KERNELS_CPU_ATTENTION_H
#define MTACTORS_KERNELS_CPU_ATTENTION_H

#include "ops.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

constexpr int kKeys = 64;
// Less than any score; exp(kMasked - kNothing) is 0 and exp(kNothing - kNothing) is 1.
constexpr float kMasked = -3.0e38f;
constexpr float kNothing = -1.0e30f;

struct Item {
  int sequence, kv_head, row, rows, tiles;
};

class Fetch;

// Positions of one item's rows and where its keys are.
struct View {
  const mt_attention* op;
  Item item;
  int group, first_token, first_position;

  View(const mt_attention& o, const Item& i) : op(&o), item(i) {
    group = o.q_heads / o.kv_heads;
    first_token = o.query_start[i.sequence];
    first_position = o.seq_lens[i.sequence] - (o.query_start[i.sequence + 1] - first_token);
  }
  int token(int r) const { return first_token + (item.row + r) / group; }
  int head(int r) const { return item.kv_head * group + (item.row + r) % group; }
  int position(int r) const { return first_position + (item.row + r) / group; }
  int lowest(int r) const { return op->window > 0 ? imax(0, position(r) - op->window + 1) : 0; }
  int keys_end() const { return position(item.rows - 1) + 1; }
  float slope(int r) const { return op->alibi_slopes[head(r)]; }
  // Elements from the start of a cache to this item's head of the key at `position`.
  int64_t offset(int position) const {
    const int32_t* table = op->block_tables + item.sequence * op->block_tables_stride;
    const int64_t row = int64_t{table[position / op->block_size]} * op->block_size +
                        position % op->block_size;
    return (row * op->kv_heads + item.kv_head) * op->head_dim;
  }
  // Bytes of one key, and elements from one key to the next.
  int64_t key_bytes() const { return int64_t{op->head_dim} * element_size(op->dtype); }
  int64_t key_stride() const { return int64_t{op->kv_heads} * op->head_dim; }
  int begin_tile(int row = 0) const { return lowest(row) / kKeys * kKeys; }
};

// Asks for K and V little by little while an item is computed: a burst would wait for the few misses
// that a core can have under way, and between bursts there would be none.
//
// The items of one sequence, a kv head each, are neighbours, and so are their keys in memory. Short
// items therefore share the work of fetching whole positions, all heads, of the next sequence, in
// the order of memory, which the hardware helps with. Long items would push their own keys out of
// the cache so, and fetch their own next tile.
class Fetch {
 public:
  // `next`: an item of the sequence that this thread probably takes next, or null. `first`: whether
  // nobody has fetched for this item.
  Fetch(const View& item, const View* next, bool first) : item_(item), next_(next), first_(first) {
    const int size = element_size(item.op->dtype);
    row_bytes_ = item.key_stride() * size;
    head_bytes_ = item.key_bytes();
    own_ = item.item.tiles * kKeys * row_bytes_ > kShort;
    if (own_ || next == nullptr) return;
    const int heads = item.op->kv_heads, head = item.item.kv_head;
    const int from = next->begin_tile(), keys = next->keys_end() - from;
    share_begin_ = from + static_cast<int>(int64_t{keys} * head / heads);
    share_end_ = from + static_cast<int>(int64_t{keys} * (head + 1) / heads);
    share_lines_ = ceil_div(static_cast<int>(row_bytes_ / 64 + 1) * (share_end_ - share_begin_),
                            item.item.tiles * kKeys);
  }

  // Before `keys` keys, whole tiles, from position `at`.
  MT_INLINE void begin(int at, int keys) {
    if (own_) {
      view_ = &item_;
      walk(at + keys, imin(at + 2 * keys, item_.keys_end()), 0);
    } else if (first_ && at == item_.begin_tile()) {
      view_ = &item_;
      walk(at + keys, item_.keys_end(), ceil_div(static_cast<int>(row_bytes_), 64));
    } else if (next_ != nullptr && view_ != next_) {
      view_ = next_;
      walk(share_begin_, share_end_, share_lines_);
    }
  }

  // As many steps, of which a tile of keys has kKeys.
  MT_INLINE void operator()(int steps) {
    if (position_ >= end_) return;
    if (lines_ == 0) {
      for (; steps > 0 && position_ < end_; --steps) key();
    } else {
      for (int i = steps * lines_; i > 0 && position_ < end_; --i) line();
    }
  }

 private:
  // Bytes of K, or of V, of one sequence of which two fit into a core's own cache.
  static constexpr int64_t kShort = 192 << 10;

  // From position `begin` to `end`: `lines` of a whole block's K and V a step, or, if it is 0, one
  // key of the item's own head.
  MT_INLINE void walk(int begin, int end, int lines) {
    position_ = begin;
    end_ = end;
    lines_ = lines;
    at_ = until_ = 0;
  }

  void find(int head) {
    const mt_attention& op = *view_->op;
    const int64_t at = (view_->offset(position_) + (head - view_->item.kv_head) * op.head_dim) *
                       element_size(op.dtype);
    k_ = static_cast<const char*>(op.k_cache) + at;
    v_ = static_cast<const char*>(op.v_cache) + at;
  }

  MT_INLINE void key() {
    if (at_ == 0 || position_ % 16 == 0) find(view_->item.kv_head);
    for (int64_t line = 0; line < head_bytes_; line += 64) {
      __builtin_prefetch(k_ + line, 0, 2);
      __builtin_prefetch(v_ + line, 0, 2);
    }
    k_ += row_bytes_;
    v_ += row_bytes_;
    at_ = 1;
    ++position_;
  }

  MT_INLINE void line() {
    if (at_ >= until_) {
      find(0);
      const int rest = view_->op->block_size - position_ % view_->op->block_size;
      at_ = 0;
      until_ = imin(rest, end_ - position_) * row_bytes_;
    }
    __builtin_prefetch(k_ + at_, 0, 2);
    __builtin_prefetch(v_ + at_, 0, 2);
    at_ += 64;
    if (at_ >= until_) {
      const int block = view_->op->block_size;
      position_ = position_ / block * block + block;
    }
  }

  const View& item_;
  const View* next_;
  const View* view_ = nullptr;
  bool first_, own_;
  const char *k_ = nullptr, *v_ = nullptr;
  int64_t row_bytes_ = 0, head_bytes_ = 0, at_ = 0, until_ = 0;
  int position_ = 0, end_ = 0, lines_ = 0, share_begin_ = 0, share_end_ = 0, share_lines_ = 0;
};

#if defined(__AVX512F__)
// Transposes 16 vectors of 16 dwords.
MT_INLINE void transpose(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
#else
// Transposes W vectors of W dwords, through memory.
inline void transpose(vi* r) {
  uint32_t in[W][W], out[W][W];
  memcpy(in, r, sizeof(in));
  for (int i = 0; i < W; ++i) {
    for (int j = 0; j < W; ++j) out[j][i] = in[i][j];
  }
  memcpy(static_cast<void*>(r), out, sizeof(out));
}
#endif

}  // namespace
}  // namespace MT_ISA
}  // namespace mt

#endif
