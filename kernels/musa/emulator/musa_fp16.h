/* __half for a host compiler: storage and the two conversions, to nearest even, as torch's bits. */
#ifndef MTACTORS_EMULATED_MUSA_FP16_H
#define MTACTORS_EMULATED_MUSA_FP16_H

#include <stdint.h>
#include <string.h>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu, mantissa = value.bits & 0x3ffu;
  uint32_t bits;
  if (exponent == 0) {
    /* Zero or a denormal: exact in float, whose own denormals begin far below. */
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    memcpy(&bits, &magnitude, sizeof bits);
  } else if (exponent == 31) {
    bits = 0x7f800000u | mantissa << 13;
  } else {
    bits = (exponent + 112) << 23 | mantissa << 13;
  }
  bits |= sign;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline __half __float2half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  uint32_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00u;
  } else if (bits >= 0x477ff000u) {
    half = 0x7c00u; /* 65520 and above round to infinity */
  } else if (bits < 0x38800000u) {
    /* Below the least normal half: the addition leaves the rounded mantissa in the low bits. */
    float sum;
    memcpy(&sum, &bits, sizeof sum);
    sum += 0.5f;
    memcpy(&half, &sum, sizeof half);
    half -= 0x3f000000u;
  } else {
    half = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
  }
  return __half{static_cast<uint16_t>(sign | half)};
}

#endif
