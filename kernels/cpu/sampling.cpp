// Sampling and logprobs without a sort: thresholds are found by selection, sums are float64.
//
// A row is handled by one thread and independently of the others. Operations.sample states the
// order of steps and the exact rules; the numbers come from Philox4x32-10.

#include "isa.h"
#include "pool.h"
#include "simd.h"

namespace mt {
namespace MT_ISA {
namespace {

typedef double vd __attribute__((vector_size(W * 4)));
typedef int64_t vl __attribute__((vector_size(W * 4)));
typedef float vh __attribute__((vector_size(W * 2)));
constexpr int WD = W / 2;

constexpr int kBlock = 64;    // logits that share one maximum
constexpr int kChunk = 512;   // logits that share one sum of weights
constexpr float kInfinity = __builtin_inff();

struct Candidate {
  float value;
  int32_t id;
  double weight;
};

// exp to about 2e-16 relative for x <= 0; 0 below -700.
MT_INLINE vd exp_double(vd x) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const vd t = x * 1.4426950408889634 + magic;
  const vd n = t - magic;
  vd r = x - n * 6.93147180369123816490e-01;
  r = r - n * 1.90821492927058770002e-10;
  vd p = r * (1.0 / 479001600.0) + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const vl scale = ((vl)t + 1023) << 52;
  return (vd)((vl)(p * (vd)scale) & (vl)(x > -700.0));
}

MT_INLINE vd weigh_vector(const float* value, double largest, double inverse) {
  vh narrow_lanes;
  memcpy(&narrow_lanes, value, sizeof(narrow_lanes));
  return exp_double((__builtin_convertvector(narrow_lanes, vd) - largest) * inverse);
}

// The last n < WD values; the lanes behind them weigh nothing.
MT_INLINE vd weigh_tail(const float* value, int n, double largest, double inverse) {
  float in[WD];
  for (int j = 0; j < WD; ++j) in[j] = j < n ? value[j] : -kInfinity;
  return weigh_vector(in, largest, inverse);
}

// weight[i] = exp((value[i] - largest) * inverse); `weight` has room for whole vectors.
inline void weigh(const float* value, int n, double largest, double inverse, double* weight) {
  int i = 0;
  for (; i + WD <= n; i += WD) {
    const vd w = weigh_vector(value + i, largest, inverse);
    memcpy(weight + i, &w, sizeof(w));
  }
  if (i < n) {
    const vd w = weigh_tail(value + i, n - i, largest, inverse);
    memcpy(weight + i, &w, sizeof(w));
  }
}

MT_INLINE double sum_lanes(vd a) {
  double total = 0.0;
  for (int j = 0; j < WD; ++j) total += a[j];
  return total;
}

// The sum of the weights alone.
inline double weigh_sum(const float* value, int n, double largest, double inverse) {
  vd even = {}, odd = {};
  int i = 0;
  for (; i + 2 * WD <= n; i += 2 * WD) {
    even += weigh_vector(value + i, largest, inverse);
    odd += weigh_vector(value + i + WD, largest, inverse);
  }
  for (; i < n; i += WD) {
    even += i + WD <= n ? weigh_vector(value + i, largest, inverse)
                        : weigh_tail(value + i, n - i, largest, inverse);
  }
  return sum_lanes(even + odd);
}

// The sum of those weights that reach `least`.
inline double sum_from(const double* weight, int n, double least) {
  vd even = {}, odd = {};
  int i = 0;
  for (; i + 2 * WD <= n; i += 2 * WD) {
    vd a, b;
    memcpy(&a, weight + i, sizeof(a));
    memcpy(&b, weight + i + WD, sizeof(b));
    even += (vd)((vl)a & (vl)(a >= least));
    odd += (vd)((vl)b & (vl)(b >= least));
  }
  double total = sum_lanes(even + odd);
  for (; i < n; ++i) total += weight[i] >= least ? weight[i] : 0.0;
  return total;
}

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

// Greatest of each block of logits; returns the greatest of all.
inline float block_maxima(const float* value, int n, float* maxima) {
  float greatest = -kInfinity;
  for (int b = 0; b * kBlock < n; ++b) {
    const float* v = value + b * kBlock;
    const int count = imin(kBlock, n - b * kBlock);
    float most;
    if (count == kBlock) {
      vf m0 = vload(v), m1 = vload(v + W);
      for (int i = 2 * W; i < kBlock; i += 2 * W) {
        m0 = vmax(m0, vload(v + i));
        m1 = vmax(m1, vload(v + i + W));
      }
      most = vmaximum(vmax(m0, m1));
    } else {
      most = v[0];
      for (int i = 1; i < count; ++i) most = v[i] > most ? v[i] : most;
    }
    maxima[b] = most;
    greatest = most > greatest ? most : greatest;
  }
  return greatest;
}

inline int first_equal(const float* value, int n, const float* maxima, float wanted) {
  for (int b = 0; b * kBlock < n; ++b) {
    if (maxima[b] != wanted) continue;
    const int end = imin(n, (b + 1) * kBlock);
    for (int i = b * kBlock; i < end; ++i) {
      if (value[i] == wanted) return i;
    }
  }
  return 0;
}

// The k-th largest of n floats, k from 1; reorders them.
inline float select(float* a, int n, int k) {
  int lo = 0, hi = n;
  uint32_t state = 0x9E3779B9u;
  for (;;) {
    if (hi - lo == 1) return a[lo];
    state = state * 1664525u + 1013904223u;
    const float pivot = a[lo + static_cast<int>(state >> 8) % (hi - lo)];
    // [lo, above) > pivot, [above, i) == pivot, [below, hi) < pivot.
    int above = lo, i = lo, below = hi;
    while (i < below) {
      const float x = a[i];
      if (x > pivot) {
        a[i++] = a[above];
        a[above++] = x;
      } else if (x == pivot) {
        ++i;
      } else {
        a[i] = a[--below];
        a[below] = x;
      }
    }
    if (k <= above - lo) {
      hi = above;
    } else if (k <= below - lo) {
      return pivot;
    } else {
      k -= below - lo;
      lo = below;
    }
  }
}

// A floor that at least k of the values reach: the k-th largest block maximum.
inline float floor_for(int k, const float* maxima, int blocks, float* spare) {
  if (k > blocks) return -kInfinity;
  memcpy(spare, maxima, sizeof(float) * size_t(blocks));
  return select(spare, blocks, k);
}

// Values >= floor (and above -inf) with their ids, in id order.
inline int collect(const float* value, int n, const float* maxima, float floor, Candidate* out) {
  int count = 0;
  for (int b = 0; b * kBlock < n; ++b) {
    if (maxima[b] < floor || maxima[b] == -kInfinity) continue;
    const int end = imin(n, (b + 1) * kBlock);
    for (int i = b * kBlock; i < end; ++i) {
      if (value[i] >= floor && value[i] > -kInfinity) {
        out[count].value = value[i];
        out[count++].id = i;
      }
    }
  }
  return count;
}

MT_INLINE bool likelier(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// The least likely of the fewest likeliest candidates whose weights reach `need`; reorders them.
inline Candidate nucleus_end(Candidate* c, int n, double need) {
  int lo = 0, hi = n;
  double reached = 0.0;
  Candidate last = c[0];
  for (int i = 1; i < n; ++i) {
    if (likelier(last, c[i])) last = c[i];
  }
  uint32_t state = 0x9E3779B9u;
  while (hi > lo) {
    state = state * 1664525u + 1013904223u;
    const int chosen = lo + static_cast<int>(state >> 8) % (hi - lo);
    const Candidate pivot = c[chosen];
    c[chosen] = c[lo];
    c[lo] = pivot;
    int end = lo + 1;
    double above = 0.0;
    for (int i = lo + 1; i < hi; ++i) {
      if (!likelier(c[i], pivot)) continue;
      const Candidate x = c[i];
      c[i] = c[end];
      c[end++] = x;
      above += x.weight;
    }
    c[lo] = c[end - 1];
    c[end - 1] = pivot;
    if (end - 1 > lo && reached + above >= need) {
      hi = end - 1;
    } else if (reached + above + pivot.weight >= need) {
      return pivot;
    } else {
      reached += above + pivot.weight;
      lo = end;
    }
  }
  return last;
}

struct Sampler {
  const mt_sample& op;
  int row, n, blocks;
  const float* value;
  float *edited, *maxima, *spare;
  Candidate *found, *shuffled;
  double* sums;

  Sampler(const mt_sample& o, int r) : op(o), row(r), n(o.sampleable) {
    blocks = ceil_div(n, kBlock);
    value = op.logits + row * op.logits_stride;
  }

  // Only rows that need it pay for the memory.
  void reserve() {
    const size_t b = size_t(blocks);
    maxima = static_cast<float*>(scratch(kScratchB, b * 2 * sizeof(float)));
    spare = maxima + b;
  }
  void reserve_candidates() {
    found = static_cast<Candidate*>(scratch(kScratchC, size_t(n) * 2 * sizeof(Candidate)));
    shuffled = found + n;
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
    if (op.mask != nullptr) {
      const uint32_t* bits = reinterpret_cast<const uint32_t*>(op.mask) + row * op.mask_stride;
      for (int i = 0; i < n; ++i) {
        edited[i] = (bits[i / 32] >> (i % 32) & 1u) != 0 ? edited[i] : -kInfinity;
      }
    }
    for (int i = op.banned_offsets[row]; i < op.banned_offsets[row + 1]; ++i) {
      if (inside(op.banned_ids[i])) edited[op.banned_ids[i]] = -kInfinity;
    }
    for (int i = op.bias_offsets[row]; i < op.bias_offsets[row + 1]; ++i) {
      if (inside(op.bias_ids[i])) edited[op.bias_ids[i]] += op.bias_values[i];
    }
    penalise();
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
    const double inverse = 1.0 / static_cast<double>(op.temperature[row]);
    const double u = uniform(op.seeds[row], op.choices[row], op.positions[row]);
    const int k = op.top_k[row];
    const double top_p = op.top_p[row], min_p = op.min_p[row];
    const bool limited = k > 0 && k < n;
    if (!limited && !(top_p < 1.0) && !(min_p > 0.0)) return draw_any(largest, inverse, u);
    reserve_candidates();
    int count;
    if (limited) {
      count = keep_top_k(k);
      weigh_found(count, largest, inverse);
      if (top_p < 1.0) count = keep_nucleus(count, top_p * total_found(count));
    } else if (top_p < 1.0) {
      count = nucleus_of_all(top_p, largest, inverse);
    } else {
      // A little lower than min_p asks: the weights decide below.
      const double floor = largest + __builtin_log(min_p) / inverse * 1.000001 - 0.001 / inverse;
      count = collect(value, n, maxima, static_cast<float>(floor), found);
      weigh_found(count, largest, inverse);
    }
    if (min_p > 0.0) {
      int kept = 0;
      for (int i = 0; i < count; ++i) {
        if (found[i].weight >= min_p) found[kept++] = found[i];
      }
      count = kept;
    }
    const double target = u * total_found(count);
    double reached = 0.0;
    for (int i = 0; i < count; ++i) {
      reached += found[i].weight;
      if (reached > target) return found[i].id;
    }
    return count > 0 ? found[count - 1].id : 0;
  }

  int keep_top_k(int k) {
    int count = collect(value, n, maxima, floor_for(k, maxima, blocks, spare), found);
    if (count <= k) return count;
    float* values = reinterpret_cast<float*>(shuffled);
    for (int i = 0; i < count; ++i) values[i] = found[i].value;
    const float floor = select(values, count, k);
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      if (found[i].value >= floor) found[kept++] = found[i];
    }
    return kept;
  }

  void weigh_found(int count, float largest, double inverse) {
    for (int i = 0; i < count; i += WD) {
      float in[WD];
      double weight[WD];
      const int lanes = imin(WD, count - i);
      for (int j = 0; j < lanes; ++j) in[j] = found[i + j].value;
      weigh(in, lanes, largest, inverse, weight);
      for (int j = 0; j < lanes; ++j) found[i + j].weight = weight[j];
    }
  }

  double total_found(int count) const {
    double total = 0.0;
    for (int i = 0; i < count; ++i) total += found[i].weight;
    return total;
  }

  // Fills `sums` with the weight of each chunk.
  double total_of_all(float largest, double inverse) {
    const int chunks = ceil_div(n, kChunk);
    sums = static_cast<double*>(scratch(kScratchD, size_t(chunks) * sizeof(double)));
    double total = 0.0;
    for (int c = 0; c < chunks; ++c) {
      sums[c] = weigh_sum(value + c * kChunk, imin(kChunk, n - c * kChunk), largest, inverse);
      total += sums[c];
    }
    return total;
  }

  // The nucleus of the whole row: `found` holds it in id order.
  int nucleus_of_all(double top_p, float largest, double inverse) {
    double* weight = static_cast<double*>(scratch(kScratchD, size_t(n + WD) * sizeof(double)));
    weigh(value, n, largest, inverse, weight);
    const double need = top_p * sum_from(weight, n, 0.0);
    // Lower the least weight until those above it certainly hold the nucleus; the margin is so that
    // rounding of the sums cannot move the cut.
    double least = 0.25;
    while (least > 1e-30 && sum_from(weight, n, least) < need * (1.0 + 1e-9)) least *= 0.25;
    if (least <= 1e-30) least = 0.0;
    const double lowest = least > 0.0 ? __builtin_log(least) - 0.001 : -__builtin_inf();
    int count = 0;
    for (int b = 0; b < blocks; ++b) {
      const int begin = b * kBlock, end = imin(n, begin + kBlock);
      if ((maxima[b] - double{largest}) * inverse < lowest) continue;
      for (int i = begin; i < end; ++i) {
        if (weight[i] >= least && value[i] > -kInfinity) found[count++] = {value[i], i, weight[i]};
      }
    }
    return keep_nucleus(count, need);
  }

  int keep_nucleus(int count, double need) {
    if (count <= 1) return count;
    memcpy(static_cast<void*>(shuffled), found, sizeof(Candidate) * size_t(count));
    const Candidate end = nucleus_end(shuffled, count, need);
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      if (!likelier(end, found[i])) found[kept++] = found[i];
    }
    return kept;
  }

  int32_t draw_any(float largest, double inverse, double u) {
    const double target = u * total_of_all(largest, inverse);
    const int chunks = ceil_div(n, kChunk);
    double reached = 0.0, weight[kChunk];
    int last = 0;
    for (int c = 0; c < chunks; ++c) {
      if (c + 1 < chunks && reached + sums[c] <= target) {
        reached += sums[c];
        continue;
      }
      const int count = imin(kChunk, n - c * kChunk);
      weigh(value + c * kChunk, count, largest, inverse, weight);
      for (int i = 0; i < count; ++i) {
        if (weight[i] > 0.0) last = c * kChunk + i;
        reached += weight[i];
        if (reached > target) return c * kChunk + i;
      }
    }
    return last;
  }
};

inline double log_sum(const float* value, int n, float largest) {
  return static_cast<double>(largest) + __builtin_log(weigh_sum(value, n, largest, 1.0));
}

inline int count_above(const float* value, int n, float x) {
  int count = 0;
  for (int i = 0; i < n; ++i) count += value[i] > x ? 1 : 0;
  return count;
}

// What a digest asks for: the raw logit, and in top_logprobs (rows, 2) the largest and the log of
// the sum. In float32, which takes a quarter of the time; the order is the same for every batch.
inline void digest_row(const mt_logprobs& op, int row) {
  const int n = op.sampleable;
  const float* value = op.logits + row * op.logits_stride;
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
  double total = 0.0;
  const vf shift = vset(largest);
  for (i = 0; i + kChunk <= n; i += kChunk) {
    vf even = vzero(), odd = vzero();
    for (int j = i; j < i + kChunk; j += 2 * W) {
      even = even + vexp(vload(value + j) - shift);
      odd = odd + vexp(vload(value + j + W) - shift);
    }
    total += vsum(even + odd);
  }
  if (i < n) total += weigh_sum(value + i, n - i, largest, 1.0);
  op.logprob[row] = value[op.ids[row]];
  op.top_logprobs[row * 2] = largest;
  op.top_logprobs[row * 2 + 1] =
      static_cast<float>(static_cast<double>(largest) + __builtin_log(total));
}

inline void logprobs_row(const mt_logprobs& op, int row) {
  if (op.top_n < 0) return digest_row(op, row);
  const int n = op.sampleable, blocks = ceil_div(n, kBlock);
  const float* value = op.logits + row * op.logits_stride;
  float* maxima = static_cast<float*>(scratch(kScratchB, size_t(blocks) * 2 * sizeof(float)));
  const float largest = block_maxima(value, n, maxima);
  const double total = log_sum(value, n, largest);
  const float chosen = value[op.ids[row]];
  op.logprob[row] = static_cast<float>(chosen - total);
  op.rank[row] = 1 + count_above(value, n, chosen);
  if (op.top_n <= 0) return;
  Candidate* found =
      static_cast<Candidate*>(scratch(kScratchC, size_t(n) * sizeof(Candidate)));
  const float floor = floor_for(op.top_n, maxima, blocks, maxima + blocks);
  int count = 0;
  for (int b = 0; b < blocks; ++b) {
    if (maxima[b] < floor) continue;
    for (int i = b * kBlock; i < imin(n, (b + 1) * kBlock); ++i) {
      if (value[i] >= floor) found[count++] = {value[i], i, 0.0};
    }
  }
  for (int i = 0; i < op.top_n; ++i) {
    int best = i;
    for (int j = i + 1; j < count; ++j) {
      if (likelier(found[j], found[best])) best = j;
    }
    const Candidate x = found[best];
    found[best] = found[i];
    found[i] = x;
    op.top_ids[row * op.top_n + i] = x.id;
    op.top_logprobs[row * op.top_n + i] = static_cast<float>(x.value - total);
  }
}

}  // namespace

void sample(const mt_sample& op) {
  auto job = [&](int row) { op.ids[row] = Sampler(op, row).choose(); };
  parallel_for(op.rows, job);
}

void logprobs(const mt_logprobs& op) {
  auto job = [&](int row) { logprobs_row(op, row); };
  parallel_for(op.rows, job);
}

}  // namespace MT_ISA
}  // namespace mt
