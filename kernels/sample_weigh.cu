// The weights of tokens: of a chunk in all where nothing is cut; else by bins of their values, and then a list of those that
// the first cut may leave.
//
// Bounded by the exponentials' arithmetic: some thirty operations a token, once or (with a cut) twice.
#include "sample.h"

// What a draw's weights are relative to; false where there is nothing to weigh: the best token is the one.
__device__ __forceinline__ bool has_weights(const Draw& draw, Best best) {
  return !draw.is_greedy() && best.token != NO_TOKEN && best.logit - best.logit == 0.f;
}

// A chunk's tokens by bins.
__device__ __forceinline__ void tally_chunk(Tally* tally, const float* row, int vocab, float max, float temperature) {
  SHARED(units_t, weights, BINS);
  SHARED(uint32_t, counts, BINS);
  for (int i = threadIdx.x; i < BINS; i += THREADS) {
    weights[i] = 0;
    counts[i] = 0;
  }
  __syncthreads();  // the bins are empty
  units_t own = 0, count = 0;
  for_chunk(row, vocab, blockIdx.x, [&](uint32_t, float logit) {
    const float value = value_of(logit, max, temperature);
    const units_t units = units_of(weight_of(value));
    if (units == 0) return;
    own += units;
    ++count;
    atomicAdd(&weights[bin_of(value)], units);
    atomicAdd(&counts[bin_of(value)], 1u);
  });
  const units_t total = block_total(own), all = block_total(count);  // and the bins are full
  if (threadIdx.x == 0) {
    atomicAdd(&tally->total, total);
    atomicAdd(&tally->count, static_cast<uint32_t>(all));
  }
  for (int i = threadIdx.x; i < BINS; i += THREADS) {
    if (counts[i] == 0) continue;
    atomicAdd(&tally->weights[i], weights[i]);
    atomicAdd(&tally->counts[i], counts[i]);
  }
}

// Of draws with a cut the tallies; of others the total of each chunk, `[draws, chunks]`. Grid: chunks, draws.
KERNEL(THREADS, sample_weigh, Tally* tallies, units_t* totals, const Draw* draws, const float* best_logits,
       const uint32_t* best_tokens, const float* logits, int vocab) {
  const Draw draw = draws[blockIdx.y];
  const Best best = best_of_row(best_logits, best_tokens, blockIdx.y, gridDim.x);
  if (!has_weights(draw, best)) return;
  const float* const row = row_of(logits, draw.row, vocab);
  if (draw.has_cut()) return tally_chunk(tallies + blockIdx.y, row, vocab, best.logit, draw.temperature);
  units_t own = 0;
  for_chunk(row, vocab, blockIdx.x, [&](uint32_t, float logit) {
    const float weight = weight_of(value_of(logit, best.logit, draw.temperature));
    if (weight >= draw.min_p) own += units_of(weight);
  });
  const units_t total = block_total(own);
  if (threadIdx.x == 0) totals[blockIdx.y * gridDim.x + blockIdx.x] = total;
}

// The last bin that the first cut may leave anything of. Top-p counts what top-k leaves, so after top-k it waits.
__device__ __forceinline__ int last_bin(const Tally& tally, const Draw& draw) {
  constexpr int EACH = BINS / THREADS;
  if (draw.top_k > 0 && draw.top_k < tally.count)
    return block_crossing<EACH>([&](int bin) { return static_cast<units_t>(tally.counts[bin]); }, draw.top_k - 1).at;
  if (draw.top_p >= WHOLE) return BINS - 1;
  const units_t below = share_of(draw.top_p, tally.total, draw.top_p > 0);
  return block_crossing<EACH>([&](int bin) { return tally.weights[bin]; }, below).at;
}

// Lists the tokens of a draw with a cut that are in no later bin, in any order. `listed` counts those too for which the list
// has no room. Grid: chunks, draws.
KERNEL(THREADS, sample_list, Tally* tallies, Listed* lists, const Draw* draws, const float* best_logits,
       const uint32_t* best_tokens, const float* logits, int vocab) {
  const Draw draw = draws[blockIdx.y];
  const Best best = best_of_row(best_logits, best_tokens, blockIdx.y, gridDim.x);
  if (!has_weights(draw, best) || !draw.has_cut()) return;
  Tally* const tally = tallies + blockIdx.y;
  Listed* const list = lists + static_cast<size_t>(blockIdx.y) * MAX_LISTED;
  const int last = last_bin(*tally, draw);
  for_chunk(row_of(logits, draw.row, vocab), vocab, blockIdx.x, [&](uint32_t token, float logit) {
    const float value = value_of(logit, best.logit, draw.temperature);
    if (units_of(weight_of(value)) == 0 || bin_of(value) > last) return;
    const uint32_t at = atomicAdd(&tally->listed, 1u);
    if (at < MAX_LISTED) list[at] = Listed{token, value};
  });
}
