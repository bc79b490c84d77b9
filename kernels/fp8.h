// FP8 E4M3 (OCP 8-bit floating point, revision 1.0): bias 7, no infinities, 448 the largest. In integers, for every chip.
#pragma once
#include "dev.h"

struct fp8 { uint8_t u; };
constexpr float LARGEST_FP8 = 448.f;

// To the nearest, ties to even; |x| is at most 448 and a rounding more.
__device__ __forceinline__ uint8_t encode_fp8(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u;
  const float magnitude = fminf(fabsf(x), LARGEST_FP8);
  if (magnitude < 0.015625f)  // 2^-6: multiples of 2^-9
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(rintf(magnitude * 512.f)));
  const uint32_t m = __float_as_uint(magnitude);
  const uint32_t rounded = m + 0x7ffffu + (m >> 20 & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

// Exact: the bits as a float32 whose exponent is 120 too small.
__device__ __forceinline__ float decode_fp8(fp8 x) {
  const uint32_t bits = static_cast<uint32_t>(x.u);
  return __uint_as_float((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * 1.329227995784916e36f;  // 2^120
}

// Two in the high bytes of a word's halves as two bf16, exactly: exponent and fraction in the place of a bf16's are 2^120
// too small.
__device__ __forceinline__ uint32_t decode_fp8x2(uint32_t bytes) {
  return fma_bf16x2((bytes >> 4 & 0x07f007f0u) | (bytes & 0x80008000u), 0x7b807b80u, 0x80008000u);
}
