/* Causal attention over a paged cache: prefill chunks and decode rows in one call.
 *
 * attention.muh has the formula, the layouts and the order of operations, which no choice made here
 * changes. Never run on MUSA hardware. Knows of a batch what the host knows: how many tokens and
 * sequences there are, and how long a block table is. So grids are upper bounds, and blocks without
 * work end at once.
 *
 * Two ways, which divide the sequences between them:
 *   few   a sequence's only query: a block has up to 8 of the heads that share a kv head, which
 *         read its keys once, and every `splits`-th partition of them;
 *   many  up to 32 rows (queries times heads of a kv head) a block, which shares each tile of keys;
 *         all partitions, or every `splits`-th where there are too few blocks otherwise.
 * Split items leave a partial result for each partition in the workspace, and a second kernel adds
 * those of a row in rising order; a row with one partition is done without.
 */
#include "attention.muh"
#include "attention_plan.muh"

namespace mt {
namespace attention {

constexpr int kReduceThreads = 128;

/* What a launch is told: everything by value, the same for all its blocks. */
struct Task {
  mt_attention op;
  float* partials; /* (rows, parts, head_dim): o */
  float* stats;    /* (rows, parts, 2): m, l */
  int parts;       /* partitions that one row may see */
  int splits;      /* blocks that share an item; 1: they add the partitions themselves */
  int first;       /* few: the first item of this round */
  int items;       /* few: items of this round */
  int by_token;    /* few: items are tokens, of any sequence; else sequences of one token */
};

/* The last i in 0..count-1 with key(i) <= value; key(0) <= value. */
template <typename Key>
__device__ __forceinline__ int last_at_most(int count, int value, const Key& key) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (key(middle) <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

struct Starts {
  const int32_t* query_start;
  __device__ int operator()(int sequence) const { return query_start[sequence]; }
};

/* The tiles of sequence s begin here at the latest: floor(start * group / rows) + s rises by at
 * least ceil(queries * group / rows) from one sequence to the next. */
struct TileStarts {
  const int32_t* query_start;
  int group, rows;
  __device__ int operator()(int sequence) const {
    return static_cast<int>(int64_t{query_start[sequence]} * group / rows) + sequence;
  }
};

/* The sequence of a token. In a batch of decode rows the first guess is right. */
__device__ __forceinline__ int sequence_of(const mt_attention& op, int token) {
  const Starts starts{op.query_start};
  if (token < op.sequences && starts(token) == token && starts(token + 1) == token + 1) {
    return token;
  }
  return last_at_most(op.sequences, token, starts);
}

/* Fills in all but the rows of a sequence's item. */
__device__ __forceinline__ void place(const mt_attention& op, int sequence, Item& item) {
  item.sequence = sequence;
  item.group = op.q_heads / op.kv_heads;
  item.first_token = op.query_start[sequence];
  const int queries = op.query_start[sequence + 1] - item.first_token;
  item.first_position = op.seq_lens[sequence] - queries;
  item.partial_token = item.first_token;
}

/* The item of one query; false where there is none, or the other kernel has it. */
__device__ __forceinline__ bool find_single(const Task& task, int index, Item& item) {
  const mt_attention& op = task.op;
  const int number = task.first + index;
  const int sequence = task.by_token ? sequence_of(op, number) : number;
  place(op, sequence, item);
  item.partial_token = index;
  if (!task.by_token) return op.query_start[sequence + 1] - item.first_token == 1;
  item.first_position += number - item.first_token;
  item.first_token = number;
  return number < op.query_start[sequence + 1];
}

/* This block's rows; false if it has none. */
template <typename S>
__device__ __forceinline__ bool find_item(const Task& task, Item& item) {
  const mt_attention& op = task.op;
  if (S::kIsFew) {
    if (!find_single(task, static_cast<int>(blockIdx.z), item)) return false;
    const int tiles = ceil_div(item.group, S::kRows);
    item.kv_head = static_cast<int>(blockIdx.y) / tiles;
    item.row = static_cast<int>(blockIdx.y) % tiles * S::kRows;
    item.rows = smaller(S::kRows, item.group - item.row);
    return true;
  }
  /* The last tiles see the most keys: they begin first. */
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const TileStarts starts{op.query_start, op.q_heads / op.kv_heads, S::kRows};
  const int sequence = last_at_most(op.sequences, tile, starts);
  place(op, sequence, item);
  item.kv_head = static_cast<int>(blockIdx.y);
  item.row = (tile - starts(sequence)) * S::kRows;
  const int queries = op.query_start[sequence + 1] - item.first_token;
  item.rows = smaller(S::kRows, queries * item.group - item.row);
  return queries > 1 && item.rows > 0;
}

/* M, L of a row, to which partitions are added in rising order. */
struct Total {
  float top = kNothing, sum = 0.0f;
  /* What the factors of the row's O and of the partition's o are. */
  float old_factor = 0.0f, new_factor = 0.0f;

  __device__ __forceinline__ void add(float part_top, float part_sum) {
    const float next = larger(top, part_top);
    old_factor = mt_exp(top - next);
    new_factor = mt_exp(part_top - next);
    sum = fmaf(sum, old_factor, part_sum * new_factor);
    top = next;
  }
  __device__ __forceinline__ float mix(float old_value, float part_value) const {
    return fmaf(old_value, old_factor, part_value * new_factor);
  }
};

/* Partitions of which a query at `position` sees something. */
struct Parts {
  int first, last;
  __device__ Parts(int position, int window)
      : first(lowest_key(position, window) / kPartition), last(position / kPartition) {}
};

template <typename S>
__device__ __forceinline__ void store_out(const Task& task, const Item& item, int r, float sum,
                                          const float (&values)[S::kDims]) {
  using T = typename S::Element;
  const mt_attention& op = task.op;
  T* const out = static_cast<T*>(op.out) + item.token(r) * op.out_token +
                 int64_t{item.head(r)} * op.head_dim + S::dim_lane() * S::kDims;
  const float scale = 1.0f / sum;
  if constexpr (S::kDims == kWide<T>) {
    float scaled[kWide<T>];
    MT_UNROLL
    for (int e = 0; e < S::kDims; ++e) scaled[e] = values[e] * scale;
    /* Heads are multiples of 8 elements long. */
    store_floats<T>(out, rows_aligned16<T>(op.out, op.out_token), scaled);
  } else {
    MT_UNROLL
    for (int e = 0; e < S::kDims; ++e) out[e] = from_float<T>(values[e] * scale);
  }
}

/* Leaves a row's part to the second kernel, or is done if the row sees no other. */
template <typename S>
__device__ __forceinline__ void store_part(const Task& task, const Item& item, int part, int r,
                                           const Shared& shared,
                                           const float (&values)[S::kDims]) {
  const Parts parts(item.position(r), task.op.window);
  if (part < parts.first || part > parts.last) return;
  if (parts.first == parts.last) {
    store_out<S>(task, item, r, shared.sums[r], values);
    return;
  }
  const int64_t token = item.partial_token + (item.row + r) / item.group;
  const int64_t row = (token * task.op.q_heads + item.head(r)) * task.parts + part - parts.first;
  float* const partial = task.partials + row * task.op.head_dim + S::dim_lane() * S::kDims;
  MT_UNROLL
  for (int e = 0; e < S::kDims; e += 4) {
    store_floats<float>(partial + e, true,
                        {values[e], values[e + 1], values[e + 2], values[e + 3]});
  }
  if (S::dim_lane() == 0) {
    task.stats[row * 2] = shared.tops[r];
    task.stats[row * 2 + 1] = shared.sums[r];
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads) attend(Task task) {
  MT_SHARED(Vec16, queries, S::kRows * S::kPitch);
  MT_SHARED(Vec16, tile, S::kKeys * S::kPitch);
  MT_SHARED(float, weights, S::kKeys * S::kWeightPitch);
  MT_SHARED(float, factors, S::kRows);
  MT_SHARED(float, tops, S::kRows);
  MT_SHARED(float, sums, S::kRows);
  MT_SHARED(int32_t, slots, kPartition);
  const Shared shared{queries, tile, weights, factors, tops, sums, slots};
  /* Both returns are the whole block's. */
  Item item;
  if (!find_item<S>(task, item)) return;
  const int first = Parts(item.position(0), task.op.window).first +
                    static_cast<int>(S::kIsFew ? blockIdx.x : blockIdx.z);
  const int last = item.position(item.rows - 1) / kPartition;
  if (first > last) return;
  const bool there = S::dim_lane() * S::kDims < task.op.head_dim;
  State<S> state;
  Total totals[S::kMixRows];
  float out[S::kMixRows][S::kDims] = {};
  load_queries<S>(task.op, item, shared);
  begin_rows<S>(task.op, item, state);
  for (int part = first; part <= last; part += task.splits) {
    attend_partition<S>(task.op, item, part, shared, state);
    MT_UNROLL
    for (int i = 0; i < S::kMixRows; ++i) {
      const int r = S::mix_row(i);
      if (task.splits > 1) {
        if (there && r < item.rows) store_part<S>(task, item, part, r, shared, state.mixed[i]);
        continue;
      }
      totals[i].add(shared.tops[r], shared.sums[r]);
      MT_UNROLL
      for (int e = 0; e < S::kDims; ++e) out[i][e] = totals[i].mix(out[i][e], state.mixed[i][e]);
    }
  }
  if (task.splits > 1) return;
  MT_UNROLL
  for (int i = 0; i < S::kMixRows; ++i) {
    const int r = S::mix_row(i);
    if (there && r < item.rows) store_out<S>(task, item, r, totals[i].sum, out[i]);
  }
}

/* Adds the partitions of a row: a sub-warp has 128 dimensions of it, a lane 4. */
template <typename T>
__global__ void __launch_bounds__(kReduceThreads) reduce(Task task, int few) {
  const mt_attention& op = task.op;
  const int index = static_cast<int>(blockIdx.x) * (kReduceThreads / kSubWarp) + sub_index();
  const int dim = (static_cast<int>(blockIdx.y) * kSubWarp + sub_lane()) * 4;
  if (index >= task.items * op.q_heads || dim >= op.head_dim) return;
  const int head = index % op.q_heads, number = index / op.q_heads;
  Item item;
  if (few) {
    if (!find_single(task, number, item)) return;
  } else {
    place(op, sequence_of(op, number), item);
    const int end = op.query_start[item.sequence + 1];
    if (end - item.first_token == 1 || number >= end) return;
    item.first_position += number - item.first_token;
    item.first_token = number;
  }
  const Parts parts(item.first_position, op.window);
  if (parts.first == parts.last) return;
  const int64_t row = int64_t{index} * task.parts;
  const float* const stats = task.stats + row * 2;
  const float* const partials = task.partials + row * op.head_dim + dim;
  Total total;
  float out[4] = {};
  for (int part = 0; part <= parts.last - parts.first; ++part) {
    float values[4];
    load_floats<float>(partials + int64_t{part} * op.head_dim, true, values);
    total.add(stats[part * 2], stats[part * 2 + 1]);
    MT_UNROLL
    for (int e = 0; e < 4; ++e) out[e] = total.mix(out[e], values[e]);
  }
  T* const to =
      static_cast<T*>(op.out) + item.first_token * op.out_token + int64_t{head} * op.head_dim + dim;
  const float scale = 1.0f / total.sum;
  MT_UNROLL
  for (int e = 0; e < 4; ++e) to[e] = from_float<T>(out[e] * scale);
}

/* Queues one way's kernels; `task` has its items and splits. */
template <typename S>
void launch_way(const Task& task, dim3 grid) {
  const mt_attention& op = task.op;
  MT_LAUNCH(attend<S>, grid, dim3(kThreads), 0, op.stream, task);
  if (task.splits == 1) return;
  const int64_t rows = int64_t{task.items} * op.q_heads;
  const dim3 blocks(static_cast<unsigned>(ceil_div<int64_t>(rows, kReduceThreads / kSubWarp)),
                    static_cast<unsigned>(ceil_div(op.head_dim, kSubWarp * 4)));
  MT_LAUNCH(reduce<typename S::Element>, blocks, dim3(kReduceThreads), 0, op.stream, task,
            S::kIsFew ? 1 : 0);
}

template <typename T, int kDim>
int run(const mt_attention& op) {
  using Few = Shape<T, kDim, true>;
  using Many = Shape<T, kDim, false>;
  const Plan plan = plan_of<T, kDim>(op);
  if (op.workspace_bytes < plan.rows * plan.bytes) return musaErrorInvalidValue;
  Task task = {};
  task.op = op;
  task.parts = plan.parts;
  task.by_token = plan.by_token;
  task.partials = static_cast<float*>(op.workspace);
  task.stats = task.partials + plan.rows * op.q_heads * plan.parts * op.head_dim;
  const unsigned heads = static_cast<unsigned>(op.kv_heads);
  const unsigned tiles = static_cast<unsigned>(ceil_div(op.q_heads / op.kv_heads, Few::kRows));
  task.splits = plan.few_splits;
  for (int64_t first = 0; first < plan.few; first += plan.round) {
    task.first = static_cast<int>(first);
    task.items = static_cast<int>(smaller(plan.round, plan.few - first));
    launch_way<Few>(task, dim3(static_cast<unsigned>(task.splits), heads * tiles,
                               static_cast<unsigned>(task.items)));
  }
  if (plan.tiles > 0) {
    task.splits = plan.many_splits;
    task.first = 0;
    task.items = op.tokens;
    launch_way<Many>(task, dim3(static_cast<unsigned>(plan.tiles), heads,
                                static_cast<unsigned>(task.splits)));
  }
  return launched();
}

template <typename T, int kDim>
int64_t workspace(const mt_attention& op) {
  const Plan plan = plan_of<T, kDim>(op);
  return plan.rows * plan.bytes;
}

inline bool supported(const mt_attention& op) {
  return op.head_dim >= 8 && op.head_dim <= 256 && op.head_dim % 8 == 0 && op.kv_heads > 0 &&
         op.q_heads % op.kv_heads == 0 && op.block_size > 0;
}

template <typename T>
int run_for(const mt_attention* op) {
  if (op->head_dim <= 64) return run<T, 64>(*op);
  if (op->head_dim <= 128) return run<T, 128>(*op);
  return run<T, 256>(*op);
}

template <typename T>
int64_t workspace_for(const mt_attention* op) {
  if (op->head_dim <= 64) return workspace<T, 64>(*op);
  if (op->head_dim <= 128) return workspace<T, 128>(*op);
  return workspace<T, 256>(*op);
}

}  // namespace attention
}  // namespace mt

extern "C" int64_t mt_device_attention_workspace(const mt_attention* op) {
  if (!mt::attention::supported(*op)) return MT_DEVICE_UNSUPPORTED;
  if (op->tokens <= 0 || op->sequences <= 0) return 0;
  MT_RETURN_FOR_DTYPE(op->dtype, mt::attention::workspace_for, op)
}

extern "C" int mt_device_attention(const mt_attention* op) {
  if (!mt::attention::supported(*op)) return MT_DEVICE_UNSUPPORTED;
  if (!mt::aligned16(op->k_cache) || !mt::aligned16(op->v_cache)) return MT_DEVICE_UNSUPPORTED;
  if (op->tokens <= 0 || op->sequences <= 0) return 0;
  MT_RETURN_FOR_DTYPE(op->dtype, mt::attention::run_for, op)
}
