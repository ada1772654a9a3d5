// Sampling without a sort: thresholds are found by selection, sums are float64.
//
// A row is handled by one thread and independently of the others. Operations.sample states the
// order of steps and the exact rules; the numbers come from Philox4x32-10.

#include "candidates.h"
#include "isa.h"
#include "pool.h"

namespace mt {
namespace MT_ISA {
namespace {

inline double uniform(int64_t seed, int32_t choice, int32_t position) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(uint64_t(seed) >> 32);
  uint32_t x0 = static_cast<uint32_t>(position), x1 = static_cast<uint32_t>(choice), x2 = 0, x3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{x0} * 0xD2511F53u, product1 = uint64_t{x2} * 0xCD9E8D57u;
    x0 = static_cast<uint32_t>(product1 >> 32) ^ x1 ^ key0;
    x2 = static_cast<uint32_t>(product0 >> 32) ^ x3 ^ key1;
    x1 = static_cast<uint32_t>(product1);
    x3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return (static_cast<double>(x0 >> 8) + 0.5) * 5.9604644775390625e-8;
}

// Draws one row's token.
struct Sampler {
  const mt_sample& op;
  const int row, n, blocks;
  const float* value;
  float *edited, *maxima;
  double* sums;
  char* spare;

  Sampler(const mt_sample& o, int r)
      : op(o), row(r), n(o.sampleable), blocks(ceil_div(n, kBlock)),
        value(o.logits + r * o.logits_stride) {}

  // Scratch A holds edited logits, B what every row needs, C candidates, D counts of tokens or what
  // a selection reorders.
  void reserve() {
    const size_t chunks = size_t(ceil_div(n, kChunk)) * sizeof(double), spares = kth_bytes(blocks);
    const size_t bytes = chunks + spares + size_t(blocks) * sizeof(float);
    spare = static_cast<char*>(scratch(kScratchB, bytes));
    sums = reinterpret_cast<double*>(spare + spares);
    maxima = reinterpret_cast<float*>(spare + spares + chunks);
  }

  bool has(const int32_t* offsets) const { return offsets[row + 1] > offsets[row]; }

  void edit() {
    if (op.mask == nullptr && !has(op.banned_offsets) && !has(op.bias_offsets) &&
        !has(op.prompt_offsets) && !has(op.output_offsets)) {
      return;
    }
    edited = static_cast<float*>(scratch(kScratchA, size_t(n) * sizeof(float)));
    memcpy(edited, value, size_t(n) * sizeof(float));
    value = edited;
    if (op.mask != nullptr) forbid(op.mask + row * op.mask_stride);
    for (int i = op.banned_offsets[row]; i < op.banned_offsets[row + 1]; ++i) {
      if (inside(op.banned_ids[i])) edited[op.banned_ids[i]] = -kInfinity;
    }
    for (int i = op.bias_offsets[row]; i < op.bias_offsets[row + 1]; ++i) {
      if (inside(op.bias_ids[i])) edited[op.bias_ids[i]] += op.bias_values[i];
    }
    penalise();
  }

  // Most words of a grammar's mask are all ones or all zeros.
  void forbid(const int32_t* mask) {
    for (int i = 0; i < n; i += 32) {
      const uint32_t word = static_cast<uint32_t>(mask[i / 32]);
      if (word == 0xffffffffu) continue;
      for (int j = 0; j < imin(32, n - i); ++j) {
        if (word == 0 || (word >> j & 1u) == 0) edited[i + j] = -kInfinity;
      }
    }
  }

  bool inside(int32_t id) const { return id >= 0 && id < n; }

  template <typename F>
  void each(const int32_t* tokens, const int32_t* offsets, F f) const {
    for (int i = offsets[row]; i < offsets[row + 1]; ++i) {
      if (inside(tokens[i])) f(tokens[i]);
    }
  }

  void penalise() {
    if (!has(op.prompt_offsets) && !has(op.output_offsets)) return;
    // Only the entries of the tokens named are ever read, so only they are cleared.
    int32_t* count = static_cast<int32_t*>(scratch(kScratchD, size_t(n) * sizeof(int32_t)));
    const auto clear = [&](int32_t id) { count[id] = 0; };
    const float repetition = op.repetition_penalty[row];
    const auto repeat = [&](int32_t id) {
      if (count[id] != 0) return;
      count[id] = 1;
      edited[id] = edited[id] > 0.0f ? edited[id] / repetition : edited[id] * repetition;
    };
    each(op.prompt_tokens, op.prompt_offsets, clear);
    each(op.output_tokens, op.output_offsets, clear);
    each(op.prompt_tokens, op.prompt_offsets, repeat);
    each(op.output_tokens, op.output_offsets, repeat);
    each(op.output_tokens, op.output_offsets, clear);
    each(op.output_tokens, op.output_offsets, [&](int32_t id) { ++count[id]; });
    each(op.output_tokens, op.output_offsets, [&](int32_t id) {
      if (count[id] == 0) return;
      edited[id] -= op.frequency_penalty[row] * static_cast<float>(count[id]);
      edited[id] -= op.presence_penalty[row];
      count[id] = 0;
    });
  }

  int32_t choose() {
    edit();
    reserve();
    const float largest = block_maxima(value, n, maxima);
    if (!(op.temperature[row] > 0.0f)) return first_equal(value, n, maxima, largest);
    const Scale scale(largest, op.temperature[row]);
    const double u = uniform(op.seeds[row], op.choices[row], op.positions[row]);
    const bool limited = op.top_k[row] > 0 && op.top_k[row] < n;
    if (!limited && !(op.top_p[row] < 1.0f) && !(op.min_p[row] > 0.0f)) return draw_any(scale, u);
    return draw_limited(scale, u, limited);
  }

  // Sum the weights of each chunk.
  void sum_chunks(const Scale& scale) {
    for (int begin = 0; begin < n; begin += kChunk) {
      const int count = imin(kChunk, n - begin);
      if (row + 1 < op.rows) fetch(op.logits + (row + 1) * op.logits_stride + begin, count);
      sums[begin / kChunk] = weigh_sum(value + begin, count, scale);
    }
  }

  int32_t draw_any(const Scale& scale, double u) {
    sum_chunks(scale);
    double weight[kChunk];
    return draw(n, sums, u, [&](int c) {
      weigh(value + c * kChunk, imin(kChunk, n - c * kChunk), scale, weight);
      return weight;
    });
  }

  int32_t draw_limited(const Scale& scale, double u, bool limited) {
    const double top_p = op.top_p[row], min_p = op.min_p[row];
    Candidates found(scratch(kScratchC, Candidates::bytes(n)), n);
    int count;
    if (!limited && top_p < 1.0) {
      count = collect_nucleus(found, scale, top_p);
    } else {
      count = limited ? collect_top_k(found, op.top_k[row]) : collect(found, scale.floor(min_p));
      weigh(found.value, count, scale, found.weight);
      if (top_p < 1.0) keep_nucleus(found, count, top_p * sum(found.weight, count));
    }
    if (count == 0) return 0;
    for (int i = 0; i < count; ++i) {
      found.weight[i] = found.weight[i] >= min_p ? found.weight[i] : 0.0;
    }
    for (int begin = 0; begin < count; begin += kChunk) {
      sums[begin / kChunk] = sum(found.weight + begin, imin(kChunk, count - begin));
    }
    return found.id[draw(count, sums, u, [&](int c) { return found.weight + c * kChunk; })];
  }

  // The nucleus of the whole row, among others that have no weight.
  int collect_nucleus(Candidates& found, const Scale& scale, double top_p) {
    sum_chunks(scale);
    const double total = sum(sums, ceil_div(n, kChunk)), need = top_p * total;
    // Even n weights below the first would be less than what the nucleus leaves out.
    const float sure = scale.floor((total - need) / n), likely = guess_floor(scale, total - need);
    int count = collect(found, likely > sure ? likely : sure);
    weigh(found.value, count, scale, found.weight);
    // The margin is so that rounding of the sums cannot move the cut.
    if (likely > sure && sum(found.weight, count) < need * (1.0 + 1e-9)) {
      count = collect(found, sure);
      weigh(found.value, count, scale, found.weight);
    }
    keep_nucleus(found, count, need);
    return count;
  }

  // A floor that leaves out three quarters of the weight `drop` if a sample is like the row.
  float guess_floor(const Scale& scale, double drop) {
    const int each = 16, step = 32 * each, most = ceil_div(n, step) * each;
    double* key = static_cast<double*>(scratch(kScratchD, size_t(most) * 2 * sizeof(double)));
    double* weight = key + most;
    int count = 0;
    for (int i = 0; i + each <= n; i += step, count += each) {
      for (int j = 0; j < each; ++j) key[count + j] = value[i + j];
      weigh(value + i, each, scale, weight + count);
    }
    const double need = sum(weight, count) - 0.75 * drop * count / n;
    return need > 0.0 ? static_cast<float>(nucleus_of(key, weight, count, need).end) : -kInfinity;
  }

  // Those that reach the floor; what is -inf never does.
  int collect(Candidates& found, float floor) const {
    return found.collect(value, n, maxima, floor > -__FLT_MAX__ ? floor : -__FLT_MAX__);
  }

  int collect_top_k(Candidates& found, int k) {
    const int count = collect(found, floor_for(k, maxima, blocks, spare));
    if (count <= k) return count;
    void* memory = scratch(kScratchD, kth_bytes(count));
    return collect(found, kth_largest(found.value, count, k, memory));
  }

  // What is not in the nucleus loses its weight.
  void keep_nucleus(Candidates& found, int count, double need) {
    if (count == 0) return;
    double* key = static_cast<double*>(scratch(kScratchD, size_t(count) * 2 * sizeof(double)));
    for (int i = 0; i < count; ++i) key[i] = found.value[i];
    memcpy(key + count, found.weight, size_t(count) * sizeof(double));
    const Nucleus nucleus = nucleus_of(key, key + count, count, need);
    for (int i = 0; i < count; ++i) {
      found.weight[i] = found.value[i] >= nucleus.end ? found.weight[i] : 0.0;
    }
    // Of equal logits the higher id is the less likely.
    for (int i = count, beyond = nucleus.beyond; beyond > 0 && i-- > 0;) {
      if (found.value[i] != nucleus.end) continue;
      found.weight[i] = 0.0;
      --beyond;
    }
  }
};

}  // namespace

void sample(const mt_sample& op) {
  auto job = [&](int row) { op.ids[row] = Sampler(op, row).choose(); };
  parallel_for(op.rows, job);
}

}  // namespace MT_ISA
}  // namespace mt
