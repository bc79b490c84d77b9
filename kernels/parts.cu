// Sums over the ranks that compute one model together.
#include "values.h"

// `out[i]` = the sum of value i of each part, the first part's first: the order is the same on every rank.
template <int N>
__device__ __forceinline__ void add_parts_from(float* out, const float* parts, int num_parts, int from, int count,
                                               size_t part) {
  const size_t step = static_cast<size_t>(gridDim.x) * ROW_THREADS * N;
  size_t i = from + (static_cast<size_t>(blockIdx.x) * ROW_THREADS + threadIdx.x) * N;
  for (; i < static_cast<size_t>(count); i += step) {
    float sum[N];
    load_values(parts + i, sum);
    for (int p = 1; p < num_parts; ++p) {
      float v[N];
      load_values(parts + p * part + i, v);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += v[j];
    }
    store_values(out + i, sum);
  }
}
KERNEL(ROW_THREADS, add_parts, float* out, const float* parts, int num_parts, int count) {
  // Every part begins at a multiple of 16 bytes where its size is one.
  const bool vectors = aligned16(out) && aligned16(parts) && count % 4 == 0;
  const int whole = vectors ? count / VECTOR * VECTOR : 0;
  add_parts_from<VECTOR>(out, parts, num_parts, 0, whole, count);
  add_parts_from<1>(out, parts, num_parts, whole, count, count);
}
