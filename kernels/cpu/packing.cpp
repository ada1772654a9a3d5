// Packing of weights, and the gather of packed rows. ops.h has the layout.

#include <stdint.h>
#include <string.h>

#include "isa.h"
#include "pool.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

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
  const char* base =
      static_cast<const char*>(op.weight) + row / kPanel * panel_bytes(op.k, op.dtype);
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
