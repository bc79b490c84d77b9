// Kernels that do wrong, for faults.cpp: each would hang, fault or read rubbish on a GPU. Part of the tests' library alone.
#include "dev.h"

KERNEL(64, fault_none, float* out) { out[threadIdx.x] = 1.f; }
KERNEL(64, fault_barrier_in_branch, float* out) {
  // The second warp waits for its first lane, which waits for the whole block.
  if (threadIdx.x <= 32) __syncthreads();
  else __syncwarp();
  out[threadIdx.x] = 1.f;
}
KERNEL(64, fault_barriers_of_two_lines, float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.f;
}
KERNEL(64, fault_shuffle_in_branch, float* out) {
  float x = 1.f;
  if (threadIdx.x % 32 < 16) x = __shfl_sync(~0u, x, 0);
  else __syncthreads();
  out[threadIdx.x] = x;
}
KERNEL(64, fault_shuffle_outside_mask, float* out) {
  float x = 1.f;
  if (threadIdx.x % 32 < 16) x = __shfl_sync(0xffffu, x, 20);
  out[threadIdx.x] = x;
}
KERNEL(64, fault_lane_not_in_mask, float* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1.f, 0); }
KERNEL(64, fault_copy_misaligned, float* out) {
  DYNAMIC_SHARED(float, to);
  cp_async16(to + 1, out);
  cp_async_commit();
}
KERNEL(64, fault_vector_misaligned, float* out) { store_vector(out + 1, load_vector<float4>(out)); }
KERNEL(64, fault_ldmatrix_misaligned, float* out) {
  DYNAMIC_SHARED(float, from);
  uint32_t r[4];
  ldmatrix_x4(r, from + 2);
  out[threadIdx.x] = __uint_as_float(r[0]);
}
// Reads the target of a copy before its wait, and after it zeros: none of its bytes are taken from memory.
KERNEL(32, late_copy, float* out) {
  DYNAMIC_SHARED(float, to);
  cp_async16(to + 4 * threadIdx.x, out, 0);
  cp_async_commit();
  const float early = to[4 * threadIdx.x];
  cp_async_wait<0>();
  out[32 + threadIdx.x] = to[4 * threadIdx.x];
  out[threadIdx.x] = early;
}
KERNEL(32, unwritten_shared, float* out) {
  DYNAMIC_SHARED(float, dynamic);
  SHARED(float, fixed, 32);
  out[threadIdx.x] = dynamic[threadIdx.x];
  out[32 + threadIdx.x] = fixed[threadIdx.x];
  dynamic[threadIdx.x] = fixed[threadIdx.x] = 1.f;
}
