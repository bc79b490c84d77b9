// The token of each draw, when its row has been weighed.
//
// A block takes a draw: bounded by latency. Without a cut it goes through one chunk. With one it finds the borders of top-k
// and top-p and then the token by radix selection over what is listed, digit by digit; or over all of the row, several
// times, where the list has no room for what the first cut may leave (a flat distribution under a large top-p).
#include "sample.h"

constexpr int DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS;
static_assert(BINS <= DIGITS, "bins are digits too");
constexpr int TOKEN_BITS = 20, RANK_BITS = 55;  // of which the value has 31, and whole digits are rounded up to
static_assert(CHUNK * MAX_CHUNKS == 1 << TOKEN_BITS, "tokens of the largest vocabulary");

// A place in the ranking: larger values first, lower tokens first among equals. No two tokens have the same.
__device__ __forceinline__ units_t rank_of(uint32_t token, float value) {
  // `+ 0` makes one of the two zeros; bits of numbers that are not below zero are ordered as these are.
  return static_cast<units_t>(__float_as_uint(__fadd_rn(-value, 0.f))) << TOKEN_BITS | token;
}

// The tokens that a draw with a cut looks at.
struct Source {
  const Listed* list;
  const float* row;
  int count, vocab;
  bool is_list;
  float max, temperature;
  units_t* sums;  // the block's, DIGITS of them
  // Calls f(token, value) for this thread's tokens.
  template <class F> __device__ __forceinline__ void for_each(F f) const {
    if (is_list)
      for (int i = threadIdx.x; i < count; i += THREADS) f(list[i].token, list[i].value);
    else
      for (int i = threadIdx.x; i < vocab; i += THREADS) f(static_cast<uint32_t>(i), value_of(row[i], max, temperature));
  }
};

// Sums the amounts of those whose digit is not below zero, digit by digit, and finds where the running sum exceeds `target`;
// all of them exceed it. Every thread must call it.
template <class Digit, class Amount>
__device__ __forceinline__ Crossing cross(const Source& source, Digit digit, Amount amount, units_t target) {
  for (int i = threadIdx.x; i < DIGITS; i += THREADS) source.sums[i] = 0;
  __syncthreads();  // the sums are zeros
  source.for_each([&](uint32_t token, float value) {
    const units_t units = amount(token, value);
    const int at = units > 0 ? digit(token, value) : -1;
    if (at >= 0) atomicAdd(&source.sums[at], units);
  });
  __syncthreads();  // the sums are whole
  return block_crossing<DIGITS / THREADS>([&](int at) { return source.sums[at]; }, target);
}

// The first key, from the lowest on, at which the running sum of amounts exceeds `target`; all of them exceed it. Keys have
// `bits` bits, a multiple of DIGIT_BITS. `coarse`, below DIGITS, is ordered as keys are and tells them well apart: those of
// one digit are added up one after the other, and the first digits of keys are mostly the same.
template <class Coarse, class Key, class Amount>
__device__ __forceinline__ units_t select(const Source& source, Coarse coarse, Key key, int bits, Amount amount,
                                          units_t target) {
  const Crossing first = cross(source, coarse, amount, target);
  target -= first.before;
  units_t prefix = 0;
  for (int shift = bits - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
    const auto digit = [&](uint32_t token, float value) {
      const units_t own = key(token, value);
      const bool is_in = coarse(token, value) == first.at && own >> shift >> DIGIT_BITS == prefix;
      return is_in ? static_cast<int>(own >> shift & (DIGITS - 1)) : -1;
    };
    const Crossing next = cross(source, digit, amount, target);
    target -= next.before;
    prefix = prefix << DIGIT_BITS | next.at;
  }
  return prefix;
}
// The last rank of which something is left.
template <class Amount>
__device__ __forceinline__ units_t select_rank(const Source& source, Amount amount, units_t target) {
  const auto coarse = [](uint32_t, float value) { return bin_of(value); };
  return select(source, coarse, rank_of, RANK_BITS, amount, target);
}

template <class Amount> __device__ __forceinline__ units_t sum_of(const Source& source, Amount amount) {
  units_t own = 0;
  source.for_each([&](uint32_t token, float value) { own += amount(token, value); });
  return block_total(own);
}

__device__ __forceinline__ uint32_t draw_cut(const Draw& draw, const Tally& tally, const Source& source) {
  units_t last = ~0ull;  // the last rank that is left
  const auto left = [&](uint32_t token, float value) {
    return rank_of(token, value) <= last ? units_of(weight_of(value)) : 0;
  };
  units_t total = tally.total;
  if (draw.top_k > 0 && draw.top_k < tally.count) {
    const auto one = [](uint32_t, float value) { return static_cast<units_t>(units_of(weight_of(value)) > 0); };
    last = select_rank(source, one, draw.top_k - 1);
    total = sum_of(source, left);
  }
  if (draw.top_p < WHOLE) last = select_rank(source, left, share_of(draw.top_p, total, draw.top_p > 0));
  const auto likely = [&](uint32_t token, float value) {
    return weight_of(value) >= draw.min_p ? left(token, value) : 0;
  };
  const auto coarse = [](uint32_t token, float) { return static_cast<int>(token >> DIGIT_BITS); };
  const auto by_token = [](uint32_t token, float) { return static_cast<units_t>(token); };
  return select(source, coarse, by_token, 2 * DIGIT_BITS, likely, share_of(draw.at, sum_of(source, likely), 0));
}

__device__ __forceinline__ uint32_t draw_uncut(const Draw& draw, const units_t* totals, int chunks, const float* row,
                                               int vocab, float max) {
  const auto of_chunk = [&](int chunk) { return chunk < chunks ? totals[chunk] : 0; };
  const units_t target = share_of(draw.at, block_total(of_chunk(threadIdx.x)), 0);
  const Crossing chunk = block_crossing<1>(of_chunk, target);
  const auto of_token = [&](int i) {
    const int token = chunk.at * CHUNK + i;
    if (token >= vocab) return static_cast<units_t>(0);
    const float weight = weight_of(value_of(row[token], max, draw.temperature));
    return weight >= draw.min_p ? units_of(weight) : 0;
  };
  return chunk.at * CHUNK + block_crossing<CHUNK / THREADS>(of_token, target - chunk.before).at;
}

// Grid: draws. `chunks` are those of a row.
KERNEL(THREADS, sample_draw, uint32_t* tokens, const Tally* tallies, const units_t* totals, const Listed* lists,
       const Draw* draws, const float* best_logits, const uint32_t* best_tokens, const float* logits, int vocab,
       int chunks) {
  SHARED(units_t, sums, DIGITS);
  const Draw draw = draws[blockIdx.x];
  const Best best = best_of_row(best_logits, best_tokens, blockIdx.x, chunks);
  const float* const row = row_of(logits, draw.row, vocab);
  uint32_t token = best.token;
  // An infinite logit, or none, leaves no choice.
  if (draw.is_greedy() || best.token == NO_TOKEN || best.logit - best.logit != 0.f) {
  } else if (draw.has_cut()) {
    const Tally& tally = tallies[blockIdx.x];
    const Source source{lists + static_cast<size_t>(blockIdx.x) * MAX_LISTED, row, static_cast<int>(tally.listed), vocab,
                        tally.listed <= MAX_LISTED, best.logit, draw.temperature, sums};
    token = draw_cut(draw, tally, source);
  } else {
    token = draw_uncut(draw, totals + blockIdx.x * chunks, chunks, row, vocab, best.logit);
  }
  if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}
