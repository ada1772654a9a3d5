/* The part of the MUSA runtime that the kernels use, for nvcc: `nvcc -x cu -DMT_MUSA_ARCH=310`.
 *
 * Names are listed by hand, and only those that the sources use: one that is not here does not
 * compile. What CUDA's own headers bring along besides, tests/kernels/musa/test_lint.py forbids.
 * As with mcc, __MUSA_ARCH__ is there in device passes only; its value is the one asked for, so a
 * build takes the paths of that chip. Says nothing of how a MUSA chip with 128 lanes behaves.
 */
#ifndef MTACTORS_NVIDIA_MUSA_RUNTIME_H
#define MTACTORS_NVIDIA_MUSA_RUNTIME_H

#include <cuda_runtime.h>

#if !defined(MT_MUSA_ARCH)
#error "say which chip's paths to compile: -DMT_MUSA_ARCH=220 or 310"
#endif

#define MT_NVIDIA 1
#define __MUSACC__ 1
#if defined(__CUDA_ARCH__)
#define __MUSA_ARCH__ MT_MUSA_ARCH
#endif

#define musaStream_t cudaStream_t
#define musaError_t cudaError_t
#define musaErrorInvalidValue cudaErrorInvalidValue

#define musaGetLastError cudaGetLastError
#define musaGetErrorString cudaGetErrorString

#define musaDeviceGetAttribute cudaDeviceGetAttribute
#define musaDeviceAttr cudaDeviceAttr
#define musaDevAttrMaxSharedMemoryPerBlock cudaDevAttrMaxSharedMemoryPerBlock
#define musaDevAttrWarpSize cudaDevAttrWarpSize
#define musaDevAttrMultiProcessorCount cudaDevAttrMultiProcessorCount
#define musaDevAttrComputeCapabilityMajor cudaDevAttrComputeCapabilityMajor
#define musaDevAttrComputeCapabilityMinor cudaDevAttrComputeCapabilityMinor

#endif
