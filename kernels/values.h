// Values in memory (float32 or bf16) as float32 in registers, eight at a time or one; sums over a warp and a block.
#pragma once
#include "dev.h"

constexpr int WARP_LANES = 32;
// Threads of a block of every kernel that has no tile.
constexpr int ROW_THREADS = 256;
// Values of a vector access: one of 16 bytes for bf16, two for float32.
constexpr int VECTOR = 8;

__device__ __forceinline__ void load_values(const float* p, float (&v)[1]) { v[0] = *p; }
__device__ __forceinline__ void load_values(const bf16* p, float (&v)[1]) { v[0] = bf2f(*p); }
__device__ __forceinline__ void load_values(const float* p, float (&v)[VECTOR]) {
  const float4 a = load_vector<float4>(p), b = load_vector<float4>(p + 4);
  v[0] = a.x; v[1] = a.y; v[2] = a.z; v[3] = a.w;
  v[4] = b.x; v[5] = b.y; v[6] = b.z; v[7] = b.w;
}
__device__ __forceinline__ void unpack_bf16(uint32_t pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ void load_values(const bf16* p, float (&v)[VECTOR]) {
  const uint4 a = load_vector<uint4>(p);
  unpack_bf16(a.x, v[0], v[1]);
  unpack_bf16(a.y, v[2], v[3]);
  unpack_bf16(a.z, v[4], v[5]);
  unpack_bf16(a.w, v[6], v[7]);
}

__device__ __forceinline__ void store_values(float* p, const float (&v)[1]) { *p = v[0]; }
__device__ __forceinline__ void store_values(bf16* p, const float (&v)[1]) { *p = f2bf(v[0]); }
__device__ __forceinline__ void store_values(float* p, const float (&v)[VECTOR]) {
  store_vector(p, float4{v[0], v[1], v[2], v[3]});
  store_vector(p + 4, float4{v[4], v[5], v[6], v[7]});
}
__device__ __forceinline__ void store_values(bf16* p, const float (&v)[VECTOR]) {
  store_vector(p, uint4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])});
}

__device__ __forceinline__ bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }
// Whether rows of `width` values at these addresses can all be read in vectors.
template <class... P> __device__ __forceinline__ bool vectors_fit(int width, const P*... rows) {
  return width % VECTOR == 0 && (aligned16(rows) && ...);
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int with = WARP_LANES / 2; with > 0; with /= 2) x += __shfl_xor_sync(~0u, x, with);
  return x;
}
__device__ __forceinline__ float warp_largest(float x) {
#pragma unroll
  for (int with = WARP_LANES / 2; with > 0; with /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, with));
  return x;
}
// What each warp of a block of ROW_THREADS has, put together in their order by `both`; the same in every thread. Every thread
// of the block must call it.
template <class Both> __device__ __forceinline__ float of_all_warps(float x, Both both) {
  constexpr int WARPS = ROW_THREADS / WARP_LANES;
  SHARED(float, of_warp, WARPS);
  __syncthreads();  // nobody reads those of the call before any more
  if (threadIdx.x % WARP_LANES == 0) of_warp[threadIdx.x / WARP_LANES] = x;
  __syncthreads();
  x = of_warp[0];
#pragma unroll
  for (int w = 1; w < WARPS; ++w) x = both(x, of_warp[w]);
  return x;
}
__device__ __forceinline__ float block_sum(float x) {
  return of_all_warps(warp_sum(x), [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float block_largest(float x) {
  return of_all_warps(warp_largest(x), [](float a, float b) { return fmaxf(a, b); });
}
