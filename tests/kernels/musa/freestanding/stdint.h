/* Of the C library's header what the kernels use: no compiler's or system's own is needed. */
#ifndef MTACTORS_FREESTANDING_STDINT_H
#define MTACTORS_FREESTANDING_STDINT_H

typedef __INT32_TYPE__ int32_t;
typedef __INT64_TYPE__ int64_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
typedef __UINTPTR_TYPE__ uintptr_t;

#endif
