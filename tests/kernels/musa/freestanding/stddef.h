/* Of the C library's header what the kernels use. */
#ifndef MTACTORS_FREESTANDING_STDDEF_H
#define MTACTORS_FREESTANDING_STDDEF_H

typedef __SIZE_TYPE__ size_t;

#endif
