// What all attention kernels share: a step's spans, what a query sees, scores, and how parts of a softmax are put together.
//
// Invariant: a query meets its context in ascending order, in tiles of KV_TILE positions that begin at multiples of their
// size, one online-softmax update each. What belongs to a split of SPLIT_TOKENS positions, likewise aligned, is summed up
// on its own and then merged into the splits before. A tile in which a query sees nothing changes nothing for it. So which
// rows share a tile, which block takes which split, or which kernel a row goes through, does not change its bits.
#pragma once
#include "kv.h"

constexpr int KV_TILE = 64;
constexpr int SPLIT_TOKENS = 512;
constexpr float LOG2_E = 1.4426950408889634f;
// Minus infinity: the base of a softmax that has seen nothing.
__device__ __forceinline__ float nothing() { return __uint_as_float(0xff800000u); }

// Rows of one sequence, as in the host's array of five words each.
struct Span { int row_start, num_rows, first_position, table_start, num_blocks; };
__device__ __forceinline__ Span load_span(const uint32_t* spans, int index) {
  const uint32_t* s = spans + static_cast<size_t>(index) * 5;
  return Span{static_cast<int>(s[0]), static_cast<int>(s[1]), static_cast<int>(s[2]), static_cast<int>(s[3]),
              static_cast<int>(s[4])};
}

// The first position that a query at `position` sees; `window` positions with its own, or all where window is 0.
__device__ __forceinline__ int first_seen(int position, int window) {
  return window > 0 ? max(0, position + 1 - window) : 0;
}

// From a dot product to the exponent of two of its weight: capped, then times a factor above zero.
struct Score {
  float scale, softcap;
  __device__ __forceinline__ bool is_capped() const { return softcap > 0.f; }
  __device__ __forceinline__ float factor() const { return is_capped() ? softcap * LOG2_E : scale * LOG2_E; }
  // tanh(x) = 1 - 2 / (1 + exp(2x))
  __device__ __forceinline__ float capped(float dot) const {
    const float twice = dot * (scale * 2.f * LOG2_E) / softcap;
    return 1.f - __fdividef(2.f, 1.f + fast_exp2(fminf(twice, 126.f)));
  }
  __device__ __forceinline__ float of(float dot) const { return (is_capped() ? capped(dot) : dot) * factor(); }
};

// Weights are powers of two relative to `base`, the largest exponent so far.
struct __align__(8) Softmax { float base, sum; };
__device__ __forceinline__ float finite_base(float base) { return base == nothing() ? 0.f : base; }

// By how much the values of `total` and of a later part are to be multiplied when they are added.
struct MergeFactors { float total, part; };
__device__ __forceinline__ MergeFactors merge(Softmax& total, Softmax part) {
  const float base = fmaxf(total.base, part.base), reference = finite_base(base);
  const MergeFactors f{fast_exp2(total.base - reference), fast_exp2(part.base - reference)};
  total = Softmax{base, fmaf(part.sum, f.part, total.sum * f.total)};
  return f;
}
__device__ __forceinline__ float merge_values(MergeFactors f, float total, float part) {
  return fmaf(part, f.part, total * f.total);
}
// What the weighted sum of values is multiplied by in the end.
__device__ __forceinline__ float normaliser(Softmax s) { return s.sum == 0.f ? 0.f : 1.f / s.sum; }

// Where attention reads and what it computes.
template <class Kv> struct Attend {
  const bf16* qkv;  // [rows, (num_heads + 2 * num_kv_heads) * head_dim]
  const Kv *k_cache, *v_cache;
  const float *k_scales, *v_scales;
  const uint32_t *spans, *tables;
  Score score;
  int window, num_heads, num_kv_heads;
};

// The parameters that every attention kernel has, and what it makes of them.
#define ATTEND_PARAMETERS(Kv)                                                                                      \
  const bf16 *qkv, const Kv *k_cache, const Kv *v_cache, const float *k_scales, const float *v_scales,             \
      const uint32_t *spans, const uint32_t *tables, float scale, float softcap, int window, int num_heads,        \
      int num_kv_heads
#define ATTEND(Kv)                                                                                                 \
  Attend<Kv> { qkv, k_cache, v_cache, k_scales, v_scales, spans, tables, {scale, softcap}, window, num_heads, num_kv_heads }
