/* __half for nvcc: its names are the same. */
#ifndef MTACTORS_NVIDIA_MUSA_FP16_H
#define MTACTORS_NVIDIA_MUSA_FP16_H

#include <cuda_fp16.h>

#endif
