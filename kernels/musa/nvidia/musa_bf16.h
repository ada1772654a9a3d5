/* __mt_bfloat16 for nvcc; the conversions' names are the same. */
#ifndef MTACTORS_NVIDIA_MUSA_BF16_H
#define MTACTORS_NVIDIA_MUSA_BF16_H

#include <cuda_bf16.h>

#define __mt_bfloat16 __nv_bfloat16

#endif
