// Attention of a tile of queries over a range of their context, on tensor cores (flash-attention 2: Dao 2023).
//
// A tile is QUERIES (row, head) pairs of one span that read the same KV head: query i of a span is row i / group, head
// i % group, so that one read of K and V serves the whole group. A block is ROW_WARPS x DIM_WARPS warps: a warp has 16 of
// the queries and every DIM_WARPS-th 16 dimensions of their outputs; warps that share queries compute the same weights.
// K and V are copied to shared memory by turns: V while K is multiplied, the next K while V is. Narrow elements become bf16
// on the way (exactly), their scales are applied to scores and weights.
#pragma once
#include "attention.h"

template <class Kv_, int D_, int ROW_WARPS_, int DIM_WARPS_> struct TileShape {
  using Kv = Kv_;
  static constexpr int D = D_, ROW_WARPS = ROW_WARPS_, DIM_WARPS = DIM_WARPS_;
  static constexpr int QUERIES = 16 * ROW_WARPS, THREADS = WARP_LANES * ROW_WARPS * DIM_WARPS;
  static constexpr int ROW = D + 8;  // of a tile in shared memory: 16 bytes more, so that ldmatrix meets no bank twice
  static constexpr int DIM_PAIRS = D / 16, PAIRS = (DIM_PAIRS + DIM_WARPS - 1) / DIM_WARPS;
  static constexpr int VALUES = PAIRS * 8;  // of the outputs, of a thread
  static_assert(D % 16 == 0 && QUERIES <= KV_TILE, "queries pass through the place of a tile of V");
};

// Dynamic shared memory; `totals` is for kernels that go through several splits.
template <class T> struct TileMemory {
  bf16 *k, *v;
  float *k_scales, *v_scales, *totals;
  __device__ __forceinline__ explicit TileMemory(uint8_t* memory) {
    k = reinterpret_cast<bf16*>(memory);
    v = k + KV_TILE * T::ROW;
    k_scales = reinterpret_cast<float*>(v + KV_TILE * T::ROW);
    v_scales = k_scales + KV_TILE;
    totals = v_scales + KV_TILE;
  }
};

// The positions that a block reads, and through which table.
struct Context { const uint32_t* table; int first, end, num_kv_heads, kv_head; };

// A tile of K or V from its blocks to shared memory; positions outside of the context are zeros, and their blocks unread.
template <class T>
__device__ __forceinline__ void load_tile(bf16* to, float* scales_to, const typename T::Kv* cache, const float* scales,
                                          const Context& c, int tile) {
  using Kv = typename T::Kv;
  constexpr int CHUNK = 16 / sizeof(Kv), CHUNKS = BLOCK_TOKENS * T::D / CHUNK;
#pragma unroll
  for (int b = 0; b < KV_TILE / BLOCK_TOKENS; ++b) {
    const int begin = tile * KV_TILE + b * BLOCK_TOKENS;
    const bool reads = begin < c.end && begin + BLOCK_TOKENS > c.first;
    const size_t row = kv_row(reads ? c.table[begin / BLOCK_TOKENS] : 0, c.num_kv_heads, c.kv_head, 0);
    for (int chunk = threadIdx.x; chunk < CHUNKS; chunk += T::THREADS) {
      const int token = chunk * CHUNK / T::D, at = chunk * CHUNK % T::D;
      const bool seen = begin + token >= c.first && begin + token < c.end;
      const Kv* from = cache + (seen ? (row + token) * T::D + at : 0);
      bf16* const target = to + (b * BLOCK_TOKENS + token) * T::ROW + at;
      if constexpr (KvType<Kv>::SCALED) {
        uint4 bytes = seen ? load_vector<uint4>(from) : uint4{0, 0, 0, 0};
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
        uint32_t pairs[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const uint32_t two = words[i / 2] >> 16 * (i % 2);
          pairs[i] = pack_bf16(decode_byte(two, Kv()), decode_byte(two >> 8, Kv()));
        }
        store_vector(target, uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
        store_vector(target + 8, uint4{pairs[4], pairs[5], pairs[6], pairs[7]});
      } else {
        cp_async16(target, from, seen ? 16 : 0);
      }
    }
    if constexpr (KvType<Kv>::SCALED) {
      const int token = threadIdx.x;
      const bool seen = begin + token >= c.first && begin + token < c.end;
      if (token < BLOCK_TOKENS) scales_to[b * BLOCK_TOKENS + token] = seen ? scales[row + token] : 0.f;
    }
  }
}

// The queries of one block: which they are and the context that they see together.
template <class T> struct Queries {
  int begin, end, group, kv_head, first_row, first_seen_, last_position;
  Span span;
  // Tile `tile` of the span; empty where begin == end.
  template <class Kv> __device__ __forceinline__ Queries(const Attend<Kv>& a, const Span& span, int kv_head, int tile)
      : group(a.num_heads / a.num_kv_heads), kv_head(kv_head), span(span) {
    begin = tile * T::QUERIES;
    end = min(begin + T::QUERIES, span.num_rows * group);
    if (end < begin) end = begin;
    first_seen_ = first_seen(span.first_position + begin / group, a.window);
    last_position = span.first_position + (end - 1) / group;
  }
  __device__ __forceinline__ int row(int query) const { return query / group; }
  __device__ __forceinline__ int head(int query) const { return kv_head * group + query % group; }
};

// One thread's part of a warp's 16 queries: the two of rows lane / 4 and lane / 4 + 8 of the fragments.
template <class T> struct TileState {
  uint32_t q[T::D / 16][4];
  float values[T::PAIRS][2][4];  // of 16 dimensions each: weighted sums of V in the current split
  Softmax softmax[2];
  int first[2], last[2];  // the positions that each of the two sees; last < first: none
};

template <class T> __device__ __forceinline__ int warp_row() { return threadIdx.x / WARP_LANES % T::ROW_WARPS; }
template <class T> __device__ __forceinline__ int warp_dim() { return threadIdx.x / WARP_LANES / T::ROW_WARPS; }
// Which of the block's queries this thread's row r (0 or 1) is.
template <class T> __device__ __forceinline__ int query_of(int r) {
  return warp_row<T>() * 16 + threadIdx.x % WARP_LANES / 4 + 8 * r;
}

template <class T> __device__ __forceinline__ void clear_split(TileState<T>& s) {
#pragma unroll
  for (int r = 0; r < 2; ++r) s.softmax[r] = Softmax{nothing(), 0.f};
#pragma unroll
  for (int j = 0; j < T::PAIRS; ++j)
#pragma unroll
    for (int i = 0; i < 8; ++i) s.values[j][i / 4][i % 4] = 0.f;
}

// Asks for the queries, in the place of a tile of V.
template <class T>
__device__ __forceinline__ void load_queries(bf16* to, const Attend<typename T::Kv>& a, const Queries<T>& q) {
  constexpr int CHUNKS = T::QUERIES * T::D / 8;
  const size_t width = static_cast<size_t>(a.num_heads + 2 * a.num_kv_heads) * T::D;
  for (int chunk = threadIdx.x; chunk < CHUNKS; chunk += T::THREADS) {
    const int i = chunk * 8 / T::D, at = chunk * 8 % T::D, query = q.begin + i;
    const bool real = query < q.end;
    const bf16* from = a.qkv + (real ? (q.span.row_start + q.row(query)) * width + q.head(query) * T::D + at : 0);
    cp_async16(to + i * T::ROW + at, from, real ? 16 : 0);
  }
}
template <class T>
__device__ __forceinline__ void begin_state(TileState<T>& s, const bf16* queries, const Queries<T>& q, int window) {
  const int lane = threadIdx.x % WARP_LANES;
#pragma unroll
  for (int k = 0; k < T::D / 16; ++k)
    ldmatrix_x4(s.q[k], queries + (warp_row<T>() * 16 + lane % 16) * T::ROW + k * 16 + lane / 16 * 8);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = q.begin + query_of<T>(r), position = q.span.first_position + q.row(query);
    s.first[r] = first_seen(position, window);
    s.last[r] = query < q.end ? position : -1;
  }
  clear_split(s);
}
