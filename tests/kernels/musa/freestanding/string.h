/* Of the C library's header what the kernels use; the device's memcpy is the SDK's. */
#ifndef MTACTORS_FREESTANDING_STRING_H
#define MTACTORS_FREESTANDING_STRING_H

#include <stddef.h>

extern "C" void* memcpy(void* to, const void* from, size_t bytes);

#endif
