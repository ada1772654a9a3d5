// Kernels that do one thing each, some of them what a kernel must not do; for test_emulator.py.

#include "common.muh"

namespace mt {
namespace {

struct Probe {
  const void* in;
  void* out;
  int n;
};

__device__ __forceinline__ int self() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ const float* floats(const Probe& p) {
  return static_cast<const float*>(p.in);
}
__device__ __forceinline__ float* results(const Probe& p) { return static_cast<float*>(p.out); }
__device__ __forceinline__ int at() {
  return static_cast<int>(blockIdx.x * blockDim.x) + self();
}

__global__ void ends_before_barrier(const Probe p) {
  if (self() == 5) return;
  __syncthreads();
  results(p)[self()] = 1.0f;
}

__global__ void waits_at_two_barriers(const Probe p) {
  if (self() < 64) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  results(p)[self()] = 1.0f;
}

__global__ void shuffles_in_half_a_sub_warp(const Probe p) {
  if (sub_lane() < 16) results(p)[self()] = sub_shfl_xor(1.0f, 1);
}

__global__ void shuffles_in_one_sub_warp(const Probe p) {
  if (sub_index() == 1) results(p)[self()] = sub_sum(1.0f);
}

__global__ void shuffles_or_waits(const Probe p) {
  if (self() < 128) {
    results(p)[self()] = sub_shfl(1.0f, 0);
  } else {
    __syncthreads();
  }
}

__global__ void shuffles_with_a_narrow_mask(const Probe p) {
  results(p)[self()] = __shfl_xor_sync(0xffffu, 1.0f, 1, 16);
}

__global__ void reads_a_lane_too_far(const Probe p) { results(p)[self()] = sub_shfl(1.0f, 32); }

__global__ void declares_too_much(const Probe p) {
  MT_SHARED(float, tile, 4096);
  MT_SHARED(float, other, 3073);
  tile[self()] = 1.0f;
  other[self()] = tile[self()];
  results(p)[self()] = other[self()];
}

__global__ void takes_dynamic(const Probe p) {
  MT_SHARED_DYNAMIC(bytes);
  results(p)[self()] = reinterpret_cast<const float*>(bytes)[self() % 32];
}

__global__ void takes_all_there_is(const Probe p) {
  MT_SHARED(float, tile, 4096);
  MT_SHARED_DYNAMIC(bytes);
  tile[self()] = 1.0f;
  bytes[p.n - 1] = 0;
  results(p)[self()] = tile[self()];
}

__global__ void writes_past_an_array(const Probe p) {
  MT_SHARED(float, tile, 128);
  tile[self() + 1] = 1.0f;
  results(p)[self()] = tile[self()];
}

__global__ void writes_before_dynamic(const Probe p) {
  MT_SHARED_DYNAMIC(bytes);
  bytes[p.n - 1 - self()] = 0;
  results(p)[self()] = 1.0f;
}

__global__ void reads_shared_unwritten(const Probe p) {
  MT_SHARED(float, tile, 128);
  results(p)[at()] = tile[self()];
  tile[self()] = 1.0f;
}

__global__ void accesses_unaligned(const Probe p) {
  float v[kWide<float>];
  unpack<float>(load16(floats(p) + 1), v);
  results(p)[self()] = v[0];
}

__global__ void reads_behind_the_end(const Probe p) {
  if (self() == 77) results(p)[0] = floats(p)[p.n];
}

// Right only if a barrier comes between writing and reading, and another before writing again.
__global__ void passes_on(const Probe p) {
  MT_SHARED(float, tile, 128);
  float value = floats(p)[self()];
  for (int i = 0; i < 3; ++i) {
    tile[self()] = value;
#if !defined(MT_PROBE_NO_FIRST_BARRIER)
    __syncthreads();
#endif
    value = tile[(self() + 1) % 128] + 1.0f;
#if !defined(MT_PROBE_NO_SECOND_BARRIER)
    __syncthreads();
#endif
  }
  results(p)[self()] = value;
}

__global__ void tells_its_place(const Probe p) {
  int* counter = static_cast<int*>(p.out);
  const int turn = atomicAdd(counter, 1);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  counter[1 + turn] = static_cast<int>(block * blockDim.x) + self();
}

// (n, 5): xor 1, lane 7, up 3, sum, maximum of eight.
__global__ void shuffles(const Probe p) {
  const float v = floats(p)[self()];
  float* out = results(p) + 5 * self();
  out[0] = sub_shfl_xor(v, 1);
  out[1] = sub_shfl(v, 7);
  out[2] = sub_shfl_up(v, 3);
  out[3] = sub_sum(v);
  out[4] = sub_max<8>(v);
}

template <int kThreads>
__global__ void reduces(const Probe p) {
  const float sum = block_sum<kThreads>(floats(p)[self()]);
  const float most = block_max<kThreads>(floats(p)[self()]);
  results(p)[2 * self()] = sum;
  results(p)[2 * self() + 1] = most;
}

template <typename T>
__global__ void widens(const Probe p) {
  if (at() < p.n) results(p)[at()] = to_float(static_cast<const T*>(p.in)[at()]);
}

template <typename T>
__global__ void narrows(const Probe p) {
  if (at() < p.n) static_cast<T*>(p.out)[at()] = from_float<T>(floats(p)[at()]);
}

__global__ void exponentiates(const Probe p) {
  if (at() < p.n) results(p)[at()] = mt_exp(floats(p)[at()]);
}

__global__ void does_nothing(const Probe) {}

}  // namespace
}  // namespace mt

using mt::bf16;
using mt::f16;

// Runs the kernel of that name over blocks of `threads`; -1: there is none.
extern "C" MT_EXPORT int probe(const char* name, const void* in, void* out, int n, int blocks,
                               int threads, int shared_bytes) {
  const mt::Probe p{in, out, n};
#define MT_PROBE(kernel)                                            \
  if (strcmp(name, #kernel) == 0) {                                 \
    MT_LAUNCH(mt::kernel, blocks, threads, shared_bytes, nullptr, p); \
    return mt::launched();                                          \
  }
  MT_PROBE(ends_before_barrier)
  MT_PROBE(waits_at_two_barriers)
  MT_PROBE(shuffles_in_half_a_sub_warp)
  MT_PROBE(shuffles_in_one_sub_warp)
  MT_PROBE(shuffles_or_waits)
  MT_PROBE(shuffles_with_a_narrow_mask)
  MT_PROBE(reads_a_lane_too_far)
  MT_PROBE(declares_too_much)
  MT_PROBE(takes_dynamic)
  MT_PROBE(takes_all_there_is)
  MT_PROBE(writes_past_an_array)
  MT_PROBE(writes_before_dynamic)
  MT_PROBE(reads_shared_unwritten)
  MT_PROBE(accesses_unaligned)
  MT_PROBE(reads_behind_the_end)
  MT_PROBE(passes_on)
  MT_PROBE(shuffles)
  MT_PROBE(reduces<128>)
  MT_PROBE(reduces<256>)
  MT_PROBE(widens<f16>)
  MT_PROBE(widens<bf16>)
  MT_PROBE(narrows<f16>)
  MT_PROBE(narrows<bf16>)
  MT_PROBE(exponentiates)
  MT_PROBE(does_nothing)
  if (strcmp(name, "two_launches") == 0) {
    MT_LAUNCH(mt::ends_before_barrier, blocks, threads, 0, nullptr, p);
    MT_LAUNCH(mt::exponentiates, blocks, threads, 0, nullptr, p);
    return mt::launched();
  }
  if (strcmp(name, "tells_its_place") == 0) {
    MT_LAUNCH(mt::tells_its_place, dim3(2, 3, 4), threads, 0, nullptr, p);
    return mt::launched();
  }
  return -1;
}
