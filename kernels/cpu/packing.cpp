// How weights are held, their packing, and the gather of packed rows. ops.h has the layout,
// compact.h that of compact panels.

#include <stdint.h>
#include <string.h>

#include "compact.h"
#include "isa.h"
#include "pool.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

MT_INLINE char* panel_of(void* packed, int index, int64_t bytes) {
  return static_cast<char*>(packed) + sizeof(PackedHead) + index * bytes;
}

// The bf16 bits of an element of type E.
MT_INLINE uint16_t as_bf16(uint16_t x) { return x; }
MT_INLINE uint16_t as_bf16(uint32_t x) { return static_cast<uint16_t>(x >> 16); }

// Rows of a panel in the matrix that is packed.
template <typename E>
struct Source {
  const mt_pack* op;
  const E* first;
  int rows;

  Source(const mt_pack* o, int panel) : op(o), rows(imin(kPanel, o->n - panel * kPanel)) {
    first = static_cast<const E*>(o->source) + int64_t{panel} * kPanel * o->source_stride;
  }
  const E* row(int r) const { return first + r * op->source_stride; }
};

// 32 k of a panel as bf16 pairs: 32 source rows of a cache line each, 16 whole target rows.
template <typename E>
inline void pack_step(const Source<E>& in, int k0, uint16_t* out) {
  const int n = imin(kKPad, in.op->k - k0);
  for (int r = 0; r < kPanel; ++r) {
    uint16_t line[kKPad] = {};
    if (r < in.rows) {
      for (int i = 0; i < n; ++i) line[i] = as_bf16(in.row(r)[k0 + i]);
    }
    for (int i = 0; i < kKPad; i += 2) memcpy(out + i * kPanel + 2 * r, line + i, 4);
  }
}

// The sixteen upper bytes that a panel has most often, and the codes of all.
struct Codes {
  static constexpr uint8_t kNoCode = 16;
  uint8_t upper[16], code[256];
  int without;  // weights that have none

  template <typename E>
  explicit Codes(const Source<E>& in) {
    // Four counts, because equal neighbours would wait for each other.
    int counts[4][256] = {};
    for (int r = 0; r < in.rows; ++r) {
      const E* row = in.row(r);
      for (int k = 0; k < in.op->k; ++k) ++counts[k % 4][as_bf16(row[k]) >> 8];
    }
    const int all = padded_k(in.op->k, MT_BF16) * kPanel;
    counts[0][0] += all - in.rows * in.op->k;
    for (int i = 0; i < 256; ++i) counts[0][i] += counts[1][i] + counts[2][i] + counts[3][i];
    memset(code, kNoCode, sizeof(code));
    without = all;
    for (int c = 0; c < 16; ++c) {
      int most = -1;
      for (int i = 0; i < 256; ++i) {
        if (code[i] == kNoCode && (most < 0 || counts[0][i] > counts[0][most])) most = i;
      }
      upper[c] = static_cast<uint8_t>(most);
      code[most] = static_cast<uint8_t>(c);
      without -= counts[0][most];
    }
  }
};

// compact_place of each element.
struct Places {
  uint8_t of[kPairElements];
  Places() {
    for (int e = 0; e < kPairElements; ++e) of[e] = static_cast<uint8_t>(compact_place(e));
  }
};

// How many weights without a code there is room for; one more marks the end.
MT_INLINE int most_without(int steps) { return compact_room(steps) / 4 - 1; }

struct PackJob {
  const mt_pack* op;

  void operator()(int p) const {
    char* out = panel_of(op->packed, p, panel_bytes(op->k, op->dtype, op->held));
    if (op->held == kCompact) {
      if (op->dtype == MT_F32) {
        compact(Source<uint32_t>(op, p), out);
      } else {
        compact(Source<uint16_t>(op, p), out);
      }
    } else if (op->dtype == MT_F32 && op->held == kAsBf16) {
      pairs(Source<uint32_t>(op, p), out);
    } else if (op->dtype == MT_F32) {
      columns(Source<uint32_t>(op, p), reinterpret_cast<uint32_t*>(out));
    } else if (op->dtype == MT_BF16) {
      pairs(Source<uint16_t>(op, p), out);
    } else {
      columns(Source<uint16_t>(op, p), reinterpret_cast<uint16_t*>(out));
    }
  }

  template <typename E>
  void pairs(const Source<E>& in, char* out) const {
    for (int k0 = 0; k0 < op->k; k0 += kKPad, out += kStepBytes) {
      pack_step(in, k0, reinterpret_cast<uint16_t*>(out));
    }
  }

  template <typename E>
  void columns(const Source<E>& in, E* out) const {
    for (int k0 = 0; k0 < op->k; k0 += 16) {
      const int n = imin(16, op->k - k0);
      for (int r = 0; r < kPanel; ++r) {
        for (int i = 0; i < n; ++i) {
          out[(k0 + i) * kPanel + r] = r < in.rows ? in.row(r)[k0 + i] : E(0);
        }
      }
    }
  }

  template <typename E>
  void compact(const Source<E>& in, char* out) const {
    const Codes codes(in);
    const int steps = padded_k(op->k, MT_BF16) / kKPad;
    CompactHead head = {};
    memcpy(head.upper, codes.upper, sizeof(head.upper));
    head.first_odd_step = odd_step(kNone);
    uint8_t* to = reinterpret_cast<uint8_t*>(out) + kCompactHead;
    uint8_t* odd = to + int64_t{steps} * kCompactStep;
    const Places places;
    for (int step = 0; step < steps; ++step) {
      uint16_t plain[kStepBytes / 2];
      pack_step(in, step * kKPad, plain);
      for (int pair = 0; pair < kKPad / 2; pair += 2) {
        const uint16_t* from = plain + pair * kPairElements;
        uint8_t codes_of[2][kPairElements], seen = 0;
        for (int i = 0; i < 2; ++i) {
          for (int e = 0; e < kPairElements; ++e) {
            const uint16_t weight = from[i * kPairElements + e];
            const uint8_t code = codes.code[weight >> 8];
            to[i * 64 + places.of[e]] = static_cast<uint8_t>(weight);
            codes_of[i][places.of[e]] = code;
            seen |= code;
          }
        }
        for (int i = 0; i < 64; ++i) {
          to[128 + i] = static_cast<uint8_t>((codes_of[0][i] & 15) | codes_of[1][i] << 4);
        }
        to += 192;
        if ((seen & Codes::kNoCode) == 0) continue;
        for (int e = 0; e < 2 * kPairElements; ++e) {
          if (codes.code[from[e] >> 8] != Codes::kNoCode) continue;
          if (head.first_odd_step == odd_step(kNone)) head.first_odd_step = uint32_t(step);
          const uint32_t entry = odd_weight(step, pair * kPairElements + e, from[e] >> 8);
          memcpy(odd, &entry, 4);
          odd += 4;
        }
      }
    }
    memcpy(odd, &kNone, 4);
    memcpy(out, &head, sizeof(head));
  }
};

// Whether all panels can be compact.
template <typename E>
inline bool fits_codes(const mt_pack& op) {
  const int steps = padded_k(op.k, MT_BF16) / kKPad;
  if (steps >= int(odd_step(kNone))) return false;
  int bad = 0;
  auto look = [&](int p) {
    if (__atomic_load_n(&bad, __ATOMIC_RELAXED) != 0) return;
    const Codes codes(Source<E>(&op, p));
    if (codes.without > most_without(steps)) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
  };
  parallel_for(panels(op.n), look);
  return bad == 0;
}

inline bool all_bf16(const mt_pack& op) {
  int bad = 0;
  auto look = [&](int p) {
    if (__atomic_load_n(&bad, __ATOMIC_RELAXED) != 0) return;
    const Source<uint32_t> in(&op, p);
    uint32_t rest = 0;
    for (int r = 0; r < in.rows; ++r) {
      for (int k = 0; k < op.k; ++k) rest |= in.row(r)[k] & 0xffffu;
    }
    if (rest != 0) __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
  };
  parallel_for(panels(op.n), look);
  return bad == 0;
}

// The bf16 bits of a row's elements out of a compact panel.
struct CompactRow {
  const uint8_t* panel;
  int row;

  uint16_t at(int k) const {
    const int e = k % 2 + 2 * row, second = k / 2 % 2, place = compact_place(e);
    const uint8_t* group = panel + kCompactHead + int64_t{k / 4} * 192;
    const int code = group[128 + place] >> (4 * second) & 15;
    return static_cast<uint16_t>(panel[code] << 8 | group[second * 64 + place]);
  }
  // What has no code, by the k of each; padding may be among them.
  template <typename F>
  void each_odd(int k_end, F put) const {
    const int steps = padded_k(k_end, MT_BF16) / kKPad;
    const uint8_t* odd = panel + kCompactHead + int64_t{steps} * kCompactStep;
    uint32_t entry;
    for (; memcpy(&entry, odd, 4), entry != kNone; odd += 4) {
      const int e = odd_element(entry);
      const int k = int(odd_step(entry)) * kKPad + e / kPairElements * 2 + e % 2;
      if (e % kPairElements / 2 == row && k < k_end) put(k, odd_upper(entry));
    }
  }
};

MT_INLINE void widen_bits(uint16_t bits, uint16_t* out) { *out = bits; }
MT_INLINE void widen_bits(uint16_t bits, uint32_t* out) { *out = uint32_t{bits} << 16; }

template <typename E>
inline void gather(const mt_embedding& op, int token) {
  E* out = static_cast<E*>(op.out) + token * op.out_stride;
  const int row = op.ids[token] - op.first_row;
  if (row < 0 || row >= op.n) {
    memset(out, 0, size_t(op.k) * sizeof(E));
    return;
  }
  char* packed = static_cast<char*>(const_cast<void*>(op.weight));
  const int held = reinterpret_cast<const PackedHead*>(packed)->held;
  const char* panel = panel_of(packed, row / kPanel, panel_bytes(op.k, op.dtype, held));
  if (held == kCompact) {
    const CompactRow in = {reinterpret_cast<const uint8_t*>(panel), row % kPanel};
    for (int k = 0; k < op.k; ++k) widen_bits(in.at(k), out + k);
    in.each_odd(op.k, [&](int k, int upper) {
      widen_bits(static_cast<uint16_t>(upper << 8 | (in.at(k) & 255)), out + k);
    });
  } else if (op.dtype == MT_BF16 || held == kAsBf16) {
    const uint16_t* in = reinterpret_cast<const uint16_t*>(panel) + row % kPanel * 2;
    for (int k = 0; k < op.k; ++k) widen_bits(in[k / 2 * 2 * kPanel + k % 2], out + k);
  } else {
    const E* in = reinterpret_cast<const E*>(panel) + row % kPanel;
    for (int k = 0; k < op.k; ++k) out[k] = in[k * kPanel];
  }
}

}  // namespace

int hold([[maybe_unused]] const mt_pack& op) {
#if defined(__AVX2__)
  if (op.dtype == MT_BF16) return fits_codes<uint16_t>(op) ? kCompact : kAsGiven;
  if (op.dtype == MT_F32 && all_bf16(op)) return fits_codes<uint32_t>(op) ? kCompact : kAsBf16;
#endif
  return kAsGiven;
}

void pack(const mt_pack& op) {
  PackedHead head = {};
  head.held = op.held;
  memcpy(op.packed, &head, sizeof(head));
  PackJob job = {&op};
  parallel_for(panels(op.n), job);
}

void embedding(const mt_embedding& op) {
  const int per_chunk = 2;  // a row of a packed matrix is strewn over a whole panel
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
