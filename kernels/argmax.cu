// The token of the largest logit: greedy decoding. Of equal logits the lowest token wins, and token 0 where there is none
// above minus infinity, as on the host. NO_TOKEN where one is not a number: the model or a kernel is broken.
#include "values.h"

constexpr int THREADS = 512, WARPS = THREADS / WARP_LANES;
constexpr uint32_t NO_TOKEN = 0xffffffffu;

struct Best { float logit; uint32_t token; };
__device__ __forceinline__ Best better(Best a, Best b) {
  if (a.token == NO_TOKEN || b.token == NO_TOKEN) return Best{a.logit, NO_TOKEN};
  return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

template <int N> __device__ __forceinline__ Best best_of(const float* logits, int vocab) {
  Best best{__uint_as_float(0xff800000u), 0};
#pragma unroll 4  // so many loads at a time: a row has one block, which must keep its memory busy
  for (int i = threadIdx.x * N; i < vocab; i += THREADS * N) {
    float v[N];
    load_values(logits + i, v);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (v[j] > best.logit && best.token != NO_TOKEN) best = Best{v[j], static_cast<uint32_t>(i + j)};
      if (v[j] != v[j]) best.token = NO_TOKEN;
    }
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
