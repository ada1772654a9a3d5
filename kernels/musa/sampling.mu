/* mt_device_sample: one token per row, as Operations.sample and kernels/reference_sampling.py say.
 *
 * Six steps for at most kRowGroup rows at a time, so that the scratch stays small; a row is cut
 * into chunks of kChunk ids, most steps run over (chunks, rows):
 *   edit    logits under mask into scratch, and zero counts: rows with lists or a mask alone
 *   lists   bans, biases, and counts of prompt and output tokens: a block per row
 *   maxima  penalties; each chunk's greatest logit and its lowest id
 *   weigh   each chunk's sum of weights, or for rows with top-k or top-p a histogram by distance
 *           from the greatest logit, in quarters of a factor of two
 *   gather  ids of the bins that surely hold the top-k or the nucleus, in order, into a list
 *   choose  the exact cut in that list by radix (no sort), then the draw
 * Sums are integers (sampling.muh says what that guarantees), so nothing here depends on the order
 * of threads. Logits are float32 and only read. A NaN counts as -inf; a row without any logit
 * above -inf gives its lowest id. Unproven on hardware.
 */
#include "sampling_rows.muh"

namespace mt {
namespace {

/* The bin of a distance; ids from bin 176 on weigh nothing. */
__device__ inline int bin_of(uint64_t distance) {
  return static_cast<int>(smaller(distance >> 54, uint64_t{kBins - 1}));
}
/* No weight of the bin is more than this. */
__device__ inline uint64_t most_in_bin(int bin) {
  uint64_t most = 0x40000000000u; /* 2^42, and 2^42 / 2^(1/4), ..., rounded up */
  if (bin % 4 == 1) most = 0x35d13f32b5bu;
  if (bin % 4 == 2) most = 0x2d413cccfe8u;
  if (bin % 4 == 3) most = 0x260dfc14637u;
  return (most >> (bin / 4)) + 1;
}

/* The ids of a chunk that weigh as much as min_p asks. */
struct ChunkEntries {
  const float* scores;
  Weigher weigher;
  float min_p;
  int count;

  __device__ uint64_t amount(int i) const {
    const uint64_t distance = weigher.distance(key_of(scores[i]));
    if (min_p > 0.0f && !Weigher::reaches(distance, min_p)) return 0;
    return Weigher::weight(distance);
  }
};
__device__ inline ChunkEntries chunk_entries(const Row& row, const Weigher& weigher, int chunk,
                                             float min_p) {
  const int begin = chunk * kChunk;
  return ChunkEntries{row.scores + begin, weigher, min_p, smaller(kChunk, row.ids - begin)};
}

/* grid (chunks, rows of the group) */
__global__ void __launch_bounds__(kRowThreads) weigh_chunks(mt_sample op, Scratch scratch) {
  MT_SHARED(uint32_t, bins, kBins);
  const Row row(op, scratch, static_cast<int>(blockIdx.y));
  const int chunk = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const Largest largest = row_largest(scratch, row);
  if (greedy(row, largest)) return;
  const Weigher weigher(row.temperature, largest.key);
  if (!row.cut_by_count) {
    /* top-p takes its share of all weights, and min-p comes after it. */
    const uint64_t sum =
        total_of(chunk_entries(row, weigher, chunk, row.limited ? 0.0f : row.min_p));
    if (thread == 0) scratch.chunk_sums[row.slot * scratch.chunks + chunk] = sum;
  }
  if (!row.limited) return;
  bins[thread] = 0u;
  __syncthreads();
  const int end = smaller((chunk + 1) * kChunk, row.ids);
  for (int id = chunk * kChunk + thread; id < end; id += kRowThreads) {
    atomicAdd(bins + bin_of(weigher.distance(key_of(row.scores[id]))), 1u);
  }
  __syncthreads();
  scratch.histograms[(row.slot * scratch.chunks + chunk) * kBins + thread] =
      static_cast<uint16_t>(bins[thread]);
}

__device__ inline uint64_t total_of_chunks(const Scratch& scratch, const Row& row) {
  uint64_t total = 0;
  for (int chunk = 0; chunk < scratch.chunks; ++chunk) {
    total += scratch.chunk_sums[row.slot * scratch.chunks + chunk];
  }
  return total;
}

/* The last bin that is needed: its ids and those before it surely hold the top-k or, when there is
 * none, the nucleus. `count`: thread t's is the number of ids in bin t. */
__device__ inline int last_bin(const Scratch& scratch, const Row& row, uint32_t* counts) {
  MT_SHARED(int, found, 1);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) found[0] = row.cut_by_count ? kBins - 1 : 0;
  if (row.cut_by_count) {
    const uint64_t own = counts[thread], before = block_scan(own).before;
    const uint64_t wanted = static_cast<uint64_t>(row.top_k);
    if (before < wanted && before + own >= wanted) found[0] = thread;
  } else {
    /* Bins may be dropped from the end while they weigh no more than the nucleus leaves out. */
    const int bin = kBins - 1 - thread;
    const uint64_t total = total_of_chunks(scratch, row);
    const uint64_t spare = total - share_of(row.top_p, total);
    const uint64_t own = bin == kBins - 1 ? 0 : counts[bin] * most_in_bin(bin);
    const uint64_t behind = block_scan(own).before;
    if (behind <= spare && behind + own > spare) found[0] = bin;
  }
  __syncthreads();
  const int result = found[0];
  __syncthreads();
  return result;
}

/* grid (chunks, rows of the group) */
__global__ void __launch_bounds__(kRowThreads) gather_candidates(mt_sample op, Scratch scratch) {
  MT_SHARED(uint32_t, counts, kBins);
  MT_SHARED(uint32_t, keys, kChunk);
  const Row row(op, scratch, static_cast<int>(blockIdx.y));
  const int chunk = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const Largest largest = row_largest(scratch, row);
  if (!row.limited || greedy(row, largest)) return;
  const uint16_t* histograms = scratch.histograms + row.slot * scratch.chunks * kBins;
  uint32_t before = 0u, all = 0u;
  for (int other = 0; other < scratch.chunks; ++other) {
    if (other == chunk) before = all;
    all += histograms[other * kBins + thread];
  }
  counts[thread] = all;
  const int begin = chunk * kChunk, count = smaller(kChunk, row.ids - begin);
  for (int i = thread; i < count; i += kRowThreads) keys[i] = key_of(row.scores[begin + i]);
  __syncthreads();
  /* What weighs nothing is never drawn. */
  const int last = smaller(last_bin(scratch, row, counts), kBins - 2);
  const int first = static_cast<int>(block_sum<kRowThreads>(thread <= last ? before : 0u));
  const Weigher weigher(row.temperature, largest.key);
  const int own_begin = smaller(thread * kEach, count), own_end = smaller(own_begin + kEach, count);
  uint32_t chosen = 0u; /* bit i: the thread's i-th id */
  uint64_t number = 0;
  for (int i = own_begin; i < own_end; ++i) {
    if (bin_of(weigher.distance(keys[i])) > last) continue;
    chosen |= 1u << (i - own_begin);
    ++number;
  }
  const Scan scan = block_scan(number);
  int32_t* list = scratch.counts + row.slot * row.ids;
  int at = first + static_cast<int>(scan.before);
  for (int i = 0; i < kEach; ++i) {
    if ((chosen >> i & 1u) != 0u) list[at++] = begin + own_begin + i;
  }
  if (chunk == scratch.chunks - 1 && thread == 0) {
    scratch.list_lengths[row.slot] = first + static_cast<int>(scan.total);
  }
}

/* What candidates count for in a search. */
enum Measure { kOne, kWeight, kTies };

/* Candidates with a key of at least `least`. */
template <Measure measure>
struct Candidates {
  const float* scores;
  const int32_t* list;
  Weigher weigher;
  uint32_t least;
  int count;

  __device__ uint32_t key(int i) const { return key_of(scores[list[i]]); }
  __device__ uint64_t amount(int i) const {
    const uint32_t own = key(i);
    if (measure == kTies) return own == least ? 1 : 0;
    if (own < least) return 0;
    return measure == kOne ? 1 : Weigher::weight(weigher.distance(own));
  }
};

/* Candidates that remain: likelier than (key, id) or that itself, and likely enough. */
struct Remaining {
  const float* scores;
  const int32_t* list;
  Weigher weigher;
  uint32_t last_key;
  int32_t last_id;
  float min_p;
  int count;

  __device__ uint64_t amount(int i) const {
    const uint32_t own = key_of(scores[list[i]]);
    if (own < last_key || (own == last_key && list[i] > last_id)) return 0;
    const uint64_t distance = weigher.distance(own);
    if (min_p > 0.0f && !Weigher::reaches(distance, min_p)) return 0;
    return Weigher::weight(distance);
  }
};

/* Philox4x32-10: 2^25 times u, an odd number. */
__device__ inline uint64_t random_number(const mt_sample& op, int row) {
  const uint64_t seed = static_cast<uint64_t>(op.seeds[row]);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t x0 = static_cast<uint32_t>(op.positions[row]);
  uint32_t x1 = static_cast<uint32_t>(op.choices[row]), x2 = 0u, x3 = 0u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * x0, product1 = uint64_t{0xCD9E8D57u} * x2;
    x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
    x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x1 = static_cast<uint32_t>(product1);
    x3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return uint64_t{x0 >> 8} * 2 + 1;
}
/* u times the total, rounded down: whole numbers exceed one if and only if they exceed the other. */
__device__ inline uint64_t target_of(const mt_sample& op, int row, uint64_t total) {
  return shift_right(multiply(random_number(op, row), total), 25);
}

/* A draw from the whole row: the chunk first. */
__device__ inline int32_t draw_any(const mt_sample& op, const Scratch& scratch, const Row& row,
                                   const Weigher& weigher) {
  const uint64_t* sums = scratch.chunk_sums + row.slot * scratch.chunks;
  uint64_t target = target_of(op, row.index, total_of_chunks(scratch, row));
  int chunk = 0;
  while (chunk < scratch.chunks - 1 && sums[chunk] <= target) target -= sums[chunk++];
  const int found = first_beyond(chunk_entries(row, weigher, chunk, row.min_p), target);
  return found < 0 ? kNoId : chunk * kChunk + found;
}

/* A draw from the list, cut by top-k, top-p and min-p. */
__device__ inline int32_t draw_limited(const mt_sample& op, const Scratch& scratch, const Row& row,
                                       const Weigher& weigher) {
  const int32_t* list = scratch.counts + row.slot * row.ids;
  const int count = scratch.list_lengths[row.slot];
  uint32_t last_key = 0u;
  int32_t last_id = kNoId;
  if (row.cut_by_count && count > row.top_k) {
    last_key = cut_at(Candidates<kOne>{row.scores, list, weigher, 0u, count},
                      static_cast<uint64_t>(row.top_k)).key;
  }
  if (row.top_p < 1.0f) {
    const Candidates<kWeight> kept{row.scores, list, weigher, last_key, count};
    const uint64_t total = row.cut_by_count ? total_of(kept) : total_of_chunks(scratch, row);
    const uint64_t need = share_of(row.top_p, total);
    const Cut cut = cut_at(kept, need);
    last_key = cut.key;
    /* Of the tokens at the cut the first few suffice; all weigh the same. */
    const uint64_t weight = Weigher::weight(weigher.distance(cut.key));
    const uint64_t ties = weight > 0 ? ceil_div(need - cut.above, weight) : 0;
    if (ties > 0 && ties * weight < cut.equal) {
      const Candidates<kTies> tied{row.scores, list, weigher, last_key, count};
      last_id = list[first_beyond(tied, ties - 1)];
    }
  }
  const Remaining remaining{row.scores, list, weigher, last_key, last_id, row.min_p, count};
  const int found = first_beyond(remaining, target_of(op, row.index, total_of(remaining)));
  return found < 0 ? kNoId : list[found];
}

/* grid (rows of the group) */
__global__ void __launch_bounds__(kRowThreads) choose_ids(mt_sample op, Scratch scratch) {
  const Row row(op, scratch, static_cast<int>(blockIdx.x));
  const Largest largest = row_largest(scratch, row);
  int32_t id = largest.id;
  if (!greedy(row, largest)) {
    const Weigher weigher(row.temperature, largest.key);
    const int32_t drawn =
        row.limited ? draw_limited(op, scratch, row, weigher) : draw_any(op, scratch, row, weigher);
    if (drawn != kNoId) id = drawn;
  }
  if (threadIdx.x == 0) op.ids[row.index] = id;
}

bool supported(const mt_sample& op) {
  return op.rows >= 0 && op.sampleable > 0 && op.sampleable <= kMaxSampleable;
}

int sample_rows(const mt_sample& op) {
  Scratch scratch;
  if (!supported(op)) return MT_DEVICE_UNSUPPORTED;
  if (op.rows == 0) return 0;
  if (op.workspace == nullptr || lay_out(op, op.workspace, &scratch) > op.workspace_bytes) {
    return static_cast<int>(musaErrorInvalidValue);
  }
  for (int row = 0; row < op.rows; row += kRowGroup) {
    scratch.first_row = row;
    const unsigned rows = static_cast<unsigned>(smaller(kRowGroup, op.rows - row));
    const dim3 chunks(static_cast<unsigned>(scratch.chunks), rows);
    MT_LAUNCH(edit_rows, chunks, kRowThreads, 0, op.stream, op, scratch);
    MT_LAUNCH(apply_lists, rows, kRowThreads, 0, op.stream, op, scratch);
    MT_LAUNCH(find_maxima, chunks, kRowThreads, 0, op.stream, op, scratch);
    MT_LAUNCH(weigh_chunks, chunks, kRowThreads, 0, op.stream, op, scratch);
    MT_LAUNCH(gather_candidates, chunks, kRowThreads, 0, op.stream, op, scratch);
    MT_LAUNCH(choose_ids, rows, kRowThreads, 0, op.stream, op, scratch);
  }
  return launched();
}

}  // namespace
}  // namespace mt

int64_t mt_device_sample_workspace(const mt_sample* op) {
  mt::Scratch scratch;
  return mt::supported(*op) ? mt::lay_out(*op, nullptr, &scratch) : MT_DEVICE_UNSUPPORTED;
}

int mt_device_sample(const mt_sample* op) { return mt::sample_rows(*op); }
