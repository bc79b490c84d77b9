// What every kernel is written in: its types, and the instructions that C++ has no word for.
//
// Inline PTX stands here only; cpu_shim/device.h has a CPU twin of each function, so that a kernel runs unchanged under
// g++. No NVIDIA header is included, so NVRTC compiles these files with nothing but themselves.
// Lane and fragment layouts are those of the PTX ISA manual (chapters on mma, ldmatrix and cp.async), sm_80 and up.
#pragma once
#ifdef GARRICK_CPU_SHIM
#include "device.h"
#else

#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef signed char int8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uintptr_t;
#else
#include <stdint.h>
#endif

// A kernel of at most `max_threads` threads per block, by a plain name. Its body follows. Of blocks of 256 threads two are
// to fit a multiprocessor: at most 128 registers.
#define KERNEL(max_threads, name, ...) \
  extern "C" __global__ void __launch_bounds__(max_threads, (max_threads) >= 256 ? 2 : 1) name(__VA_ARGS__)
// An array of the block; and its dynamic shared memory.
#define SHARED(T, name, count) __shared__ __align__(16) T name[count]
#define DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared)

struct __align__(2) bf16 { uint16_t u; };

// To the nearest, ties to even.
__device__ __forceinline__ bf16 f2bf(float x) {
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.u) : "f"(x));
  return r;
}
// Two bf16 in a word, `low` first in memory.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
// a * b + c of two bf16 in a word each, rounded once; nothing is flushed to zero.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
// Four bytes of two words by the digits of `selector`, the lowest first: 0 to 3 are of `a`, 4 to 7 of `b`.
__device__ __forceinline__ uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
  return r;
}
// The float16 of these bits.
__device__ __forceinline__ float half_to_float(uint16_t x) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x));
  return r;
}
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// One memory access of sizeof(V) bytes; the address is a multiple of that. (By value: nvcc splits the store of a reference.)
template <class V> __device__ __forceinline__ V load_vector(const void* p) { return *static_cast<const V*>(p); }
template <class V> __device__ __forceinline__ void store_vector(void* p, V v) { *static_cast<V*>(p) = v; }

// Copies 16 bytes to shared memory asynchronously, of which the first `bytes` are read and the rest are zeros.
__device__ __forceinline__ void cp_async16(void* to, const void* from, int bytes = 16) {
  const uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(from), "r"(bytes) : "memory");
}
// The same with 4 bytes.
__device__ __forceinline__ void cp_async4(void* to, const void* from, int bytes = 4) {
  const uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(s), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all of this thread's groups but the latest N have arrived.
template <int N> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(s) : "memory");
}
// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const uint32_t s = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(s) : "memory");
}
// D (16x8, f32) += A (16x16, bf16, by rows) * B (16x8, bf16, by columns). Volatile, so that it is not moved into a branch
// that alone uses its result: all threads of the warp must come by.
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

__device__ __forceinline__ float bf2f(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.u) << 16); }
