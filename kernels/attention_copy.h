// K and V on their way to a block: a ring of tiles in shared memory, K and V of a tile by turns, filled ahead of their use.
//
// A thread copies the same chunk of 16 bytes of a token in every pass. Elements narrower than bf16 lie in the ring as they
// are; when they have come, each thread makes bf16 of what it copied itself (exactly; their scales are applied to scores
// and weights), in one of two tiles for K and V, or in one for both where memory is short.
#pragma once
#include "attention.h"

template <class Kv_, int D_, int ROW_WARPS_, int ROW_TILES_, int DIM_WARPS_, int BUFFERS_> struct TileShape {
  using Kv = Kv_;
  static constexpr bool SCALED = KvType<Kv>::SCALED;
  static constexpr int D = D_, ROW_WARPS = ROW_WARPS_, ROW_TILES = ROW_TILES_, DIM_WARPS = DIM_WARPS_, BUFFERS = BUFFERS_;
  static constexpr int QUERIES = 16 * ROW_TILES * ROW_WARPS, THREADS = WARP_LANES * ROW_WARPS * DIM_WARPS;
  static constexpr bool KEEPS_QUERIES = ROW_WARPS == 1 || D * ROW_TILES <= 128;
  static constexpr int ROW = D + 8;  // of a tile in shared memory: 16 bytes more, so that ldmatrix meets no bank twice
  static constexpr int DIM_PAIRS = D / 16, PAIRS = (DIM_PAIRS + DIM_WARPS - 1) / DIM_WARPS;
  // Copies: LANES threads share a token, PASS tokens are one pass.
  static constexpr int CHUNK = 16 / sizeof(Kv), CHUNKS = D / CHUNK;
  static constexpr int LANES = CHUNKS <= 4 ? 4 : CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : 32;
  static constexpr int PASS = THREADS / LANES, PASSES = KV_TILE / PASS;
  static constexpr int STRIDE = PASS > BLOCK_TOKENS ? PASS : BLOCK_TOKENS, ENTRIES = KV_TILE / STRIDE;
  // Bytes of shared memory.
  static constexpr int TILE = KV_TILE * ROW * 2, QUERY_BYTES = QUERIES * ROW * 2;
  static constexpr int COPIED_ROW = SCALED ? D : ROW * 2, COPIED = KV_TILE * (SCALED ? D + 4 : ROW * 2);
  static constexpr int TILES = !SCALED ? 0 : D > 128 ? 1 : 2;
  static constexpr int RING_BYTES = BUFFERS * COPIED + TILES * TILE + (SCALED ? 2 * KV_TILE * 4 : 0);
  static_assert(D % 16 == 0 && BUFFERS >= 2 && THREADS >= KV_TILE / 4, "a thread copies four scales");
};

// The positions that a block reads, and through which table.
struct Context { const uint32_t* table; int first, end, kv_head; };

template <class T> struct Ring {
  using Kv = typename T::Kv;
  const Attend<Kv>& a;
  const Context c;
  uint8_t* const memory;      // RING_BYTES
  int tile, copied, arrived;  // the next tile to be copied; the buffers that are filled and met next
  bool is_v, met_v;           // whether those are V
  uint32_t blocks[T::ENTRIES], scale_block;  // of the next tile, as this thread copies it

  // Begins at the context's first tile; what was asked for before is part of the first group.
  __device__ __forceinline__ Ring(const Attend<Kv>& a, const Context& c, uint8_t* memory)
      : a(a), c(c), memory(memory), tile(c.first / KV_TILE), copied(0), arrived(0), is_v(false), met_v(false),
        scale_block(0) {
    find_blocks();
    for (int i = 0; i < T::BUFFERS - 1; ++i) copy();
  }

  static __device__ __forceinline__ int own_token() { return threadIdx.x / T::LANES; }
  static __device__ __forceinline__ int own_chunk() { return threadIdx.x % T::LANES; }
  __device__ __forceinline__ bool sees(int position) const {
    return static_cast<uint32_t>(position - c.first) < static_cast<uint32_t>(c.end - c.first);
  }
  __device__ __forceinline__ uint32_t block_at(int position) const {
    return position < c.end && position + BLOCK_TOKENS > c.first ? c.table[position / BLOCK_TOKENS] : 0;
  }
  // Ahead of their use, so that copies need not wait for the table.
  __device__ __forceinline__ void find_blocks() {
    const int begin = tile * KV_TILE;
#pragma unroll
    for (int e = 0; e < T::ENTRIES; ++e)
      blocks[e] = block_at(begin + e * T::STRIDE + own_token() / BLOCK_TOKENS * BLOCK_TOKENS);
    if (T::SCALED && threadIdx.x < KV_TILE / 4) scale_block = block_at(begin + threadIdx.x / 4 * BLOCK_TOKENS);
  }

  // Asks for the next half tile, if the context has one; a group in any case.
  __device__ __forceinline__ void copy() {
    if (tile * KV_TILE < c.end) {
      uint8_t* const to = memory + copied * T::COPIED;
      copy_values(to, is_v ? a.v_cache : a.k_cache);
      if constexpr (T::SCALED) copy_scales(to + KV_TILE * T::D, is_v ? a.v_scales : a.k_scales);
      if (is_v) {
        ++tile;
        find_blocks();
      }
      is_v = !is_v;
      copied = copied + 1 == T::BUFFERS ? 0 : copied + 1;
    }
    cp_async_commit();
  }
  // Positions outside of the context become zeros, and are not read.
  __device__ __forceinline__ void copy_values(uint8_t* to, const Kv* cache) const {
    if (T::CHUNKS < T::LANES && own_chunk() >= T::CHUNKS) return;
    const uint32_t in_block = own_token() % BLOCK_TOKENS * T::D + own_chunk() * T::CHUNK;
    to += own_token() * T::COPIED_ROW + own_chunk() * 16;
#pragma unroll
    for (int e = 0; e < T::ENTRIES; ++e) {
      const Kv* const from = cache + kv_row(blocks[e], a.num_kv_heads, c.kv_head, 0) * T::D + in_block;
#pragma unroll
      for (int at = 0; at < T::STRIDE; at += T::PASS) {
        const int token = e * T::STRIDE + at;
        cp_async16(to + token * T::COPIED_ROW, from + at * T::D, sees(tile * KV_TILE + token + own_token()) ? 16 : 0);
      }
    }
  }
  __device__ __forceinline__ void copy_scales(uint8_t* to, const float* scales) const {
    if (threadIdx.x >= KV_TILE / 4) return;
    cp_async16(to + threadIdx.x * 16, scales + kv_row(scale_block, a.num_kv_heads, c.kv_head, threadIdx.x % 4 * 4));
  }

  // Waits for the next half tile, gives it to all threads, and asks for another in the place of the one before.
  __device__ __forceinline__ const bf16* arrive(int of_tile) {
    cp_async_wait<T::BUFFERS - 2>();
    uint8_t* const from = memory + arrived * T::COPIED;
    const bf16* const values = reinterpret_cast<const bf16*>(T::SCALED ? tile_at(met_v) : from);
    if constexpr (T::SCALED) {
      if (T::TILES == 1) __syncthreads();  // nobody reads the tile any more
      convert(tile_at(met_v), from);
      convert_scales(const_cast<float*>(scales(met_v)), from + KV_TILE * T::D, of_tile);
    }
    __syncthreads();  // the half tile is there, and nobody reads the one before any more
    met_v = !met_v;
    arrived = arrived + 1 == T::BUFFERS ? 0 : arrived + 1;
    copy();
    return values;
  }
  // [KV_TILE], of K or V as they arrived last; zero outside of the context.
  __device__ __forceinline__ const float* scales(bool of_v) const {
    return reinterpret_cast<const float*>(memory + T::BUFFERS * T::COPIED + T::TILES * T::TILE) + of_v * KV_TILE;
  }
  __device__ __forceinline__ uint8_t* tile_at(bool of_v) const {
    return memory + T::BUFFERS * T::COPIED + (of_v && T::TILES == 2 ? T::TILE : 0);
  }
  __device__ __forceinline__ void convert(uint8_t* to, const uint8_t* from) const {
    if (T::CHUNKS < T::LANES && own_chunk() >= T::CHUNKS) return;
    to += own_token() * T::ROW * 2 + own_chunk() * 32;
    from += own_token() * T::COPIED_ROW + own_chunk() * 16;
#pragma unroll
    for (int token = 0; token < KV_TILE; token += T::PASS) {
      const uint4 bytes = load_vector<uint4>(from + token * T::COPIED_ROW);
      const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
      uint32_t pairs[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) pairs[i] = decode_two(words[i / 2], i % 2, Kv());
      store_vector(to + token * T::ROW * 2, uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
      store_vector(to + token * T::ROW * 2 + 16, uint4{pairs[4], pairs[5], pairs[6], pairs[7]});
    }
  }
  // A weight of zero times a scale that was never written could be anything.
  __device__ __forceinline__ void convert_scales(float* to, const uint8_t* from, int of_tile) const {
    if (threadIdx.x >= KV_TILE / 4) return;
    const int token = threadIdx.x * 4, position = of_tile * KV_TILE + token;
    const float4 s = load_vector<float4>(from + token * 4);
    store_vector(to + token, float4{sees(position) ? s.x : 0.f, sees(position + 1) ? s.y : 0.f,
                                    sees(position + 2) ? s.z : 0.f, sees(position + 3) ? s.w : 0.f});
  }
};
