// One tile of K and V for a tile of queries: scores, the online softmax, the weighted sum of V.
//
// Weights are rounded to bf16, and their sum is that of the rounded ones: a product with ones, which costs less than
// additions and has the same order however a tile's positions are shared out over threads.
#pragma once
#include "attention_tile.h"

constexpr int SCORE_TILES = KV_TILE / 8;  // fragments of 8 positions

// scores[t][n][2r + c]: row r of this thread's tile t, position 8n + lane % 4 * 2 + c of the N * 8 positions from `k` on.
template <class T, int N>
__device__ __forceinline__ void multiply_keys(float (&scores)[T::ROW_TILES][N][4], const TileState<T>& s, const bf16* k) {
  const int lane = threadIdx.x % WARP_LANES;
  const bf16* const row = k + (lane % 8 + lane / 16 * 8) * T::ROW + lane / 8 % 2 * 8;
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
    for (int i = 0; i < N * 4; ++i) scores[t][i / 4][i % 4] = 0.f;
#pragma unroll
  for (int d = 0; d < T::D / 16; ++d) {
    uint32_t fetched[T::ROW_TILES][4];
    if constexpr (!T::KEEPS_QUERIES) load_queries<T>(fetched, s.queries, d);
    const auto& q = T::KEEPS_QUERIES ? s.q[T::KEEPS_QUERIES ? d : 0] : fetched;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, row + n * 8 * T::ROW + d * 16);
      const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
      for (int t = 0; t < T::ROW_TILES; ++t) {
        mma_16816(scores[t][n], q[t], even);
        mma_16816(scores[t][n + 1], q[t], odd);
      }
    }
  }
}

// Dot products of positions from `position` on become what the factor makes exponents; minus infinity where one is not
// seen. `scales` are K's from there on, or null.
template <class T, int N>
__device__ __forceinline__ void finish_scores(float (&scores)[T::ROW_TILES][N][4], const Queries<T>& q, const Score& score,
                                              int position, const float* scales) {
  const int column = threadIdx.x % 4 * 2;
  if constexpr (T::SCALED) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float2 scale = load_vector<float2>(scales + n * 8 + column);
#pragma unroll
      for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[t][n][i] *= i % 2 ? scale.y : scale.x;
    }
  }
  if (score.is_capped()) {
#pragma unroll
    for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
      for (int i = 0; i < N * 4; ++i) scores[t][i / 4][i % 4] = score.capped(scores[t][i / 4][i % 4]);
  }
  if (q.see_whole(position / KV_TILE * KV_TILE)) return;
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Found anew each time: few tiles are seen in part, and registers are scarce. No query sees nothing.
      const int query = q.begin + query_of<T>(t, r), last = query < q.end ? q.span.first_position + q.row(query) : -1;
      const int first = first_seen(last, q.window);
#pragma unroll
      for (int i = 0; i < N * 2; ++i) {
        const int at = position + i / 2 * 8 + column + i % 2;
        float& x = scores[t][i / 2][2 * r + i % 2];
        x = at >= first && at <= last ? x : nothing();
      }
    }
}

// The largest of a row's scores, of all the warp's positions.
template <class T, int N> __device__ __forceinline__ float largest_score(const float (&scores)[N][4], int r) {
  float largest = nothing();
#pragma unroll
  for (int i = 0; i < N * 2; ++i) largest = fmaxf(largest, scores[i / 2][2 * r + i % 2]);
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
  return fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
}

// Takes the tile's largest scores into the bases; what came before is rescaled to them.
template <class T>
__device__ __forceinline__ void rebase(TileState<T>& s, const float (&largest)[T::ROW_TILES][2], float factor) {
  float rescale[T::ROW_TILES][2];
  bool changes = false;
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float base = fmaxf(s.base[t][r], largest[t][r] * factor);
      rescale[t][r] = fast_exp2(s.base[t][r] - finite_base(base));
      s.base[t][r] = base;
      changes |= rescale[t][r] != 1.f;
    }
  if (__ballot_sync(~0u, changes) == 0u) return;
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      s.sums[t][2 * r] *= rescale[t][r];
#pragma unroll
      for (int j = 0; j < T::PAIRS * 4; ++j) s.values[t][j / 4][j / 2 % 2][2 * r + j % 2] *= rescale[t][r];
    }
}

// Scores become weights.
template <class T, int N>
__device__ __forceinline__ void weigh(float (&scores)[T::ROW_TILES][N][4], const TileState<T>& s, float factor) {
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float reference = finite_base(s.base[t][r]);
#pragma unroll
      for (int i = 0; i < N * 2; ++i) {
        float& x = scores[t][i / 2][2 * r + i % 2];
        x = fast_exp2(fmaf(x, factor, -reference));
      }
    }
}

// sums += weights, of 16 positions.
template <class T> __device__ __forceinline__ void add_weights(TileState<T>& s, int tile, const uint32_t (&weights)[4]) {
  const uint32_t ones[2] = {0x3f803f80u, 0x3f803f80u};
  mma_16816(s.sums[tile], weights, ones);
}

// values += weights * V of the k-th 16 positions of a tile.
template <class T>
__device__ __forceinline__ void multiply_values(TileState<T>& s, const uint32_t (&weights)[T::ROW_TILES][4], const bf16* v,
                                                int k) {
  const int lane = threadIdx.x % WARP_LANES;
  const bf16* const row = v + (k * 16 + lane % 16) * T::ROW + lane / 16 * 8;
#pragma unroll
  for (int j = 0; j < T::PAIRS; ++j) {
    if (!has_pair<T>(j)) continue;
    uint32_t b[4];
    ldmatrix_x4_trans(b, row + pair_of<T>(j) * 16);
    const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
    for (int t = 0; t < T::ROW_TILES; ++t) {
      mma_16816(s.values[t][j][0], weights[t], left);
      mma_16816(s.values[t][j][1], weights[t], right);
    }
  }
}
