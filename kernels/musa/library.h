/* What a library of device kernels exports, whichever compiler made it.
 *
 * One set of sources (*.mu in kernels/musa) becomes a library three ways: mcc for MUSA, nvcc through
 * kernels/musa/nvidia, a host compiler through kernels/musa/emulator. All are opened with dlopen
 * and called through these names alone. Knows nothing of torch, Python or the C++ library.
 *
 * A launcher returns 0 when its kernels are queued, a positive code of the runtime's when they are
 * not, and MT_DEVICE_UNSUPPORTED when it has no kernel for such shapes or dtypes: it never starts
 * a kernel that would compute something else. It reads no device memory, so grids come from what
 * the struct holds by value. Pointers in the structs are device pointers, except
 * mt_copy_blocks.caches, a host array of device pointers that is read before the call returns.
 * `stream` is the queue (musaStream_t; NULL is the default one). On a device, `weight` of
 * mt_embedding is the plain row-major (n, k) matrix.
 */
#ifndef MTACTORS_KERNELS_MUSA_LIBRARY_H
#define MTACTORS_KERNELS_MUSA_LIBRARY_H

#include <stdint.h>

#include "abi.h"

#define MT_DEVICE_UNSUPPORTED (-1)

#if defined(__GNUC__) || defined(__clang__)
#define MT_EXPORT __attribute__((visibility("default")))
#else
#define MT_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* One device, as the runtime tells it. `arch`: 220 or 310 as __MUSA_ARCH__, what the shim's build
 * was compiled for, 0 emulated. */
typedef struct mt_device_facts_t {
  int32_t arch;
  int32_t warp_size;
  int32_t shared_bytes_per_block;
  int32_t multiprocessors;
} mt_device_facts_t;

/* MT_ABI_VERSION of the header that the library was compiled with. */
MT_EXPORT int mt_device_abi_version(void);
/* "musa", "nvidia" or "emulated". */
MT_EXPORT const char* mt_device_kind(void);
/* 0, or the runtime's error code. */
MT_EXPORT int mt_device_facts(int device, mt_device_facts_t* facts);
/* The text of a code that any of these functions returned; valid until the next call. */
MT_EXPORT const char* mt_device_error(int code);

MT_EXPORT int mt_device_embedding(const mt_embedding* op);
MT_EXPORT int mt_device_rms_norm(const mt_rms_norm* op);
MT_EXPORT int mt_device_rope(const mt_rope* op);
MT_EXPORT int mt_device_kv_write(const mt_kv_write* op);
MT_EXPORT int mt_device_attention(const mt_attention* op);
MT_EXPORT int mt_device_silu_and_mul(const mt_silu_and_mul* op);
MT_EXPORT int mt_device_copy_blocks(const mt_copy_blocks* op);
MT_EXPORT int mt_device_sample(const mt_sample* op);
MT_EXPORT int mt_device_logprobs(const mt_logprobs* op);

/* Bytes of device scratch, aligned to 256, that the caller hands in as `workspace`; 0 is none,
 * MT_DEVICE_UNSUPPORTED as above. Read from the struct's values only, never through its pointers. */
MT_EXPORT int64_t mt_device_attention_workspace(const mt_attention* op);
MT_EXPORT int64_t mt_device_sample_workspace(const mt_sample* op);

#ifdef __cplusplus
}
#endif

#endif
