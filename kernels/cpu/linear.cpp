// Matrix products with packed weights.
//
// out[t][n] = sum over k of x[t][k] * w[n][k]. Each output element has one float32 accumulator that
// takes k in ascending order over the full K, whatever the number of rows, so that a row's bits do
// not depend on the rest of the batch. On AMX the unit of that order is a tile product of 32 k.
// K is never split; work is split over panels of columns and, for many rows, blocks of rows.

#include "isa.h"
#include "linear_job.h"
#include "pool.h"
#include "simd.h"
#if defined(__AMX_BF16__)
#include "linear_amx.h"
#endif

namespace mt {
namespace MT_ISA {
namespace {

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
template <typename T, typename Panel>
void linear_as(const mt_linear& op, int sampleable, int32_t* ids) {
  typedef typename Activations<T, Panel>::type A;
  const char* weight = static_cast<const char*>(op.weight);
  const int held = reinterpret_cast<const PackedHead*>(weight)->held;
  Job<T, Panel> job;
  job.op = &op;
  job.first_panel = weight + sizeof(PackedHead);
  job.bytes_per_panel = panel_bytes(op.k, op.dtype, held);
  job.lda = op.x_stride;
  job.a = static_cast<const A*>(op.x);
  const int k = job.k = padded_k(op.k, held == kAsGiven ? op.dtype : int{MT_BF16});
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

// By type, and by how the weights are held.
void choose(const mt_linear& op, int sampleable, int32_t* ids) {
  if (op.tokens == 0) return;
  const int held = static_cast<const PackedHead*>(op.weight)->held;
  if (op.dtype == MT_F16) {
    linear_as<f16, PlainPanel<f16>>(op, sampleable, ids);
#if defined(__AVX2__)
  } else if (held == kCompact && op.dtype == MT_BF16) {
    linear_as<bf16, CompactPieces>(op, sampleable, ids);
  } else if (held == kCompact) {
    linear_as<float, CompactPieces>(op, sampleable, ids);
#endif
  } else if (op.dtype == MT_BF16) {
    linear_as<bf16, PlainPanel<bf16>>(op, sampleable, ids);
  } else if (held == kAsBf16) {
    linear_as<float, PlainPanel<bf16>>(op, sampleable, ids);
  } else {
    linear_as<float, PlainPanel<float>>(op, sampleable, ids);
  }
}

}  // namespace

void linear(const mt_linear& op) { choose(op, 0, nullptr); }

void likeliest(const mt_linear& op, int sampleable, int32_t* ids) { choose(op, sampleable, ids); }

}  // namespace MT_ISA
}  // namespace mt
