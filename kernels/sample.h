// Drawing tokens: what src/model/draws.rs lays out, the row in chunks, and what a block finds together.
//
// A row of logits is cut into chunks of CHUNK tokens, of which a block takes one; blocks leave what they found in memory for
// the next kernel. A vocabulary has MAX_CHUNKS chunks at most, one for each thread of a block.
#pragma once
#include "weight.h"

constexpr int THREADS = 256, WARPS = THREADS / WARP_LANES;
constexpr int CHUNK = 4096, MAX_CHUNKS = THREADS;
constexpr uint32_t NO_TOKEN = 0xffffffffu, BANNED = 0xffffffffu;
constexpr units_t WHOLE = 1ull << 53;
static_assert(THREADS == ROW_THREADS, "sums over a block are those of rows");

struct Draw {
  uint32_t row, first_change, num_changes, top_k;
  float temperature, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  uint32_t reserved;
  units_t top_p, at;
  __device__ __forceinline__ bool is_greedy() const { return !(temperature > 0.f); }
  __device__ __forceinline__ bool has_cut() const { return top_k > 0 || top_p < WHOLE; }
};
struct Change { uint32_t token, seen; float bias; };
struct Score { uint32_t row, token, draw, top; };

// The widths of bins of values, of which the first cut knows no more: weights vanish at 28.5.
constexpr int BINS = 2048, BINS_PER_VALUE = 64;
// Of one draw that has a cut; zeros at first. Tokens whose weight vanishes do not count.
struct Tally {
  units_t total;
  uint32_t count, listed;
  units_t weights[BINS];
  uint32_t counts[BINS];
};
__device__ __forceinline__ int bin_of(float value) {
  return min(static_cast<int>(__fmul_rn(-value, static_cast<float>(BINS_PER_VALUE))), BINS - 1);
}
// A token that may be left after a cut; the list of a draw holds MAX_LISTED.
struct Listed { uint32_t token; float value; };
constexpr int MAX_LISTED = 8192;

// The larger logit, of equal ones the lower token, as on the host; NO_TOKEN where one is not a number.
struct Best { float logit; uint32_t token; };
__device__ __forceinline__ Best nothing_yet() { return Best{__uint_as_float(0xff800000u), 0}; }
__device__ __forceinline__ Best better(Best a, Best b) {
  if (a.token == NO_TOKEN || b.token == NO_TOKEN) return Best{a.logit, NO_TOKEN};
  return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}
// The best of a block, the same in every thread. Every thread must call it.
__device__ __forceinline__ Best block_best(Best best) {
  SHARED(float, logits, WARPS);
  SHARED(uint32_t, tokens, WARPS);
#pragma unroll
  for (int with = WARP_LANES / 2; with > 0; with /= 2)
    best = better(best, Best{__shfl_xor_sync(~0u, best.logit, with), __shfl_xor_sync(~0u, best.token, with)});
  __syncthreads();  // nobody reads the bests of the call before any more
  if (threadIdx.x % WARP_LANES == 0) {
    logits[threadIdx.x / WARP_LANES] = best.logit;
    tokens[threadIdx.x / WARP_LANES] = best.token;
  }
  __syncthreads();  // the bests of warps are there
  best = Best{logits[0], tokens[0]};
  for (int w = 1; w < WARPS; ++w) best = better(best, Best{logits[w], tokens[w]});
  return best;
}
// The best of a row's chunks.
__device__ __forceinline__ Best best_of_row(const float* best_logits, const uint32_t* best_tokens, int request, int chunks) {
  const int i = threadIdx.x, at = request * chunks + i;
  return block_best(i < chunks ? Best{best_logits[at], best_tokens[at]} : nothing_yet());
}

// The sum of the threads before this one, and of all. Every thread must call it.
__device__ __forceinline__ units_t block_scan(units_t own, units_t& all) {
  SHARED(units_t, of_warp, WARPS);
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  units_t sum = own;
#pragma unroll
  for (int by = 1; by < WARP_LANES; by *= 2) {
    const units_t before = __shfl_up_sync(~0u, sum, by);
    if (lane >= by) sum += before;
  }
  __syncthreads();  // nobody reads the sums of the call before any more
  if (lane == WARP_LANES - 1) of_warp[warp] = sum;
  __syncthreads();  // the sums of warps are there
  units_t before = sum - own;
  all = 0;
  for (int w = 0; w < WARPS; ++w) {
    if (w < warp) before += of_warp[w];
    all += of_warp[w];
  }
  return before;
}
__device__ __forceinline__ units_t block_total(units_t own) {
  units_t all;
  block_scan(own, all);
  return all;
}

// The first of COUNT * THREADS numbers at which their running sum exceeds `target`, and the sum before it. This thread gives
// the COUNT from threadIdx.x * COUNT on. All of them exceed it. Every thread must call it.
struct Crossing { int at; units_t before; };
template <int COUNT, class Number> __device__ __forceinline__ Crossing block_crossing(Number number, units_t target) {
  SHARED(int, found, 1);
  SHARED(units_t, found_before, 1);
  const int first = threadIdx.x * COUNT;
  units_t own = 0, all;
  for (int i = 0; i < COUNT; ++i) own += number(first + i);
  units_t before = block_scan(own, all);
  if (before <= target && target < before + own) {
    int i = first;
    for (; before + number(i) <= target; ++i) before += number(i);
    found[0] = i;
    found_before[0] = before;
  }
  __syncthreads();  // the crossing is there
  return Crossing{found[0], found_before[0]};
}

// Calls f(token, logit) for this thread's tokens of a chunk.
template <int N, class F> __device__ __forceinline__ void for_tokens(const float* logits, int begin, int end, F f) {
  for (int i = begin + threadIdx.x * N; i < end; i += THREADS * N) {
    float v[N];
    load_values(logits + i, v);
#pragma unroll
    for (int j = 0; j < N; ++j) f(static_cast<uint32_t>(i + j), v[j]);
  }
}
template <class F> __device__ __forceinline__ void for_chunk(const float* logits, int vocab, int chunk, F f) {
  const int begin = chunk * CHUNK, end = min(vocab, begin + CHUNK);
  if (vectors_fit(vocab, logits)) for_tokens<VECTOR>(logits, begin, end, f);
  else for_tokens<1>(logits, begin, end, f);
}
__device__ __forceinline__ const float* row_of(const float* logits, uint32_t row, int vocab) {
  return logits + static_cast<size_t>(row) * vocab;
}
