/* The part of the MUSA runtime and language that the kernels use, for a host compiler.
 *
 * Names are listed by hand: one that is not here does not compile. The threads of a block run as
 * fibres on the calling thread (emulator.cpp); launches are synchronous and blocks run one at a
 * time. What a launch may not do (see emulator.h) ends it with musaErrorLaunchFailure, and
 * musaGetErrorString then tells kernel, block, thread and reason.
 */
#ifndef MTACTORS_EMULATED_MUSA_RUNTIME_H
#define MTACTORS_EMULATED_MUSA_RUNTIME_H

#define MT_EMULATED 1

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

typedef struct musaStream* musaStream_t;

enum musaError_t {
  musaSuccess = 0,
  musaErrorInvalidValue = 1,
  musaErrorInvalidConfiguration = 9,
  musaErrorLaunchFailure = 719
};

enum musaDeviceAttr {
  musaDevAttrMaxSharedMemoryPerBlock = 8,
  musaDevAttrWarpSize = 10,
  musaDevAttrMultiProcessorCount = 16,
  musaDevAttrComputeCapabilityMajor = 75,
  musaDevAttrComputeCapabilityMinor = 76
};

musaError_t musaGetLastError();
musaError_t musaPeekAtLastError();
const char* musaGetErrorString(musaError_t error);
musaError_t musaDeviceGetAttribute(int* value, musaDeviceAttr attribute, int device);

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  mt_emulator::barrier(file, line);
}

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return mt_emulator::shuffle(mt_emulator::kXor, mask, value, lane_mask, width, file, line);
}
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width,
                     const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return mt_emulator::shuffle(mt_emulator::kIndex, mask, value, lane, width, file, line);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, int by, int width,
                        const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return mt_emulator::shuffle(mt_emulator::kUp, mask, value, by, width, file, line);
}

/* Threads run one at a time between barriers: plain additions are atomic. */
template <typename T>
inline T atomicAdd(T* address, T value) {
  static_assert(sizeof(T) == 4, "only 4-byte additions are known to be there");
  const T old = *address;
  *address = old + value;
  return old;
}

template <typename T>
inline T __ldg(const T* pointer) {
  return *pointer;
}

namespace mt_emulator {

/* Arguments are copied to the kernel's parameter types once, as a launch does. */
template <typename... P>
struct Call {
  void (*kernel)(P...);
  std::tuple<P...> arguments;
  static void invoke(void* self) {
    auto* call = static_cast<Call*>(self);
    std::apply(call->kernel, call->arguments);
  }
};

template <typename... P, typename... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            const A&... arguments) {
  Call<P...> call{kernel, std::tuple<P...>(arguments...)};
  run(name, &Call<P...>::invoke, &call, &grid.x, &block.x, shared_bytes);
}

}  // namespace mt_emulator

#endif
