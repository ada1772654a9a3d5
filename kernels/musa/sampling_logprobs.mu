/* mt_device_logprobs: raw log-softmax at one id per row, its rank, and the likeliest ids.
 *
 * A block per row reads its logits (float32) twice: for the greatest and, per thread, the greatest
 * of its own; then for the sum of weights (whole numbers, see sampling.muh), the rank and every
 * logit that reaches the top_n-th of the threads' greatest. Those are few, and are ranked among
 * each other. Where they are many (ties, or top_n beyond kRowThreads) the cuts are found by radix
 * instead, kBest ids at a time. logprob = (logit - greatest) - log(sum), in float: within 3e-6 of
 * the true one while logits differ by less than 30. Ties go to the lower id. Must match
 * kernels/reference_sampling.py: logprobs. Unproven on hardware.
 */
#include "sampling.muh"

namespace mt {
namespace {

constexpr int kBest = 1024;

/* log(total * 2^-kWeightBits), total >= 2^kWeightBits. */
__device__ inline float log_of_weights(uint64_t total) {
  int power = kWeightBits;
  while (total >> power > 1) ++power;
  const uint64_t more = total - (uint64_t{1} << power);
  float part = static_cast<float>(more);
  for (int i = 0; i < power; ++i) part *= 0.5f;
  /* log(1 + part) = 2 atanh(part / (2 + part)) */
  const float s = part / (2.0f + part), square = s * s;
  float sum = 1.0f / 15.0f;
  MT_UNROLL
  for (int odd = 13; odd > 0; odd -= 2) sum = fmaf(sum, square, 1.0f / static_cast<float>(odd));
  return fmaf(static_cast<float>(power - kWeightBits), 0.693147181f, 2.0f * s * sum);
}

/* What the ids of a row count for: 1 each in (key, id) order after `last`, or the ties alone. */
struct Bound {
  uint32_t key;
  int32_t id;
  __device__ bool before(uint32_t other, int32_t other_id) const {
    return key > other || (key == other && id < other_id);
  }
};
struct After {
  const float* logits;
  Bound last;
  bool any; /* nothing came before */
  int count;
  __device__ uint32_t key(int i) const { return key_of(logits[i]); }
  __device__ uint64_t amount(int i) const { return any || last.before(key(i), i) ? 1 : 0; }
};
struct Ties {
  After after;
  uint32_t tied;
  int count;
  __device__ uint64_t amount(int i) const { return after.key(i) == tied ? after.amount(i) : 0; }
};

struct Best {
  uint32_t* keys;
  int32_t* ids;
  int* count; /* may be more than kBest: then only so many were kept */

  __device__ void add(uint32_t key, int32_t id) const {
    const int at = atomicAdd(count, 1);
    if (at >= kBest) return;
    keys[at] = key;
    ids[at] = id;
  }
};

/* Writes the likeliest `wanted` of `kept` ids in their order; logprob as in the header. */
__device__ inline void write_best(const mt_logprobs& op, const Best& best, int kept, int wanted,
                                  int64_t at, float largest, float log_sum) {
  for (int i = static_cast<int>(threadIdx.x); i < kept; i += kRowThreads) {
    const Bound own{best.keys[i], best.ids[i]};
    int rank = 0;
    for (int j = 0; j < kept; ++j) rank += Bound{best.keys[j], best.ids[j]}.before(own.key, own.id);
    if (rank >= wanted) continue;
    op.top_ids[at + rank] = own.id;
    op.top_logprobs[at + rank] = (float_of(bits_of_key(own.key)) - largest) - log_sum;
  }
}

/* The slow way, kBest at a time. */
__device__ inline void write_by_radix(const mt_logprobs& op, const float* logits, const Best& best,
                                      int64_t at, float largest, float log_sum) {
  After after{logits, Bound{0u, 0}, true, op.sampleable};
  for (int done = 0; done < op.top_n; done += kBest) {
    const int wanted = smaller(kBest, op.top_n - done);
    const Cut cut = cut_at(after, static_cast<uint64_t>(wanted));
    Bound end{cut.key, kNoId};
    const uint64_t ties = static_cast<uint64_t>(wanted) - cut.above;
    if (ties < cut.equal) end.id = first_beyond(Ties{after, cut.key, after.count}, ties - 1);
    if (threadIdx.x == 0) *best.count = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < after.count; i += kRowThreads) {
      if (after.amount(i) != 0 && !end.before(after.key(i), i)) best.add(after.key(i), i);
    }
    __syncthreads();
    write_best(op, best, wanted, wanted, at + done, largest, log_sum);
    __syncthreads();
    after.last = end;
    after.any = false;
  }
}

/* The key that at least `wanted` ids reach: the wanted-th greatest of the threads' greatest. */
__device__ inline uint32_t floor_of(uint32_t own, int wanted, uint32_t* greatest) {
  MT_SHARED(uint32_t, found, 1);
  const int thread = static_cast<int>(threadIdx.x);
  greatest[thread] = own;
  if (thread == 0) found[0] = 0u;
  __syncthreads();
  int rank = 0;
  for (int i = 0; i < kRowThreads; ++i) {
    rank += greatest[i] > own || (greatest[i] == own && i < thread);
  }
  if (rank == wanted - 1) found[0] = own;
  __syncthreads();
  return found[0];
}

/* grid (rows) */
__global__ void __launch_bounds__(kRowThreads) find_logprobs(mt_logprobs op) {
  MT_SHARED(uint32_t, keys, kBest);
  MT_SHARED(int32_t, ids, kBest);
  MT_SHARED(int, kept, 1);
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const float* logits = op.logits + row * op.logits_stride;
  uint32_t own = 0u;
  for (int id = thread; id < op.sampleable; id += kRowThreads) {
    own = larger(own, key_of(logits[id]));
  }
  const uint32_t largest = block_max<kRowThreads>(own);
  const uint32_t floor = floor_of(own, op.top_n, keys);
  if (thread == 0) kept[0] = 0;
  __syncthreads();

  const Best best{keys, ids, kept};
  const Weigher weigher(1.0f, largest);
  const float chosen = logits[op.ids[row]];
  const uint32_t chosen_key = key_of(chosen);
  uint64_t sum = 0;
  int above = 0;
  for (int id = thread; id < op.sampleable; id += kRowThreads) {
    const uint32_t key = key_of(logits[id]);
    sum += Weigher::weight(weigher.distance(key));
    above += key > chosen_key ? 1 : 0;
    if (op.top_n > 0 && floor > 0u && key >= floor) best.add(key, id);
  }
  const uint64_t total = block_scan(sum).total;
  const int rank = 1 + block_sum<kRowThreads>(above);
  const float greatest = float_of(bits_of_key(largest)), log_sum = log_of_weights(total);
  if (thread == 0) {
    op.logprob[row] = (chosen - greatest) - log_sum;
    op.rank[row] = rank;
  }
  const int64_t at = static_cast<int64_t>(row) * op.top_n;
  const int count = kept[0];
  __syncthreads();
  if (count >= op.top_n && count <= kBest) {
    write_best(op, best, count, op.top_n, at, greatest, log_sum);
  } else {
    write_by_radix(op, logits, best, at, greatest, log_sum);
  }
}

}  // namespace
}  // namespace mt

int mt_device_logprobs(const mt_logprobs* op) {
  if (op->sampleable <= 0 || op->sampleable > mt::kMaxSampleable || op->top_n < 0 ||
      op->top_n > op->sampleable) {
    return MT_DEVICE_UNSUPPORTED;
  }
  if (op->rows <= 0) return 0;
  MT_LAUNCH(mt::find_logprobs, static_cast<unsigned>(op->rows), mt::kRowThreads, 0, op->stream, *op);
  return mt::launched();
}
