// Puts together what attention_decode left of the splits of a row, in their order.
//
// The chain of sums is that of attention_prefill, which merges a split when it ends (see merge()). What a split is multiplied
// by depends on the bases alone, and largest values may be found in any order: so factors are found first, a thread a split,
// and the chain is left with two instructions a split.
#include "attention_records.h"

constexpr int THREADS = 128, WARPS = THREADS / WARP_LANES, DIMS = 2;  // head_dim at most THREADS * DIMS

// The factors of up to THREADS splits, of which this thread has one; `base` is that of the splits before, then of all.
__device__ __forceinline__ MergeFactors factors_of(float own, float& base, float* of_warps) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  float upto = own;
#pragma unroll
  for (int by = 1; by < WARP_LANES; by *= 2) upto = fmaxf(upto, __shfl_up_sync(~0u, upto, by));
  const float neighbour = __shfl_up_sync(~0u, upto, 1);
  if (lane == WARP_LANES - 1) of_warps[warp] = upto;
  __syncthreads();  // the largest of each warp
  float before = base;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    if (w < warp) before = fmaxf(before, of_warps[w]);
    base = fmaxf(base, of_warps[w]);
  }
  if (lane > 0) before = fmaxf(before, neighbour);
  const float reference = finite_base(fmaxf(before, own));
  return MergeFactors{fast_exp2(before - reference), fast_exp2(own - reference)};
}

// out[row, head] from its splits, where there are several. Grid: heads, max_rows, spans.
KERNEL(THREADS, attention_merge, bf16* out, const float* record_values, const float* record_sums, const uint32_t* spans,
       int window, int num_heads, int head_dim, int max_rows, int max_splits) {
  SHARED(MergeFactors, factors, THREADS);
  SHARED(float, sums, THREADS);
  SHARED(float, of_warps, WARPS);
  const Span span = load_span(spans, blockIdx.z);
  const int head = blockIdx.x, row = blockIdx.y;
  if (row >= span.num_rows) return;
  const Splits splits(span, row, window);
  if (splits.first == splits.last) return;
  const size_t record = Records<const float>{record_values, record_sums, max_rows, max_splits}.of(blockIdx.z, row, num_heads, head);
  Softmax total{nothing(), 0.f};
  float value[DIMS] = {};
  for (int begin = splits.first; begin <= splits.last; begin += THREADS) {
    const int count = min(THREADS, splits.last + 1 - begin), own = threadIdx.x;
    float2 part{nothing(), 0.f};
    if (own < count) part = load_vector<float2>(record_sums + 2 * (record + begin + own));
    factors[own] = factors_of(part.x, total.base, of_warps);
    sums[own] = part.y;
    __syncthreads();  // the factors are there
    const float* const values = record_values + (record + begin) * head_dim;
#pragma unroll 16
    for (int i = 0; i < count; ++i) {
      const MergeFactors f = factors[i];
      total.sum = merge_values(f, total.sum, sums[i]);
#pragma unroll
      for (int j = 0; j < DIMS; ++j)
        if (const int d = own + j * THREADS; d < head_dim)
          value[j] = merge_values(f, value[j], values[static_cast<size_t>(i) * head_dim + d]);
    }
    __syncthreads();  // nobody reads the factors any more
  }
  out += (static_cast<size_t>(span.row_start + row) * num_heads + head) * head_dim;
#pragma unroll
  for (int j = 0; j < DIMS; ++j)
    if (const int d = threadIdx.x + j * THREADS; d < head_dim) out[d] = f2bf(value[j] * normaliser(total));
}
