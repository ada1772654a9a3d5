// Logprobs, and the digests of a journal: what a row says about the token that was taken.
//
// Raw logits, and exponentials in float32, which take a third of the time of float64 and are exact
// to what a float32 logprob can hold; the order is the same for every batch.

#include "candidates.h"
#include "isa.h"
#include "pool.h"

namespace mt {
namespace MT_ISA {
namespace {

inline float greatest(const float* value, int n) {
  float largest = -kInfinity;
  int i = 0;
  if (n >= 4 * W) {
    vf m0 = vload(value), m1 = vload(value + W), m2 = vload(value + 2 * W);
    vf m3 = vload(value + 3 * W);
    for (i = 4 * W; i + 4 * W <= n; i += 4 * W) {
      m0 = vmax(m0, vload(value + i));
      m1 = vmax(m1, vload(value + i + W));
      m2 = vmax(m2, vload(value + i + 2 * W));
      m3 = vmax(m3, vload(value + i + 3 * W));
    }
    largest = vmaximum(vmax(vmax(m0, m1), vmax(m2, m3)));
  }
  for (; i < n; ++i) largest = value[i] > largest ? value[i] : largest;
  return largest;
}

// The log of the sum of the exponentials of a row.
inline double log_sum(const mt_logprobs& op, int row, float largest) {
  const int n = op.sampleable;
  const float* value = op.logits + row * op.logits_stride;
  double total = 0.0;
  const vf shift = vset(largest);
  int i = 0;
  for (; i + kChunk <= n; i += kChunk) {
    if (row + 1 < op.rows) fetch(value + op.logits_stride + i, kChunk);
    vf even = vzero(), odd = vzero();
    for (int j = i; j < i + kChunk; j += 2 * W) {
      even = even + vexp(vload(value + j) - shift);
      odd = odd + vexp(vload(value + j + W) - shift);
    }
    total += vsum(even + odd);
  }
  if (i < n) total += weigh_sum(value + i, n - i, Scale(largest, 1.0f));
  return static_cast<double>(largest) + __builtin_log(total);
}

// What a digest asks for: the raw logit, and in top_logprobs (rows, 2) the largest and the log of
// the sum.
inline void digest_row(const mt_logprobs& op, int row) {
  const int n = op.sampleable;
  const float* value = op.logits + row * op.logits_stride;
  const float largest = greatest(value, n);
  op.logprob[row] = value[op.ids[row]];
  op.top_logprobs[row * 2] = largest;
  op.top_logprobs[row * 2 + 1] = static_cast<float>(log_sum(op, row, largest));
}

inline int count_above(const float* value, int n, const float* maxima, float x) {
  int count = 0;
  for (int b = 0; b * kBlock < n; ++b) {
    if (!(maxima[b] > x)) continue;
    const int end = imin(n, (b + 1) * kBlock);
    for (int i = b * kBlock; i < end; ++i) count += value[i] > x ? 1 : 0;
  }
  return count;
}

// The `wanted` likeliest of the candidates come first, in order; of equal logits the lower id.
inline void sort_first(Candidates& found, int count, int wanted) {
  for (int i = 0; i < wanted; ++i) {
    int best = i;
    for (int j = i + 1; j < count; ++j) {
      const float a = found.value[j], b = found.value[best];
      if (a > b || (a == b && found.id[j] < found.id[best])) best = j;
    }
    const float value = found.value[i];
    const int32_t id = found.id[i];
    found.value[i] = found.value[best];
    found.id[i] = found.id[best];
    found.value[best] = value;
    found.id[best] = id;
  }
}

inline void logprobs_row(const mt_logprobs& op, int row) {
  if (op.top_n < 0) return digest_row(op, row);
  const int n = op.sampleable, blocks = ceil_div(n, kBlock);
  const float* value = op.logits + row * op.logits_stride;
  char* memory = static_cast<char*>(
      scratch(kScratchB, kth_bytes(blocks) + size_t(blocks) * sizeof(float)));
  float* maxima = reinterpret_cast<float*>(memory + kth_bytes(blocks));
  const float largest = block_maxima(value, n, maxima);
  const double total = log_sum(op, row, largest);
  const float chosen = value[op.ids[row]];
  op.logprob[row] = static_cast<float>(chosen - total);
  op.rank[row] = 1 + count_above(value, n, maxima, chosen);
  if (op.top_n <= 0) return;
  Candidates found(scratch(kScratchC, Candidates::bytes(n)), n);
  const float floor = floor_for(op.top_n, maxima, blocks, memory);
  sort_first(found, found.collect(value, n, maxima, floor), op.top_n);
  for (int i = 0; i < op.top_n; ++i) {
    op.top_ids[row * op.top_n + i] = found.id[i];
    op.top_logprobs[row * op.top_n + i] = static_cast<float>(found.value[i] - total);
  }
}

}  // namespace

void logprobs(const mt_logprobs& op) {
  auto job = [&](int row) { logprobs_row(op, row); };
  parallel_for(op.rows, job);
}

}  // namespace MT_ISA
}  // namespace mt
