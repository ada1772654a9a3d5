/* Declares, for clang's own CUDA mode, what the device kernels use of the MUSA runtime and language.
 *
 * MUSA's compiler is made from clang. This mode knows its rules of what host and device code may
 * call and how a kernel is launched, and needs neither CUDA nor MUSA to check them. Declares only:
 * nothing here runs. The names with cuda in them are those that clang itself looks for.
 */
#ifndef MTACTORS_CLANG_MUSA_RUNTIME_H
#define MTACTORS_CLANG_MUSA_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define __host__ __attribute__((host))
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#define __shared__ __attribute__((shared))
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define __align__(n) __attribute__((aligned(n)))

#define __MUSACC__ 1
#if defined(__CUDA_ARCH__)
#define __MUSA_ARCH__ MT_MUSA_ARCH
#endif

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
extern "C" int __cudaPushCallConfiguration(dim3, dim3, size_t = 0, void* = nullptr);
extern "C" int cudaConfigureCall(dim3, dim3, size_t = 0, musaStream_t = nullptr);
extern "C" int cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, musaStream_t);

enum musaError_t { musaErrorInvalidValue = 1 };
enum musaDeviceAttr {
  musaDevAttrMaxSharedMemoryPerBlock,
  musaDevAttrWarpSize,
  musaDevAttrMultiProcessorCount,
  musaDevAttrComputeCapabilityMajor,
  musaDevAttrComputeCapabilityMinor
};
musaError_t musaGetLastError();
const char* musaGetErrorString(musaError_t);
musaError_t musaDeviceGetAttribute(int*, musaDeviceAttr, int);

__device__ void __syncthreads();
template <typename T>
__device__ T __shfl_xor_sync(unsigned, T, int, int);
template <typename T>
__device__ T __shfl_sync(unsigned, T, int, int);
template <typename T>
__device__ T __shfl_up_sync(unsigned, T, unsigned, int);
__device__ int atomicAdd(int*, int);
__device__ unsigned atomicAdd(unsigned*, unsigned);

__device__ void* memcpy(void*, const void*, size_t);
__device__ float fmaf(float, float, float);
__device__ float fmaxf(float, float);
__device__ float fminf(float, float);
__device__ float fabsf(float);
__device__ float sqrtf(float);
__device__ float rsqrtf(float);

#endif
