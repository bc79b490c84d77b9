// Weights of tokens: exp of numbers that are not above zero, rounded to multiples of 2^-40. The twin of src/sample/weight.rs,
// operation for operation: a draw is the same on the CPU and here because every float32 operation is, none is fused with
// another (the _rn intrinsics never are), and sums of weights are sums of whole numbers.
#pragma once
#include "values.h"

// Whole numbers of 2^-40, and their sums: of 2^20 weights at most 2^60. (uint64_t is another type than atomicAdd takes.)
using units_t = unsigned long long;

__device__ __forceinline__ float exact_exp(float x) {
  const float lowest = -87.f, rounder = 12582912.f;
  const float clamped = x >= lowest ? x : lowest;
  const float rounded = __fadd_rn(__fmul_rn(clamped, 1.4426950408889634f), rounder);
  const float n = __fsub_rn(rounded, rounder);
  const float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
  float p = 1.9875691e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 0.5f);
  const float e = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.f);
  const uint32_t exponent = __float_as_uint(rounded) - __float_as_uint(rounder) + 127u;
  return x >= lowest ? __fmul_rn(e, __uint_as_float(exponent << 23)) : 0.f;
}
// From 2^-17 on float32 has multiples of 2^-40 only; adding it to anything below rounds to one.
__device__ __forceinline__ float weight_of(float x) {
  const float e = exact_exp(x), coarse = 7.62939453125e-6f;
  return e >= coarse ? e : __fsub_rn(__fadd_rn(e, coarse), coarse);
}
__device__ __forceinline__ units_t units_of(float weight) { return static_cast<units_t>(weight * 1099511627776.f); }
__device__ __forceinline__ float value_of(float logit, float max, float temperature) {
  return __fdiv_rn(__fsub_rn(logit, max), temperature);
}
// floor((a * b - less) / 2^53); `less` is 0, or 1 where a * b is not 0.
__device__ __forceinline__ units_t share_of(units_t a, units_t b, units_t less) {
  const units_t low = a * b, high = __umul64hi(a, b) - (low < less);
  return high << 11 | (low - less) >> 53;
}
