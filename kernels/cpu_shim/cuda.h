// CUDA's vocabulary for g++: qualifiers, vector types, built-in variables, mathematics.
//
// Only what the kernels use. Compile a kernel with
//   g++ -x c++ -std=c++17 -DGARRICK_CPU_SHIM -Ikernels/cpu_shim -Ikernels -fno-strict-aliasing
#pragma once
#include <cmath>
#include <cstdint>
#include "warp.h"

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

#define threadIdx (shim::state().current->thread)
#define blockIdx (shim::state().block_index)
#define blockDim (shim::state().block)
#define gridDim (shim::state().grid)
#define __syncthreads() shim::arrive(shim::state().sync, shim::state().live, __LINE__)

inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
// Rounded one by one: compile without fused operations (-std=c++17 does, and not gnu++17).
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
// Threads take turns, so that a sum is one operation.
template <class T> T atomicAdd(T* to, T by) {
  const T before = *to;
  *to += by;
  return before;
}
