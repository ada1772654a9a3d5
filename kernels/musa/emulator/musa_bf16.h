/* __mt_bfloat16 for a host compiler: storage and the two conversions, to nearest even. */
#ifndef MTACTORS_EMULATED_MUSA_BF16_H
#define MTACTORS_EMULATED_MUSA_BF16_H

#include <stdint.h>
#include <string.h>

struct __mt_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__mt_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline __mt_bfloat16 __float2bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return __mt_bfloat16{0x7fc0u};
  return __mt_bfloat16{static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

#endif
