// The table of kernels that one build of the hot sources fills in.
//
// Knows nothing of Python. Everything here is plain data or a declaration, because the hot sources
// include it too (isa.h says why).

#ifndef MTACTORS_KERNELS_CPU_OPS_H
#define MTACTORS_KERNELS_CPU_OPS_H

#include <stdint.h>

#include "abi.h"

namespace mt {

struct Ops {
  // How this build holds the matrix of `op`, a value of Held. It looks at every weight.
  int (*hold)(const mt_pack& op);
  // Fills op.packed, packed_bytes(op.n, op.k, op.dtype, op.held) bytes.
  void (*pack)(const mt_pack& op);
  void (*linear)(const mt_linear&);
  // ids (tokens): of each row of the product the greatest of columns 0..sampleable-1, of equals the
  // lowest, 0 where all are -inf. The product itself is not kept: op.out is not read.
  void (*likeliest)(const mt_linear&, int sampleable, int32_t* ids);
  void (*embedding)(const mt_embedding&);
  void (*rms_norm)(const mt_rms_norm&);
  void (*rope)(const mt_rope&);
  void (*kv_write)(const mt_kv_write&);
  void (*attention)(const mt_attention&);
  void (*silu_and_mul)(const mt_silu_and_mul&);
  void (*copy_blocks)(const mt_copy_blocks&);
  void (*sample)(const mt_sample&);
  void (*logprobs)(const mt_logprobs&);
  // out = round(partials added in rank order + bias [+ residual, rounded again]), n elements a row.
  void (*reduce)(const float* const* partials, int ranks, const void* bias, const void* residual,
                 void* out, int rows, int n, int dtype);
};

// How packed weights are held. No way loses a bit.
enum Held {
  kAsGiven = 0,  // in their own type
  kAsBf16 = 1,   // float32 weights that all are bf16 numbers, as those
  kCompact = 2   // bf16 numbers in 12 bits; compact.h has the layout
};

// Packed layout, the same in every build: a line with a PackedHead, then panels of kPanel columns n.
// bf16: [panel][k/2][kPanel][2], k padded with zeros to kKPad (the K of one AMX tile).
// f32, f16: [panel][k][kPanel]. Columns beyond n are zeros.
constexpr int kPanel = 32;
constexpr int kKPad = 32;

struct PackedHead {
  int32_t held;
  int32_t reserved[15];
};
static_assert(sizeof(PackedHead) == 64, "panels begin at a cache line");

// Bytes of a compact panel's head, of a step of kKPad k, and of the room for what fits no code.
constexpr int kCompactHead = 64;
constexpr int kCompactStep = 1536;
static inline int compact_room(int steps) { return (16 * steps + 63) / 64 * 64; }

static inline int element_size(int dtype) { return dtype == MT_F32 ? 4 : 2; }
static inline int padded_k(int k, int dtype) {
  return dtype == MT_BF16 ? (k + kKPad - 1) / kKPad * kKPad : k;
}
static inline int panels(int n) { return (n + kPanel - 1) / kPanel; }
static inline int64_t panel_bytes(int k, int dtype, int held) {
  if (held == kCompact) {
    const int steps = padded_k(k, MT_BF16) / kKPad;
    return kCompactHead + int64_t{steps} * kCompactStep + compact_room(steps);
  }
  const int in = held == kAsBf16 ? MT_BF16 : dtype;
  return static_cast<int64_t>(padded_k(k, in)) * kPanel * element_size(in);
}
static inline int64_t packed_bytes(int n, int k, int dtype, int held) {
  return static_cast<int64_t>(sizeof(PackedHead)) + panels(n) * panel_bytes(k, dtype, held);
}

}  // namespace mt

#endif
