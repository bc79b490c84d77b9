// Penalties, bias and bans; and the largest logit of each chunk, which is greedy decoding's token in the end.
//
// Bounded by memory: a row is read once. Changes are bounded by latency: there are as many as a history has tokens.
#include "sample.h"

__device__ __forceinline__ float changed(float logit, const Change& change, const Draw& draw) {
  // What is not a number stays so: it is an error, not a ban.
  if (change.seen == BANNED) return logit == logit ? nothing_yet().logit : logit;
  float to = logit;
  if (change.seen > 0)
    to = to > 0.f ? __fdiv_rn(to, draw.repetition_penalty) : __fmul_rn(to, draw.repetition_penalty);
  if (change.seen > 1) {
    const float count = static_cast<float>(change.seen - 1);
    to = __fsub_rn(__fsub_rn(to, __fmul_rn(count, draw.frequency_penalty)), draw.presence_penalty);
  }
  to = __fadd_rn(to, change.bias);
  return to == to || logit != logit ? to : nothing_yet().logit;
}

// Changes the rows of draws, of which each list has a token once, and keeps the logits as they were; with `undo` puts these
// back. A row is changed by one of its draws. Grid: draws, chunks.
KERNEL(THREADS, sample_change, float* logits, float* kept, const Draw* draws, const Change* changes, int vocab, int undo) {
  const Draw draw = draws[blockIdx.x];
  float* const row = logits + static_cast<size_t>(draw.row) * vocab;
  for (uint32_t i = blockIdx.y * THREADS + threadIdx.x; i < draw.num_changes; i += gridDim.y * THREADS) {
    const Change change = changes[draw.first_change + i];
    float* const logit = row + change.token;
    if (undo) {
      *logit = kept[draw.first_change + i];
    } else {
      kept[draw.first_change + i] = *logit;
      *logit = changed(*logit, change, draw);
    }
  }
}

// The best token of each chunk of a request's row, `[requests, chunks]`. A request's row is the first of its `stride` words.
// Grid: chunks, requests.
KERNEL(THREADS, sample_best, float* best_logits, uint32_t* best_tokens, const uint32_t* requests, int stride,
       const float* logits, int vocab) {
  const float* const row = row_of(logits, requests[blockIdx.y * stride], vocab);
  Best best = nothing_yet();
  for_chunk(row, vocab, blockIdx.x, [&](uint32_t token, float logit) {
    if (logit > best.logit && best.token != NO_TOKEN) best = Best{logit, token};
    if (logit != logit) best.token = NO_TOKEN;
  });
  best = block_best(best);
  if (threadIdx.x != 0) return;
  best_logits[blockIdx.y * gridDim.x + blockIdx.x] = best.logit;
  best_tokens[blockIdx.y * gridDim.x + blockIdx.x] = best.token;
}
