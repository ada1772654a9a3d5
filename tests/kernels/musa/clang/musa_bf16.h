/* Declares __mt_bfloat16 and its two conversions for clang's CUDA mode. */
#ifndef MTACTORS_CLANG_MUSA_BF16_H
#define MTACTORS_CLANG_MUSA_BF16_H

#include "musa_runtime.h"

struct __mt_bfloat16 {
  unsigned short bits;
};
__device__ float __bfloat162float(__mt_bfloat16);
__device__ __mt_bfloat16 __float2bfloat16(float);

#endif
