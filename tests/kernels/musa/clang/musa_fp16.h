/* __half as it is declared where it cannot be made from nothing but conversions. */
#ifndef MTACTORS_CLANG_MUSA_FP16_H
#define MTACTORS_CLANG_MUSA_FP16_H

#include "musa_runtime.h"

struct __half {
  __half() = default;

 private:
  __attribute__((unused)) unsigned short bits;
};
__device__ float __half2float(__half value);
__device__ __half __float2half(float value);

#endif
