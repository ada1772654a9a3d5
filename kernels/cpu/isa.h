// What each instruction set's build of the hot sources offers, one namespace per build.
//
// A hot source is compiled several times, so everything in it lives in namespace mt::MT_ISA or has
// internal linkage. An inline function or a template of a shared header must not be instantiated
// there with external linkage: the linker keeps one copy, and if it is the AVX-512 one the portable
// path dies with SIGILL.

#ifndef MTACTORS_KERNELS_CPU_ISA_H
#define MTACTORS_KERNELS_CPU_ISA_H

#include "ops.h"

#define MT_DECLARE_ISA(isa)                                                             \
  namespace mt {                                                                        \
  namespace isa {                                                                       \
  const char* compiled_for();                                                           \
  const Ops* ops();                                                                     \
  int hold(const mt_pack&);                                                             \
  void pack(const mt_pack&);                                                            \
  void linear(const mt_linear&);                                                        \
  void likeliest(const mt_linear&, int sampleable, int32_t* ids);                       \
  void embedding(const mt_embedding&);                                                  \
  void rms_norm(const mt_rms_norm&);                                                    \
  void rope(const mt_rope&);                                                            \
  void kv_write(const mt_kv_write&);                                                    \
  void attention(const mt_attention&);                                                  \
  void silu_and_mul(const mt_silu_and_mul&);                                            \
  void copy_blocks(const mt_copy_blocks&);                                              \
  void sample(const mt_sample&);                                                        \
  void logprobs(const mt_logprobs&);                                                    \
  void reduce(const float* const* partials, int ranks, const void* bias,                \
              const void* residual, void* out, int rows, int n, int dtype);             \
  }                                                                                     \
  }

MT_DECLARE_ISA(portable)
MT_DECLARE_ISA(avx2)
MT_DECLARE_ISA(avx512)
MT_DECLARE_ISA(avx512bf16)
MT_DECLARE_ISA(amx)

#endif
