// The table of one instruction set's kernels.

#include "isa.h"

namespace mt {
namespace MT_ISA {

const char* compiled_for() {
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
  return "amx";
#elif defined(__AVX512BF16__)
  return "avx512bf16";
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  return "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
  return "avx2";
#else
  return "portable";
#endif
}

const Ops* ops() {
  static const Ops table = {hold, pack,     linear,    likeliest,    embedding,   rms_norm,
                            rope, kv_write, attention, silu_and_mul, copy_blocks, sample,
                            logprobs, reduce};
  return &table;
}

}  // namespace MT_ISA
}  // namespace mt
