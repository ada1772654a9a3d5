/* Of the C library's header what the kernels use. */
#ifndef MTACTORS_CLANG_STRING_H
#define MTACTORS_CLANG_STRING_H

typedef __SIZE_TYPE__ size_t;
extern "C" __attribute__((host)) __attribute__((device)) void* memcpy(void* to, const void* from,
                                                                      size_t bytes);

#endif
