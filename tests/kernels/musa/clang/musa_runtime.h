/* Declarations of the MUSA names that the kernels use, for clang's own CUDA language without an SDK.
 *
 * As in mcc, __MUSA_ARCH__ is there in the device pass only. Names are listed by hand: one that is
 * not here does not compile. Nothing is defined, so nothing can be run.
 */
#ifndef MTACTORS_CLANG_MUSA_RUNTIME_H
#define MTACTORS_CLANG_MUSA_RUNTIME_H

#define __MUSACC__ 1
#if defined(__CUDA_ARCH__)
#define __MUSA_ARCH__ MT_MUSA_ARCH
#endif
#undef __CUDA_ARCH__

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define __align__(bytes) __attribute__((aligned(bytes)))

#include <stdint.h>
#include <string.h>

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  __host__ __device__ constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1)
      : x(x), y(y), z(z) {}
};
extern const __device__ uint3 threadIdx, blockIdx;
extern const __device__ dim3 blockDim, gridDim;

typedef struct musaStream* musaStream_t;
enum musaError_t { musaSuccess = 0, musaErrorInvalidValue = 1 };
enum musaDeviceAttr {
  musaDevAttrMaxSharedMemoryPerBlock,
  musaDevAttrWarpSize,
  musaDevAttrMultiProcessorCount,
  musaDevAttrComputeCapabilityMajor,
  musaDevAttrComputeCapabilityMinor
};
musaError_t musaGetLastError();
const char* musaGetErrorString(musaError_t error);
musaError_t musaDeviceGetAttribute(int* value, musaDeviceAttr attribute, int device);

/* What clang turns a launch into. */
extern "C" int cudaConfigureCall(dim3 grid, dim3 block, size_t shared = 0, musaStream_t = nullptr);
extern "C" unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared = 0,
                                                void* stream = nullptr);

__device__ void __syncthreads();

#define MT_SHUFFLES(type)                                        \
  __device__ type __shfl_sync(unsigned, type, int lane, int width); \
  __device__ type __shfl_xor_sync(unsigned, type, int mask, int width); \
  __device__ type __shfl_up_sync(unsigned, type, unsigned by, int width);
MT_SHUFFLES(float)
MT_SHUFFLES(int)
MT_SHUFFLES(unsigned)

__device__ int atomicAdd(int* address, int value);
__device__ unsigned atomicAdd(unsigned* address, unsigned value);

__device__ float fmaf(float, float, float);
__device__ float fmaxf(float, float);
__device__ float fminf(float, float);
__device__ float sqrtf(float);
__device__ float logf(float);

#endif
