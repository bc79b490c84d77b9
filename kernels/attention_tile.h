// Attention of a tile of queries over a range of their context, on tensor cores (flash-attention 2: Dao 2023).
//
// A tile is QUERIES (row, head) pairs of one span that read the same KV head: query i of a span is row i / group, head
// i % group, so that one read of K and V serves the whole group. A block is ROW_WARPS x DIM_WARPS warps: a warp has
// ROW_TILES times 16 of the queries and every DIM_WARPS-th 16 dimensions of their outputs.
#pragma once
#include "attention_copy.h"

// The queries of one block: which they are and the context that they see together.
template <class T> struct Queries {
  int begin, end, group, kv_head, window, first_seen_, last_position;
  int whole_first, whole_end;  // positions that all of them see
  Span span;
  // Tile `tile` of the span; empty where begin == end.
  template <class Kv> __device__ __forceinline__ Queries(const Attend<Kv>& a, const Span& span, int kv_head, int tile)
      : group(a.num_heads / a.num_kv_heads), kv_head(kv_head), window(a.window), span(span) {
    begin = tile * T::QUERIES;
    end = min(begin + T::QUERIES, span.num_rows * group);
    if (end < begin) end = begin;
    last_position = span.first_position + (end - 1) / group;
    whole_end = span.first_position + begin / group + 1;
    first_seen_ = first_seen(whole_end - 1, a.window);
    whole_first = first_seen(last_position, a.window);
  }
  __device__ __forceinline__ int row(int query) const { return query / group; }
  __device__ __forceinline__ int head(int query) const { return kv_head * group + query % group; }
  // Where this query's values begin in rows of so many heads.
  __device__ __forceinline__ size_t place(int query, int heads) const {
    return (static_cast<size_t>(span.row_start + row(query)) * heads + head(query)) * T::D;
  }
  // Whether nothing of the tile of K and V that begins there is hidden from any.
  __device__ __forceinline__ bool see_whole(int begin) const {
    return begin >= whole_first && begin + KV_TILE <= whole_end;
  }
};

// One thread's part of its warp's queries: of each 16 the two of rows lane / 4 and lane / 4 + 8 of the fragments.
template <class T> struct TileState {
  // The queries' fragments, where there is room; else they are fetched from `queries` for every tile of K.
  uint32_t q[T::KEEPS_QUERIES ? T::D / 16 : 1][T::ROW_TILES][4];
  const bf16* queries;
  float values[T::ROW_TILES][T::PAIRS][2][4];  // of 16 dimensions each: weighted sums of V in the current split
  float sums[T::ROW_TILES][4];                 // of weights: V's products, were there a dimension of ones
  float base[T::ROW_TILES][2];
  __device__ __forceinline__ Softmax softmax(int tile, int r) const { return Softmax{base[tile][r], sums[tile][2 * r]}; }
};

template <class T> __device__ __forceinline__ int warp_row() { return threadIdx.x / WARP_LANES % T::ROW_WARPS; }
template <class T> __device__ __forceinline__ int warp_dim() { return threadIdx.x / WARP_LANES / T::ROW_WARPS; }
// Which of the block's queries row r (0 or 1) of this thread's tile of 16 is.
template <class T> __device__ __forceinline__ int query_of(int tile, int r) {
  return (warp_row<T>() * T::ROW_TILES + tile) * 16 + threadIdx.x % WARP_LANES / 4 + 8 * r;
}
// The 16 dimensions of a pair begin at 16 times this, unless it is DIM_PAIRS or more: then there is no such pair.
template <class T> __device__ __forceinline__ int pair_of(int j) { return warp_dim<T>() + j * T::DIM_WARPS; }
template <class T> __device__ __forceinline__ bool has_pair(int j) {
  return T::DIM_PAIRS % T::DIM_WARPS == 0 || pair_of<T>(j) < T::DIM_PAIRS;
}

template <class T> __device__ __forceinline__ void clear_split(TileState<T>& s) {
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s.sums[t][i] = 0.f;
#pragma unroll
    for (int r = 0; r < 2; ++r) s.base[t][r] = nothing();
#pragma unroll
    for (int j = 0; j < T::PAIRS; ++j)
#pragma unroll
      for (int i = 0; i < 8; ++i) s.values[t][j][i / 4][i % 4] = 0.f;
  }
}

// Asks for the queries.
template <class T>
__device__ __forceinline__ void copy_queries(bf16* to, const Attend<typename T::Kv>& a, const Queries<T>& q) {
  constexpr int CHUNKS = T::QUERIES * T::D / 8;
  for (int chunk = threadIdx.x; chunk < CHUNKS; chunk += T::THREADS) {
    const int i = chunk * 8 / T::D, at = chunk * 8 % T::D, query = q.begin + i;
    const bool real = query < q.end;
    const bf16* from = a.qkv + (real ? q.place(query, a.num_heads + 2 * a.num_kv_heads) + at : 0);
    cp_async16(to + i * T::ROW + at, from, real ? 16 : 0);
  }
}
template <class T> __device__ __forceinline__ void load_queries(uint32_t (&q)[T::ROW_TILES][4], const bf16* queries, int d) {
  const int lane = threadIdx.x % WARP_LANES;
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t)
    ldmatrix_x4(q[t], queries + ((warp_row<T>() * T::ROW_TILES + t) * 16 + lane % 16) * T::ROW + d * 16 + lane / 16 * 8);
}
// `queries` are there.
template <class T>
__device__ __forceinline__ void begin_state(TileState<T>& s, const bf16* queries) {
  s.queries = queries;
  if constexpr (T::KEEPS_QUERIES) {
#pragma unroll
    for (int d = 0; d < T::D / 16; ++d) load_queries<T>(s.q[d], queries, d);
  }
  clear_split(s);
}

// Calls f(tile, r, query) for each of this thread's rows that is a query.
template <class T, class F> __device__ __forceinline__ void for_rows(const Queries<T>& q, F f) {
#pragma unroll
  for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (const int query = q.begin + query_of<T>(t, r); query < q.end) f(t, r, query);
}
// Calls f(pair, half, dim): values[tile][pair][half][2 * r] and the next are a row's dimensions dim and dim + 1.
template <class T, class F> __device__ __forceinline__ void for_dims(F f) {
#pragma unroll
  for (int j = 0; j < T::PAIRS; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (has_pair<T>(j)) f(j, half, pair_of<T>(j) * 16 + half * 8 + static_cast<int>(threadIdx.x) % 4 * 2);
}
// What attention gives for a row and head.
template <class T> __device__ __forceinline__ void write_row(bf16* out, const TileState<T>& s, int t, int r) {
  const float factor = normaliser(s.softmax(t, r));
  for_dims<T>([&](int j, int half, int dim) {
    const float* const v = s.values[t][j][half] + 2 * r;
    store_vector(out + dim, pack_bf16(v[0] * factor, v[1] * factor));
  });
}
