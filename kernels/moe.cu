// Mixture of experts: who goes where, entries grouped by expert, the experts' products, and their weighted sum.
//
// An entry is `row * per_row + rank`. A row's experts are ranked by logit (ties: lower number first) and summed in that
// order; which other rows are in the step changes nothing.
#include "experts.h"
#include "gemm.h"

constexpr int WARPS = ROW_THREADS / WARP_LANES;
constexpr int MAX_EXPERTS = 512, LANE_EXPERTS = MAX_EXPERTS / WARP_LANES;
constexpr float LOG2_E = 1.4426950408889634f;

// The better of two candidates: the larger logit, of equal ones the lower expert.
struct Candidate { float logit; int expert; };
__device__ __forceinline__ Candidate better(Candidate a, Candidate b) {
  return b.logit > a.logit || (b.logit == a.logit && b.expert < a.expert) ? b : a;
}
__device__ __forceinline__ Candidate warp_best(Candidate c) {
#pragma unroll
  for (int with = WARP_LANES / 2; with > 0; with /= 2)
    c = better(c, Candidate{__shfl_xor_sync(~0u, c.logit, with), __shfl_xor_sync(~0u, c.expert, with)});
  return c;
}

// Softmax over a row's logits and the best `per_row` of them, best first; with `renormalise` their weights sum to one.
// A warp takes a row. Logits that are not numbers count as minus infinity.
KERNEL(ROW_THREADS, moe_route, uint32_t* experts, float* weights, const float* logits, int rows, int num_experts,
       int per_row,
       int renormalise) {
  const int lane = threadIdx.x % WARP_LANES, row = blockIdx.x * WARPS + threadIdx.x / WARP_LANES;
  if (row >= rows) return;
  const float lowest = __uint_as_float(0xff800000u);
  float mine[LANE_EXPERTS];
  Candidate best{lowest, MAX_EXPERTS};
#pragma unroll
  for (int i = 0; i < LANE_EXPERTS; ++i) {
    const int expert = lane + WARP_LANES * i;
    mine[i] = expert < num_experts ? fmaxf(logits[static_cast<size_t>(row) * num_experts + expert], lowest) : lowest;
    if (expert < num_experts) best = better(best, Candidate{mine[i], expert});
  }
  const float largest = fmaxf(warp_best(best).logit, -3e38f);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < LANE_EXPERTS; ++i) sum += fast_exp2((mine[i] - largest) * LOG2_E);
  const float total = warp_sum(sum);
  uint32_t taken = 0;  // of this lane's experts
  float chosen = 0.f, weight = 0.f;
  experts += static_cast<size_t>(row) * per_row;
  weights += static_cast<size_t>(row) * per_row;
  for (int rank = 0; rank < per_row; ++rank) {
    best = Candidate{lowest, MAX_EXPERTS};
#pragma unroll
    for (int i = 0; i < LANE_EXPERTS; ++i) {
      const int expert = lane + WARP_LANES * i;
      if (expert < num_experts && !(taken >> i & 1u)) best = better(best, Candidate{mine[i], expert});
    }
    best = warp_best(best);
    if (best.expert % WARP_LANES == lane) taken |= 1u << best.expert / WARP_LANES;
    weight = fast_exp2((best.logit - largest) * LOG2_E) / total;
    chosen += weight;
    if (lane == 0) {
      experts[rank] = best.expert;
      weights[rank] = weight;
    }
  }
  __syncwarp();
  if (renormalise && lane == 0) for (int rank = 0; rank < per_row; ++rank) weights[rank] /= chosen;
}

// The number of this block's threads with a true `flag` before this one, and in all. Every thread must call it.
__device__ __forceinline__ int block_rank(bool flag, int& all) {
  SHARED(int, of_warp, WARPS);
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const uint32_t votes = __ballot_sync(~0u, flag);
  __syncthreads();  // nobody reads the counts of the call before any more
  if (lane == 0) of_warp[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1u));
  all = 0;
  for (int w = 0; w < WARPS; ++w) {
    if (w < warp) before += of_warp[w];
    all += of_warp[w];
  }
  return before;
}

// Entries in ascending order of expert, then of entry: those of expert e are order[offsets[e]] to order[offsets[e + 1]].
// One block per expert, which counts the entries of lower ones: no block waits for another.
KERNEL(ROW_THREADS, moe_group, uint32_t* order, uint32_t* offsets, const uint32_t* experts, int num_entries) {
  const uint32_t own = blockIdx.x;
  int lower = 0;
  for (int i = threadIdx.x; i < num_entries; i += ROW_THREADS) lower += experts[i] < own;
  // Exact: sums of whole numbers below 2^24.
  int at = static_cast<int>(block_sum(static_cast<float>(lower)));
  if (threadIdx.x == 0) offsets[own] = at;
  for (int begin = 0; begin < num_entries; begin += ROW_THREADS) {
    const int i = begin + threadIdx.x;
    const bool is_own = i < num_entries && experts[i] == own;
    int all;
    const int rank = block_rank(is_own, all);
    if (is_own) order[at + rank] = i;
    at += all;
  }
  if (own == gridDim.x - 1 && threadIdx.x == 0) offsets[gridDim.x] = at;
}

#define INSTANCE(name, Shape, GATHERS)                                                                                 \
  KERNEL(Shape::THREADS, name, bf16* out, const bf16* x, const bf16* const* w, const uint32_t* order,                 \
         const uint32_t* offsets, int per_row, int n, int k) {                                                        \
    DYNAMIC_SHARED(bf16, memory);                                                                                     \
    const int start = offsets[blockIdx.z], rows = static_cast<int>(offsets[blockIdx.z + 1]) - start;                  \
    const int first = blockIdx.x * Shape::M;                                                                          \
    if (first >= rows) return;                                                                                        \
    const bf16* const of_expert = w[blockIdx.z];                                                                      \
    const Gemm<ExpertRows> g{x, of_expert, nullptr, rows, n, k, {order + start, start, per_row, GATHERS},             \
                             copies_fit(x, of_expert, k)};                                                            \
    gemm_tile<Shape>(out, g, first, blockIdx.y * Shape::N, memory);                                                   \
  }
INSTANCE(moe_gather_gemm_m16, Few, true)
INSTANCE(moe_gather_gemm_m64, Some, true)
INSTANCE(moe_scatter_gemm_m16, Few, false)
INSTANCE(moe_scatter_gemm_m64, Some, false)

template <int N>
__device__ __forceinline__ void weighted_sum(bf16* out, const bf16* entries, const float* weights, int per_row,
                                             int width) {
  for (int i = (blockIdx.y * ROW_THREADS + threadIdx.x) * N; i < width; i += gridDim.y * ROW_THREADS * N) {
    float sum[N] = {};
    for (int rank = 0; rank < per_row; ++rank) {
      float v[N];
      load_values(entries + static_cast<size_t>(rank) * width + i, v);
#pragma unroll
      for (int j = 0; j < N; ++j) sum[j] = fmaf(weights[rank], v[j], sum[j]);
    }
    store_values(out + i, sum);
  }
}
// out[row] = the sum of its entries, each times its weight, best first.
KERNEL(ROW_THREADS, moe_sum, bf16* out, const bf16* entries, const float* weights, int per_row, int width) {
  out += static_cast<size_t>(blockIdx.x) * width;
  entries += static_cast<size_t>(blockIdx.x) * per_row * width;
  weights += static_cast<size_t>(blockIdx.x) * per_row;
  if (vectors_fit(width, out, entries)) weighted_sum<VECTOR>(out, entries, weights, per_row, width);
  else weighted_sum<1>(out, entries, weights, per_row, width);
}
