/* __mt_bfloat16 as it is declared where it cannot be made from nothing but conversions. */
#ifndef MTACTORS_CLANG_MUSA_BF16_H
#define MTACTORS_CLANG_MUSA_BF16_H

#include "musa_runtime.h"

struct __mt_bfloat16 {
  __mt_bfloat16() = default;

 private:
  __attribute__((unused)) unsigned short bits;
};
__device__ float __bfloat162float(__mt_bfloat16 value);
__device__ __mt_bfloat16 __float2bfloat16(float value);

#endif
