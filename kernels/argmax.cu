// The token of the largest logit: greedy decoding. What is not a number counts as minus infinity; of equal logits the lowest
// token wins, and token 0 where there is none above minus infinity, as on the host.
#include "values.h"

constexpr int THREADS = 512, WARPS = THREADS / WARP_LANES;

struct Best { float logit; uint32_t token; };
__device__ __forceinline__ Best better(Best a, Best b) {
  return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

template <int N> __device__ __forceinline__ Best best_of(const float* logits, int vocab) {
  Best best{__uint_as_float(0xff800000u), 0};
  for (int i = threadIdx.x * N; i < vocab; i += THREADS * N) {
    float v[N];
    load_values(logits + i, v);
#pragma unroll
    for (int j = 0; j < N; ++j) if (v[j] > best.logit) best = Best{v[j], static_cast<uint32_t>(i + j)};
  }
  return best;
}

// Grid: rows.
KERNEL(THREADS, argmax, uint32_t* tokens, const float* logits, int vocab) {
  SHARED(float, warp_logits, WARPS);
  SHARED(uint32_t, warp_tokens, WARPS);
  logits += static_cast<size_t>(blockIdx.x) * vocab;
  Best best = vectors_fit(vocab, logits) ? best_of<VECTOR>(logits, vocab) : best_of<1>(logits, vocab);
#pragma unroll
  for (int with = WARP_LANES / 2; with > 0; with /= 2)
    best = better(best, Best{__shfl_xor_sync(~0u, best.logit, with), __shfl_xor_sync(~0u, best.token, with)});
  if (threadIdx.x % WARP_LANES == 0) {
    warp_logits[threadIdx.x / WARP_LANES] = best.logit;
    warp_tokens[threadIdx.x / WARP_LANES] = best.token;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < WARPS; ++w) best = better(best, Best{warp_logits[w], warp_tokens[w]});
  tokens[blockIdx.x] = best.token;
}
