// The native module mtactors.kernels._native: what Python sees of the kernels, the CPU's and those
// of a device's library.
//
// Knows nothing of torch: tensors arrive as addresses, shapes and strides (abi.h). The caller has
// checked dtypes and shapes (kernels/checked.py) and keeps the tensors alive. The interpreter's
// lock is released while a kernel runs.

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string.h>

#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "binding/backend.h"
#include "cpu/decoder.h"
#include "cpu/isa_builds.h"
#include "cpu/memory.h"
#include "cpu/pool.h"
#include "cpu/shared.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace {

using Address = uintptr_t;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;
using mt::Backend;

// Code and bytes of scratch, as mt::Outcome has them.
using Told = std::pair<int, int64_t>;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Told told(mt::Outcome outcome) { return {outcome.code, outcome.workspace}; }

nb::list isa_builds() {
  int count = 0;
  const mt::IsaBuild* builds = mt::isa_builds(&count);
  nb::list rows;
  for (int i = 0; i < count; ++i) {
    rows.append(nb::make_tuple(builds[i].name, builds[i].compiled_for, builds[i].runs_here));
  }
  return rows;
}

nb::tuple facts(const Backend& backend, int device) {
  const mt_device_facts_t told = backend.facts(device);
  return nb::make_tuple(told.arch, told.warp_size, told.shared_bytes_per_block,
                        told.multiprocessors);
}

struct PackedMatrix {
  mt::Allocation memory;
  int64_t bytes;
  int n, k, dtype, held;

  PackedMatrix(const Backend& backend, Address source, int64_t stride, int n_, int k_, int dtype_)
      : n(n_), k(k_), dtype(dtype_) {
    mt_pack op = {};
    op.source = pointer<const void>(source);
    op.source_stride = stride;
    op.n = n;
    op.k = k;
    op.dtype = dtype;
    op.held = held = backend.ops().hold(op);
    bytes = mt::packed_bytes(n, k, dtype, held);
    memory = mt::allocate_weight(static_cast<size_t>(bytes));
    op.packed = memory.data;
    backend.ops().pack(op);
  }
  mt::Matrix view() const {
    mt::Matrix m;
    m.data = memory.data;
    m.n = n;
    m.k = k;
    return m;
  }
};

void linear(const Backend& backend, Address x, int64_t x_stride, const PackedMatrix& w,
            Address bias, Address out, int64_t out_stride, int tokens, int out_dtype) {
  mt_linear op = {};
  op.x = pointer<const void>(x);
  op.x_stride = x_stride;
  op.weight = w.memory.data;
  op.bias = pointer<const void>(bias);
  op.out = pointer<void>(out);
  op.out_stride = out_stride;
  op.tokens = tokens;
  op.n = w.n;
  op.k = w.k;
  op.dtype = w.dtype;
  op.out_dtype = out_dtype;
  backend.ops().linear(op);
}

void likeliest(const Backend& backend, Address x, int64_t x_stride, const PackedMatrix& w,
               Address ids, int tokens, int sampleable) {
  mt_linear op = {};
  op.x = pointer<const void>(x);
  op.x_stride = x_stride;
  op.weight = w.memory.data;
  op.tokens = tokens;
  op.n = w.n;
  op.k = w.k;
  op.dtype = w.dtype;
  op.out_dtype = MT_F32;
  backend.ops().likeliest(op, sampleable, pointer<int32_t>(ids));
}

int embedding(const Backend& backend, Address ids, Address weight, Address out, int tokens, int n,
              int k, int first_row, int dtype, Address stream) {
  mt_embedding op = {};
  op.ids = pointer<const int32_t>(ids);
  op.weight = pointer<const void>(weight);
  op.out = pointer<void>(out);
  op.out_stride = op.k = k;
  op.tokens = tokens;
  op.n = n;
  op.first_row = first_row;
  op.dtype = dtype;
  op.stream = pointer<void>(stream);
  return backend.run(op);
}

int rms_norm(const Backend& backend, Address x, int64_t x_outer, int64_t x_inner, Address residual,
             Address total, Address weight, Address out, int outer, int inner, int hidden,
             int dtype, float eps, bool cast_first, Address stream) {
  mt_rms_norm op = {};
  op.x = pointer<const void>(x);
  op.x_outer = x_outer;
  op.x_inner = x_inner;
  op.residual = pointer<const void>(residual);
  op.total = pointer<void>(total);
  op.total_stride = hidden;
  op.weight = pointer<const void>(weight);
  op.out = pointer<void>(out);
  op.out_outer = int64_t{inner} * hidden;
  op.out_inner = hidden;
  op.outer = outer;
  op.inner = inner;
  op.hidden = hidden;
  op.dtype = dtype;
  op.eps = eps;
  op.cast_first = cast_first;
  op.stream = pointer<void>(stream);
  return backend.run(op);
}

int rope(const Backend& backend, Address q, int64_t q_token, int64_t q_head, Address k,
         int64_t k_token, int64_t k_head, Address rows, Address cos_sin, Address q_scale,
         int tokens, int q_heads, int k_heads, int head_dim, int rotary_dim, bool interleaved,
         int dtype, Address stream) {
  mt_rope op = {};
  op.q = pointer<void>(q);
  op.q_token = q_token;
  op.q_head = q_head;
  op.k = pointer<void>(k);
  op.k_token = k_token;
  op.k_head = k_head;
  op.rows = pointer<const int32_t>(rows);
  op.cos_sin = pointer<const float>(cos_sin);
  op.q_scale = pointer<const float>(q_scale);
  op.tokens = tokens;
  op.q_heads = q_heads;
  op.k_heads = k_heads;
  op.head_dim = head_dim;
  op.rotary_dim = rotary_dim;
  op.interleaved = interleaved;
  op.dtype = dtype;
  op.stream = pointer<void>(stream);
  return backend.run(op);
}

int kv_write(const Backend& backend, Address k, int64_t k_token, int64_t k_head, Address v,
             int64_t v_token, int64_t v_head, Address k_cache, Address v_cache, Address slots,
             int tokens, int kv_heads, int head_dim, int dtype, Address stream) {
  mt_kv_write op = {};
  op.k = pointer<const void>(k);
  op.k_token = k_token;
  op.k_head = k_head;
  op.v = pointer<const void>(v);
  op.v_token = v_token;
  op.v_head = v_head;
  op.k_cache = pointer<void>(k_cache);
  op.v_cache = pointer<void>(v_cache);
  op.slots = pointer<const int64_t>(slots);
  op.tokens = tokens;
  op.kv_heads = kv_heads;
  op.head_dim = head_dim;
  op.dtype = dtype;
  op.stream = pointer<void>(stream);
  return backend.run(op);
}

Told attention(const Backend& backend, Address q, int64_t q_token, int64_t q_head, Address k_cache,
               Address v_cache, Address query_start, Address seq_lens, Address block_tables,
               int64_t block_tables_stride, Address alibi_slopes, Address out, int sequences,
               int tokens, int q_heads, int kv_heads, int head_dim, int block_size, int window,
               int dtype, float scale, Address workspace, int64_t workspace_bytes, Address stream) {
  mt_attention op = {};
  op.q = pointer<const void>(q);
  op.q_token = q_token;
  op.q_head = q_head;
  op.k_cache = pointer<const void>(k_cache);
  op.v_cache = pointer<const void>(v_cache);
  op.query_start = pointer<const int32_t>(query_start);
  op.seq_lens = pointer<const int32_t>(seq_lens);
  op.block_tables = pointer<const int32_t>(block_tables);
  op.block_tables_stride = block_tables_stride;
  op.alibi_slopes = pointer<const float>(alibi_slopes);
  op.out = pointer<void>(out);
  op.out_token = int64_t{q_heads} * head_dim;
  op.sequences = sequences;
  op.tokens = tokens;
  op.q_heads = q_heads;
  op.kv_heads = kv_heads;
  op.head_dim = head_dim;
  op.block_size = block_size;
  op.window = window;
  op.dtype = dtype;
  op.scale = scale;
  op.stream = pointer<void>(stream);
  op.workspace = pointer<void>(workspace);
  op.workspace_bytes = workspace_bytes;
  return told(backend.run_with_workspace(op));
}

int silu_and_mul(const Backend& backend, Address gate_up, int64_t stride, Address out, int tokens,
                 int f, int dtype, Address stream) {
  mt_silu_and_mul op = {};
  op.gate_up = pointer<const void>(gate_up);
  op.gate_up_stride = stride;
  op.out = pointer<void>(out);
  op.out_stride = op.f = f;
  op.tokens = tokens;
  op.dtype = dtype;
  op.stream = pointer<void>(stream);
  return backend.run(op);
}

int copy_blocks(const Backend& backend, const std::vector<Address>& caches, Address copies,
                int num_copies, int64_t block_bytes, int64_t token_bytes, Address stream) {
  mt_copy_blocks op = {};
  op.caches = reinterpret_cast<void* const*>(caches.data());
  op.copies = pointer<const int64_t>(copies);
  op.num_caches = static_cast<int32_t>(caches.size());
  op.num_copies = num_copies;
  op.block_bytes = block_bytes;
  op.token_bytes = token_bytes;
  op.stream = pointer<void>(stream);
  return backend.run(op);
}

// `arrays` in the order of mt_sample's fields from temperature to mask.
Told sample(const Backend& backend, Address logits, int64_t stride,
            const std::vector<Address>& arrays, int64_t mask_stride, Address ids, int rows,
            int vocab, int sampleable, Address workspace, int64_t workspace_bytes, Address stream) {
  if (arrays.size() != 20) throw nb::value_error("sample takes 20 arrays");
  mt_sample op = {};
  op.logits = pointer<const float>(logits);
  op.logits_stride = stride;
  const Address* next = arrays.data();
  for (const float** p : {&op.temperature, &op.top_p, &op.min_p, &op.repetition_penalty,
                          &op.presence_penalty, &op.frequency_penalty}) {
    *p = pointer<const float>(*next++);
  }
  for (const int32_t** p : {&op.top_k, &op.choices, &op.positions}) {
    *p = pointer<const int32_t>(*next++);
  }
  op.seeds = pointer<const int64_t>(*next++);
  for (const int32_t** p :
       {&op.prompt_tokens, &op.prompt_offsets, &op.output_tokens, &op.output_offsets, &op.bias_ids,
        &op.bias_offsets, &op.banned_ids, &op.banned_offsets}) {
    *p = pointer<const int32_t>(*next++);
  }
  op.bias_values = pointer<const float>(*next++);
  op.mask = pointer<const int32_t>(*next++);
  op.mask_stride = mask_stride;
  op.ids = pointer<int32_t>(ids);
  op.rows = rows;
  op.vocab = vocab;
  op.sampleable = sampleable;
  op.stream = pointer<void>(stream);
  op.workspace = pointer<void>(workspace);
  op.workspace_bytes = workspace_bytes;
  return told(backend.run_with_workspace(op));
}

int logprobs(const Backend& backend, Address logits, int64_t stride, Address ids, Address logprob,
             Address rank, Address top_ids, Address top_logprobs, int rows, int top_n,
             int sampleable, Address stream) {
  mt_logprobs op = {};
  op.logits = pointer<const float>(logits);
  op.logits_stride = stride;
  op.ids = pointer<const int32_t>(ids);
  op.logprob = pointer<float>(logprob);
  op.rank = pointer<int32_t>(rank);
  op.top_ids = pointer<int32_t>(top_ids);
  op.top_logprobs = pointer<float>(top_logprobs);
  op.rows = rows;
  op.top_n = top_n;
  op.sampleable = sampleable;
  op.stream = pointer<void>(stream);
  return backend.run(op);
}

// One rank's end of the sums: partial is (rows, n) float32, out has `dtype`.
void reduce_sum(mt::SharedGroup& group, const Backend& backend, Address partial, Address out,
                int rows, int n, int dtype, double seconds) {
  const size_t row_bytes = sizeof(float) * static_cast<size_t>(n);
  const int per_round = static_cast<int>(group.capacity() / row_bytes);
  if (per_round == 0) throw nb::value_error("a row exceeds the capacity of the shared memory");
  std::vector<const float*> parts(static_cast<size_t>(group.size()));
  for (int row = 0; row < rows; row += per_round) {
    const int count = rows - row < per_round ? rows - row : per_round;
    memcpy(group.mine(), pointer<const char>(partial) + row * row_bytes, count * row_bytes);
    group.exchange(seconds);
    for (int r = 0; r < group.size(); ++r) {
      parts[static_cast<size_t>(r)] = static_cast<const float*>(group.theirs(r));
    }
    char* to = pointer<char>(out) + int64_t{row} * n * mt::element_size(dtype);
    backend.ops().reduce(parts.data(), group.size(), nullptr, nullptr, to, count, n, dtype);
  }
}

void add_layer(mt::Decoder& decoder, const std::vector<const PackedMatrix*>& matrices,
               const std::vector<Address>& vectors, int window) {
  if (matrices.size() != 4 || vectors.size() != 8) throw nb::value_error("4 matrices, 8 vectors");
  mt::DecoderLayer layer;
  layer.qkv = matrices[0]->view();
  layer.o = matrices[1]->view();
  layer.gate_up = matrices[2]->view();
  layer.down = matrices[3]->view();
  layer.input_norm = pointer<const void>(vectors[0]);
  layer.post_norm = pointer<const void>(vectors[1]);
  layer.q_norm = pointer<const void>(vectors[2]);
  layer.k_norm = pointer<const void>(vectors[3]);
  layer.qkv_bias = pointer<const void>(vectors[4]);
  layer.o_bias = pointer<const void>(vectors[5]);
  layer.k_cache = pointer<void>(vectors[6]);
  layer.v_cache = pointer<void>(vectors[7]);
  layer.window = window;
  decoder.layers.push_back(layer);
}

void forward(mt::Decoder& decoder, Address ids, int tokens, Address rope_rows, Address cos_sin,
             Address q_scale, int rotary_dim, bool interleaved, Address query_start,
             Address seq_lens, Address block_tables, int64_t block_tables_stride, int sequences,
             Address slots, Address hidden_rows, int num_hidden_rows, Address hidden) {
  mt::DecoderStep step;
  step.ids = pointer<const int32_t>(ids);
  step.tokens = tokens;
  step.rope_rows = pointer<const int32_t>(rope_rows);
  step.cos_sin = pointer<const float>(cos_sin);
  step.q_scale = pointer<const float>(q_scale);
  step.rotary_dim = rotary_dim;
  step.interleaved = interleaved;
  step.query_start = pointer<const int32_t>(query_start);
  step.seq_lens = pointer<const int32_t>(seq_lens);
  step.block_tables = pointer<const int32_t>(block_tables);
  step.block_tables_stride = block_tables_stride;
  step.sequences = sequences;
  step.slots = pointer<const int64_t>(slots);
  step.hidden_rows = pointer<const int64_t>(hidden_rows);
  step.num_hidden_rows = num_hidden_rows;
  step.hidden = pointer<void>(hidden);
  decoder.forward(step);
}

void init_decoder(mt::Decoder* self, const Backend& backend, const PackedMatrix& embedding,
                  Address final_norm, int heads, int kv_heads, int head_dim, int block_size,
                  int first_row, float eps, bool cast_first, float scale, Address alibi_slopes,
                  mt::SharedGroup* group) {
  new (self) mt::Decoder();
  self->ops = &backend.ops();
  self->dtype = embedding.dtype;
  self->hidden = embedding.k;
  self->embedding = embedding.view();
  self->final_norm = pointer<const void>(final_norm);
  self->heads = heads;
  self->kv_heads = kv_heads;
  self->head_dim = head_dim;
  self->scale = scale;
  self->block_size = block_size;
  self->first_row = first_row;
  self->eps = eps;
  self->cast_first = cast_first;
  self->alibi_slopes = pointer<const float>(alibi_slopes);
  self->group = group;
}

}  // namespace

NB_MODULE(_native, m) {
  m.def(
      "abi_version", [] { return MT_ABI_VERSION; },
      "Return the version of kernels/abi.h that this module was compiled with.");
  m.def("isa_builds", &isa_builds,
        "Return (name, compiled for, runs on this CPU) of each hot build, slowest first.");
  m.def("threads", &mt::threads, "Return how many threads work on a kernel.");
  m.def("set_threads", &mt::set_threads, "count"_a, "pin"_a = false,
        "Use `count` threads; with `pin`, bind the caller and the others to a CPU each.");

  // First, because the others' signatures name it.
  nb::class_<Backend> backend(m, "Backend");
  nb::class_<PackedMatrix>(m, "PackedMatrix")
      .def(nb::init<const Backend&, Address, int64_t, int, int, int>(), "backend"_a, "source"_a,
           "stride"_a, "n"_a, "k"_a, "dtype"_a, Unlocked())
      .def_ro("out_features", &PackedMatrix::n)
      .def_ro("in_features", &PackedMatrix::k)
      .def_ro("dtype", &PackedMatrix::dtype)
      .def_prop_ro(
          "address",
          [](const PackedMatrix& w) { return reinterpret_cast<Address>(w.memory.data); })
      .def_ro("held", &PackedMatrix::held)
      .def_ro("nbytes", &PackedMatrix::bytes);
  nb::class_<mt::SharedGroup>(m, "SharedGroup")
      .def(nb::init<const std::string&, int, int, size_t>(), "path"_a, "rank"_a, "size"_a,
           "capacity"_a)
      .def_static("file_bytes", &mt::SharedGroup::file_bytes)
      .def("reduce_sum", &reduce_sum, Unlocked())
      .def(
          "gather",
          [](mt::SharedGroup& group, Address from, size_t bytes, Address out, double seconds) {
            group.gather(pointer<const void>(from), bytes, pointer<void>(out), seconds);
          },
          Unlocked());
  nb::class_<mt::Decoder>(m, "Decoder")
      .def("__init__", &init_decoder, "backend"_a, "embedding"_a, "final_norm"_a, "heads"_a,
           "kv_heads"_a, "head_dim"_a, "block_size"_a, "first_row"_a, "eps"_a, "cast_first"_a,
           "scale"_a, "alibi_slopes"_a, "group"_a.none())
      .def("add_layer", &add_layer)
      .def("forward", &forward, Unlocked());

  backend.def_static("isa", &Backend::isa, "name"_a)
      .def_static("library", &Backend::library, "path"_a)
      .def_prop_ro("kind", &Backend::kind)
      .def_prop_ro("operations", &Backend::operations)
      .def("error", &Backend::error, "code"_a)
      .def("facts", &facts, "device"_a)
      .def("linear", &linear, Unlocked())
      .def("likeliest", &likeliest, Unlocked())
      .def("embedding", &embedding, Unlocked())
      .def("rms_norm", &rms_norm, Unlocked())
      .def("rope", &rope, Unlocked())
      .def("kv_write", &kv_write, Unlocked())
      .def("attention", &attention, Unlocked())
      .def("silu_and_mul", &silu_and_mul, Unlocked())
      .def("copy_blocks", &copy_blocks, Unlocked())
      .def("sample", &sample, Unlocked())
      .def("logprobs", &logprobs, Unlocked());
}
