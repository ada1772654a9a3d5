/* mt_device_sample: one token per row, as Operations.sample and kernels/reference_sampling.py say.
 *
 * Five steps for at most kRowGroup rows at a time, so that the scratch stays small; a row is cut
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
#include "sampling.muh"

namespace mt {
namespace {

constexpr int kRowGroup = 32;
constexpr int kChunk = 4096;
constexpr int kEach = kChunk / kRowThreads;
constexpr int kBins = 256;
constexpr int kSeenInPrompt = 1, kOneOutput = 2; /* `counts`: a flag, and twice the output's count */

/* Where the scratch of a group of rows lies. `list` takes over the memory of `counts`. */
struct Scratch {
  float* scores;         /* (rows, sampleable) */
  int32_t* counts;       /* (rows, sampleable) */
  uint32_t* chunk_keys;  /* (rows, chunks) */
  int32_t* chunk_ids;    /* (rows, chunks) */
  uint64_t* chunk_sums;  /* (rows, chunks) */
  uint16_t* histograms;  /* (rows, chunks, kBins) */
  int32_t* list_lengths; /* (rows) */
  int chunks, first_row;
};

/* Lays the arrays out in `memory` and returns their size in bytes. */
int64_t lay_out(const mt_sample& op, void* memory, Scratch* scratch) {
  const int64_t rows = smaller(op.rows, kRowGroup), ids = rows * op.sampleable;
  const int chunks = ceil_div(op.sampleable, kChunk);
  unsigned char* base = static_cast<unsigned char*>(memory);
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    unsigned char* at = base == nullptr ? nullptr : base + used;
    used += ceil_div<int64_t>(bytes, 256) * 256;
    return static_cast<void*>(at);
  };
  scratch->scores = static_cast<float*>(take(ids * 4));
  scratch->counts = static_cast<int32_t*>(take(ids * 4));
  scratch->chunk_keys = static_cast<uint32_t*>(take(rows * chunks * 4));
  scratch->chunk_ids = static_cast<int32_t*>(take(rows * chunks * 4));
  scratch->chunk_sums = static_cast<uint64_t*>(take(rows * chunks * 8));
  scratch->histograms = static_cast<uint16_t*>(take(rows * chunks * kBins * 2));
  scratch->list_lengths = static_cast<int32_t*>(take(rows * 4));
  scratch->chunks = chunks;
  scratch->first_row = 0;
  return used;
}

/* What a block knows of its row; the same for all its threads. */
struct Row {
  int index; /* in the batch */
  int64_t slot; /* in the scratch */
  int ids;
  bool penalised, edited, limited, cut_by_count;
  float temperature, top_p, min_p;
  int top_k;
  const float* scores; /* (ids): the logits themselves where nothing edits them */

  __device__ Row(const mt_sample& op, const Scratch& scratch, int in_group)
      : index(scratch.first_row + in_group), slot(in_group), ids(op.sampleable) {
    penalised = has(op.prompt_offsets) || has(op.output_offsets);
    edited = penalised || op.mask != nullptr || has(op.banned_offsets) || has(op.bias_offsets);
    temperature = op.temperature[index];
    top_k = op.top_k[index];
    top_p = op.top_p[index];
    min_p = op.min_p[index];
    cut_by_count = top_k > 0 && top_k < ids;
    limited = cut_by_count || top_p < 1.0f;
    scores = edited ? scratch.scores + slot * ids : op.logits + index * op.logits_stride;
  }
  __device__ bool has(const int32_t* offsets) const { return offsets[index + 1] > offsets[index]; }
  __device__ bool inside(int32_t id) const { return id >= 0 && id < ids; }
};

/* The greatest logit of a row; every thread gets it. */
struct Largest {
  uint32_t key;
  int32_t id;
};
/* Of each thread's own (greatest key, its lowest id) to that of the block. */
__device__ inline Largest block_largest(uint32_t key, int32_t id) {
  const uint32_t most = block_max<kRowThreads>(key);
  return Largest{most, -block_max<kRowThreads>(key == most ? -id : -kNoId)};
}
__device__ inline Largest row_largest(const Scratch& scratch, const Row& row) {
  const int64_t at = row.slot * scratch.chunks;
  uint32_t key = 0u;
  int32_t id = kNoId;
  for (int chunk = static_cast<int>(threadIdx.x); chunk < scratch.chunks; chunk += kRowThreads) {
    const uint32_t other = scratch.chunk_keys[at + chunk];
    if (other > key || id == kNoId) {
      key = other;
      id = scratch.chunk_ids[at + chunk];
    }
  }
  return block_largest(key, id);
}
/* Nothing to draw: the likeliest token it is. */
__device__ inline bool greedy(const Row& row, const Largest& largest) {
  return !(row.temperature > 0.0f) || largest.key <= kForbiddenKey;
}

/* grid (chunks, rows of the group) */
__global__ void __launch_bounds__(kRowThreads) edit_rows(mt_sample op, Scratch scratch) {
  const Row row(op, scratch, static_cast<int>(blockIdx.y));
  if (!row.edited) return;
  const int begin = static_cast<int>(blockIdx.x) * kChunk, end = smaller(begin + kChunk, row.ids);
  const float* logits = op.logits + row.index * op.logits_stride;
  const int32_t* mask = op.mask == nullptr ? nullptr : op.mask + row.index * op.mask_stride;
  float* scores = scratch.scores + row.slot * row.ids;
  int32_t* counts = scratch.counts + row.slot * row.ids;
  for (int id = begin + static_cast<int>(threadIdx.x); id < end; id += kRowThreads) {
    const bool allowed =
        mask == nullptr || (static_cast<uint32_t>(mask[id / 32]) >> (id % 32) & 1u) != 0u;
    scores[id] = allowed ? logits[id] : float_of(0xff800000u);
    if (row.penalised) counts[id] = 0;
  }
}

/* Adds the biases in the order of the list: of equal ids the first one's thread does it for all. */
__device__ inline void add_biases(const mt_sample& op, const Row& row, float* scores) {
  const int begin = op.bias_offsets[row.index], end = op.bias_offsets[row.index + 1];
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kRowThreads) {
    const int32_t id = op.bias_ids[i];
    bool first = row.inside(id);
    for (int j = begin; first && j < i; ++j) first = op.bias_ids[j] != id;
    if (!first) continue;
    float score = scores[id];
    for (int j = i; j < end; ++j) {
      if (op.bias_ids[j] == id) score += op.bias_values[j];
    }
    scores[id] = score;
  }
}

/* grid (rows of the group) */
__global__ void __launch_bounds__(kRowThreads) apply_lists(mt_sample op, Scratch scratch) {
  const Row row(op, scratch, static_cast<int>(blockIdx.x));
  if (!row.edited) return;
  const int thread = static_cast<int>(threadIdx.x);
  float* scores = scratch.scores + row.slot * row.ids;
  int32_t* counts = scratch.counts + row.slot * row.ids;
  for (int i = op.banned_offsets[row.index] + thread; i < op.banned_offsets[row.index + 1];
       i += kRowThreads) {
    if (row.inside(op.banned_ids[i])) scores[op.banned_ids[i]] = float_of(0xff800000u);
  }
  for (int i = op.prompt_offsets[row.index] + thread; i < op.prompt_offsets[row.index + 1];
       i += kRowThreads) {
    if (row.inside(op.prompt_tokens[i])) counts[op.prompt_tokens[i]] = kSeenInPrompt;
  }
  __syncthreads();
  add_biases(op, row, scores);
  for (int i = op.output_offsets[row.index] + thread; i < op.output_offsets[row.index + 1];
       i += kRowThreads) {
    if (row.inside(op.output_tokens[i])) atomicAdd(counts + op.output_tokens[i], kOneOutput);
  }
}

__device__ inline float penalised(const mt_sample& op, const Row& row, float score, int count) {
  if (count == 0) return score;
  const float repetition = op.repetition_penalty[row.index];
  score = score > 0.0f ? score / repetition : score * repetition;
  if (count < kOneOutput) return score;
  score -= op.frequency_penalty[row.index] * static_cast<float>(count / kOneOutput);
  return score - op.presence_penalty[row.index];
}

/* grid (chunks, rows of the group) */
__global__ void __launch_bounds__(kRowThreads) find_maxima(mt_sample op, Scratch scratch) {
  const Row row(op, scratch, static_cast<int>(blockIdx.y));
  const int begin = static_cast<int>(blockIdx.x) * kChunk, end = smaller(begin + kChunk, row.ids);
  float* scores = scratch.scores + row.slot * row.ids;
  const int32_t* counts = scratch.counts + row.slot * row.ids;
  uint32_t key = 0u;
  int32_t best = kNoId;
  for (int id = begin + static_cast<int>(threadIdx.x); id < end; id += kRowThreads) {
    float score = row.scores[id];
    if (row.penalised) {
      score = penalised(op, row, score, counts[id]);
      scores[id] = score;
    }
    const uint32_t own = key_of(score);
    if (own > key || best == kNoId) {
      key = own;
      best = id;
    }
  }
  const Largest largest = block_largest(key, best);
  if (threadIdx.x == 0) {
    scratch.chunk_keys[row.slot * scratch.chunks + blockIdx.x] = largest.key;
    scratch.chunk_ids[row.slot * scratch.chunks + blockIdx.x] = largest.id;
  }
}

/* The bin of a distance; those of the last kBins - 1 weigh nothing. */
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
