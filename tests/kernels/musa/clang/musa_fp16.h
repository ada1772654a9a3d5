/* Declares __half and its two conversions for clang's CUDA mode. */
#ifndef MTACTORS_CLANG_MUSA_FP16_H
#define MTACTORS_CLANG_MUSA_FP16_H

#include "musa_runtime.h"

struct __half {
  unsigned short bits;
};
__device__ float __half2float(__half);
__device__ __half __float2half(float);

#endif
