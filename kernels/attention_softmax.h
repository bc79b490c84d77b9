// One tile of K and V for a tile of queries: scores, the online softmax, the weighted sum of V; and the loop over tiles.
#pragma once
#include "attention_tile.h"

constexpr int SCORE_TILES = KV_TILE / 8;  // fragments of 8 positions

// scores[n][2r + c]: row r of this thread, position 8n + lane % 4 * 2 + c of the tile.
template <class T>
__device__ __forceinline__ void multiply_keys(float (&scores)[SCORE_TILES][4], const TileState<T>& s, const bf16* k) {
  const int lane = threadIdx.x % WARP_LANES;
  const bf16* const row = k + (lane % 8 + lane / 16 * 8) * T::ROW + lane / 8 % 2 * 8;
#pragma unroll
  for (int n = 0; n < SCORE_TILES; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = 0.f;
#pragma unroll
  for (int d = 0; d < T::D / 16; ++d)
#pragma unroll
    for (int n = 0; n < SCORE_TILES; n += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, row + n * 8 * T::ROW + d * 16);
      const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
      mma_16816(scores[n], s.q[d], even);
      mma_16816(scores[n + 1], s.q[d], odd);
    }
}

// Scores become weights; what came before is rescaled to the new base. `scales` of K and V by position, or null.
template <class T>
__device__ __forceinline__ void update_softmax(float (&scores)[SCORE_TILES][4], TileState<T>& s, const Score& score,
                                               int tile,
                                               const TileMemory<T>& memory) {
  constexpr bool SCALED = KvType<typename T::Kv>::SCALED;
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float largest = nothing();
#pragma unroll
    for (int n = 0; n < SCORE_TILES; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int in_tile = n * 8 + column + c, position = tile * KV_TILE + in_tile;
        float x = scores[n][2 * r + c];
        if constexpr (SCALED) x *= memory.k_scales[in_tile];
        x = position >= s.first[r] && position <= s.last[r] ? score.of(x) : nothing();
        scores[n][2 * r + c] = x;
        largest = fmaxf(largest, x);
      }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const float base = fmaxf(s.softmax[r].base, largest), reference = finite_base(base);
    const float rescale = fast_exp2(s.softmax[r].base - reference);
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < SCORE_TILES; ++n)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float weight = fast_exp2(scores[n][2 * r + c] - reference);
        sum += weight;
        scores[n][2 * r + c] = weight;
        if constexpr (SCALED) scores[n][2 * r + c] *= memory.v_scales[n * 8 + column + c];
      }
    s.softmax[r] = Softmax{base, fmaf(s.softmax[r].sum, rescale, sum)};
#pragma unroll
    for (int j = 0; j < T::PAIRS; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s.values[j][i / 2][2 * r + i % 2] *= rescale;
  }
}

// values += weights * V, the weights rounded to bf16.
template <class T>
__device__ __forceinline__ void multiply_values(TileState<T>& s, const float (&weights)[SCORE_TILES][4],
                                                const bf16* v) {
  const int lane = threadIdx.x % WARP_LANES;
  const bf16* const row = v + lane % 16 * T::ROW + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < KV_TILE / 16; ++k) {
    const float(&low)[4] = weights[2 * k], (&high)[4] = weights[2 * k + 1];
    const uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                           pack_bf16(high[2], high[3])};
#pragma unroll
    for (int j = 0; j < T::PAIRS; ++j) {
      const int pair = warp_dim<T>() + j * T::DIM_WARPS;
      if (T::DIM_PAIRS % T::DIM_WARPS != 0 && pair >= T::DIM_PAIRS) continue;
      uint32_t b[4];
      ldmatrix_x4_trans(b, row + k * 16 * T::ROW + pair * 16);
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      mma_16816(s.values[j][0], a, left);
      mma_16816(s.values[j][1], a, right);
    }
  }
}

// The sum of a split's weights, of which each thread of a row has a quarter.
template <class T> __device__ __forceinline__ void complete_sums(TileState<T>& s) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    s.softmax[r].sum += __shfl_xor_sync(~0u, s.softmax[r].sum, 1);
    s.softmax[r].sum += __shfl_xor_sync(~0u, s.softmax[r].sum, 2);
  }
}

// Goes through the tiles that meet the context. Before a tile that begins a split, but the first, calls end_split(); the
// last split is left in `s`, its sums not yet completed.
template <class T, class EndSplit>
__device__ __forceinline__ void attend_tiles(TileState<T>& s, const Attend<typename T::Kv>& a, const Queries<T>& q,
                                             const Context& context, uint8_t* shared, EndSplit end_split) {
  const TileMemory<T> memory(shared);
  const int begin = context.first / KV_TILE, end = (context.end + KV_TILE - 1) / KV_TILE;
  load_queries<T>(memory.v, a, q);
  load_tile<T>(memory.k, memory.k_scales, a.k_cache, a.k_scales, context, begin);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  begin_state(s, memory.v, q, a.window);
  for (int tile = begin; tile < end; ++tile) {
    if (tile > begin && tile % (SPLIT_TOKENS / KV_TILE) == 0) end_split();
    float scores[SCORE_TILES][4];
    cp_async_wait<0>();
    __syncthreads();  // K is there, and nobody reads V any more
    load_tile<T>(memory.v, memory.v_scales, a.v_cache, a.v_scales, context, tile);
    cp_async_commit();
    multiply_keys(scores, s, memory.k);
    if constexpr (KvType<typename T::Kv>::SCALED) __syncthreads();  // the scales of V are there
    update_softmax(scores, s, a.score, tile, memory);
    cp_async_wait<0>();
    __syncthreads();  // V is there, and nobody reads K any more
    if (tile + 1 < end) load_tile<T>(memory.k, memory.k_scales, a.k_cache, a.k_scales, context, tile + 1);
    cp_async_commit();
    multiply_values(s, scores, memory.v);
  }
}
