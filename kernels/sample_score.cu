// What log-probabilities are made of: how a token stands among its row's logits, and the largest ones.
//
// Bounded by the exponentials' arithmetic, and with many alternatives by the latency of finding them one after the other.
#include "sample.h"

constexpr int MAX_TOP = 32;
constexpr uint32_t NONE = NO_TOKEN - 1;  // after every token
struct Scored {
  float max, logit;
  uint32_t rank, token;
  units_t total;
  Best top[MAX_TOP];
};

__device__ __forceinline__ Best none() { return Best{nothing_yet().logit, NONE}; }
__device__ __forceinline__ uint32_t token_of(const Score& score, const uint32_t* drawn) {
  return score.token == NO_TOKEN ? drawn[score.draw] : score.token;
}

// Adds a chunk's weights, and its tokens before the score's, to `scored`, which is zeros at first; and finds the chunk's
// largest logits, `[scores, chunks, MAX_TOP]`, NONE behind the last. Grid: chunks, scores.
KERNEL(THREADS, sample_score, Scored* scored, Best* parts, const Score* scores, const uint32_t* drawn,
       const float* best_logits, const uint32_t* best_tokens, const float* logits, int vocab) {
  const Score score = scores[blockIdx.y];
  const Best best = best_of_row(best_logits, best_tokens, blockIdx.y, gridDim.x);
  if (best.token == NO_TOKEN) return;
  const float* const row = row_of(logits, score.row, vocab);
  const uint32_t own = token_of(score, drawn);
  const float own_logit = row[own];
  units_t units = 0, before = 0;
  for_chunk(row, vocab, blockIdx.x, [&](uint32_t token, float logit) {
    units += units_of(weight_of(__fsub_rn(logit, best.logit)));
    before += logit > own_logit || (logit == own_logit && token < own);
  });
  const units_t total = block_total(units), rank = block_total(before);
  if (threadIdx.x == 0) {
    atomicAdd(&scored[blockIdx.y].total, total);
    atomicAdd(&scored[blockIdx.y].rank, static_cast<uint32_t>(rank));
  }
  Best* const part = parts + (static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * MAX_TOP;
  Best last = none();
  for (uint32_t i = 0; i < score.top; ++i) {
    Best next = none();
    for_chunk(row, vocab, blockIdx.x, [&](uint32_t token, float logit) {
      const bool is_after = i == 0 || logit < last.logit || (logit == last.logit && token > last.token);
      if (is_after) next = better(next, Best{logit, token});
    });
    last = block_best(next);
    if (threadIdx.x == 0) part[i] = last;
  }
}

// The rest of each score, and the largest logits of all chunks; `max` is not a number where any logit is not. Grid: scores.
KERNEL(THREADS, sample_merge, Scored* scored, const Best* parts, const Score* scores, const uint32_t* drawn,
       const float* best_logits, const uint32_t* best_tokens, const float* logits, int vocab, int chunks) {
  const Score score = scores[blockIdx.x];
  Scored& out = scored[blockIdx.x];
  const Best best = best_of_row(best_logits, best_tokens, blockIdx.x, chunks);
  if (best.token == NO_TOKEN) {
    if (threadIdx.x == 0) out.max = __uint_as_float(0x7fc00000u);
    return;
  }
  // Each thread has a chunk's largest logits in hand, and shows the first that is not yet taken.
  const Best* const part = parts + (static_cast<size_t>(blockIdx.x) * chunks + threadIdx.x) * MAX_TOP;
  uint32_t taken = 0;
  for (uint32_t i = 0; i < score.top; ++i) {
    const Best own = static_cast<int>(threadIdx.x) < chunks && taken < score.top ? part[taken] : none();
    const Best next = block_best(own);
    if (own.token == next.token) ++taken;
    if (threadIdx.x == 0) out.top[i] = next;
  }
  if (threadIdx.x != 0) return;
  out.max = best.logit;
  out.token = token_of(score, drawn);
  out.logit = row_of(logits, score.row, vocab)[out.token];
  out.rank += 1;
}
