// What attention_decode leaves of the splits of a context, for attention_merge.
#pragma once
#include "attention.h"

// [spans, max_rows, num_heads, max_splits] of head_dim values, and of base and sum.
template <class Float> struct Records {
  Float *values, *sums;
  int max_rows, max_splits;
  // The first of a row and head, among a span's `max_rows` rows.
  __device__ __forceinline__ size_t of(int span, int row, int num_heads, int head) const {
    return ((static_cast<size_t>(span) * max_rows + row) * num_heads + head) * max_splits;
  }
};

// The splits that a row sees, counted from the first that its span sees.
struct Splits {
  int first, last;
  __device__ __forceinline__ Splits(const Span& span, int row, int window) {
    const int position = span.first_position + row, of_span = first_seen(span.first_position, window) / SPLIT_TOKENS;
    first = first_seen(position, window) / SPLIT_TOKENS - of_span;
    last = position / SPLIT_TOKENS - of_span;
  }
};
