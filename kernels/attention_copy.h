// K and V on their way to a block: a ring of tiles in shared memory, K and V of a tile by turns, filled ahead of their use.
//
// A thread copies the same chunk of 16 bytes of a token in every pass. Elements narrower than bf16 lie in the ring as they
// are; when they have come, each thread makes bf16 of what it copied itself (exactly; their scales are applied to scores
// and weights), in one of two tiles for K and V, or in one for both where memory is short.
//
// Which blocks a tile is made of stands in shared memory, for a thread that held them in registers would have none to spare.
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
  static constexpr int STRIDE = PASS > BLOCK_TOKENS ? PASS : BLOCK_TOKENS;
  // Bytes of shared memory.
  static constexpr int TILE = KV_TILE * ROW * 2, QUERY_BYTES = QUERIES * ROW * 2;
  static constexpr int COPIED_ROW = SCALED ? D : ROW * 2, COPIED = KV_TILE * (SCALED ? D + 4 : ROW * 2);
  static constexpr int TILES = !SCALED ? 0 : D > 128 ? 1 : 2;
  static constexpr int RING_BYTES = BUFFERS * COPIED + TILES * TILE + (SCALED ? 2 * KV_TILE * 4 : 0);
  static_assert(D % 16 == 0 && BUFFERS >= 2 && THREADS >= KV_TILE / 4, "a thread copies four scales");
};

// The positions that a block reads, and through which table.
struct Context { const uint32_t* table; int first, end, kv_head; };

constexpr int TILE_BLOCKS = KV_TILE / BLOCK_TOKENS;
// Tiles whose blocks are kept: one is read while another is written, and barriers let threads be a tile apart.
constexpr int KEPT_TILES = 4;

template <class T> struct Ring {
  using Kv = typename T::Kv;
  const Attend<Kv>& a;
  const Context& c;           // may be in shared memory
  uint8_t* const memory;      // RING_BYTES
  int next;                   // where the next tile to be copied begins, and one more where its V is next
  int copied, arrived;        // the buffers that are filled and met next
  uint32_t* const kept;       // [KEPT_TILES, TILE_BLOCKS]

  // Begins at the context's first tile; what was asked for before is part of the first group.
  __device__ __forceinline__ Ring(const Attend<Kv>& a, const Context& c, uint8_t* memory, uint32_t* kept)
      : a(a), c(c), memory(memory), next(c.first / KV_TILE * KV_TILE), copied(0), arrived(0), kept(kept) {
    for (int begin = next; begin < next + 2 * KV_TILE; begin += KV_TILE)
      if (threadIdx.x < TILE_BLOCKS) kept_of(begin)[threadIdx.x] = has_own_block(begin) ? *own_entry(begin) : 0;
    __syncthreads();  // the blocks of two tiles are there
    for (int i = 0; i < T::BUFFERS - 1; ++i) copy();
  }

  static __device__ __forceinline__ int own_token() { return threadIdx.x / T::LANES; }
  static __device__ __forceinline__ int own_chunk() { return threadIdx.x % T::LANES; }
  __device__ __forceinline__ bool sees(int position) const {
    return static_cast<uint32_t>(position - c.first) < static_cast<uint32_t>(c.end - c.first);
  }
  // Of the tile that begins at `begin`: whether this thread's block is read, where the table has it, and where the tile's
  // blocks are kept.
  __device__ __forceinline__ bool has_own_block(int begin) const {
    const int position = begin + static_cast<int>(threadIdx.x) * BLOCK_TOKENS;
    return position < c.end && position + BLOCK_TOKENS > c.first;
  }
  __device__ __forceinline__ const uint32_t* own_entry(int begin) const { return c.table + begin / BLOCK_TOKENS + threadIdx.x; }
  __device__ __forceinline__ uint32_t* kept_of(int begin) const {
    return kept + static_cast<uint32_t>(begin) / BLOCK_TOKENS % (KEPT_TILES * TILE_BLOCKS);
  }
  // Asks for a tile's blocks, with the V of the tile but one before: they have come with it, at the latest, when they are used.
  __device__ __forceinline__ void copy_blocks(int begin) const {
    if (threadIdx.x >= TILE_BLOCKS) return;
    const bool real = has_own_block(begin);
    cp_async4(kept_of(begin) + threadIdx.x, real ? own_entry(begin) : c.table, real ? 4 : 0);
  }

  // Asks for the next half tile, if the context has one; a group in any case.
  __device__ __forceinline__ void copy() {
    const bool is_v = next & 1;
    const int begin = next - is_v;
    if (begin < c.end) {
      uint8_t* const to = memory + copied * T::COPIED;
      copy_values(to, is_v ? a.v_cache : a.k_cache, begin);
      if constexpr (T::SCALED) copy_scales(to + KV_TILE * T::D, is_v ? a.v_scales : a.k_scales, begin);
      if (is_v) copy_blocks(begin + 2 * KV_TILE);
      next = is_v ? begin + KV_TILE : begin + 1;
      copied = copied + 1 == T::BUFFERS ? 0 : copied + 1;
    }
    cp_async_commit();
  }
  // Positions outside of the context become zeros, and are not read.
  __device__ __forceinline__ void copy_values(uint8_t* to, const Kv* cache, int begin) const {
    if (T::CHUNKS < T::LANES && own_chunk() >= T::CHUNKS) return;
    const uint32_t in_block = own_token() % BLOCK_TOKENS * T::D + own_chunk() * T::CHUNK;
    to += own_token() * T::COPIED_ROW + own_chunk() * 16;
    const uint32_t* const blocks = kept_of(begin) + (T::PASS > BLOCK_TOKENS ? own_token() / BLOCK_TOKENS : 0);
#pragma unroll
    for (int first = 0; first < KV_TILE; first += T::STRIDE) {
      const uint32_t block = blocks[first / BLOCK_TOKENS];
      const Kv* const from = cache + kv_row(block, a.num_kv_heads, c.kv_head, 0) * T::D + in_block;
#pragma unroll
      for (int token = first; token < first + T::STRIDE; token += T::PASS)
        cp_async16(to + token * T::COPIED_ROW, from + (token - first) * T::D,
                   sees(begin + token + own_token()) ? 16 : 0);
    }
  }
  __device__ __forceinline__ void copy_scales(uint8_t* to, const float* scales, int begin) const {
    if (threadIdx.x >= KV_TILE / 4) return;
    const uint32_t block = kept_of(begin)[threadIdx.x / 4];
    cp_async16(to + threadIdx.x * 16, scales + kv_row(block, a.num_kv_heads, c.kv_head, threadIdx.x % 4 * 4));
  }

  // Waits for K or V of the tile that begins at `begin`, the next to be met, gives it to all threads, and asks for another in
  // the place of the one before.
  template <bool IS_V> __device__ __forceinline__ const bf16* arrive(int begin) {
    cp_async_wait<T::BUFFERS - 2>();
    uint8_t* const from = memory + arrived * T::COPIED;
    const bf16* const values = reinterpret_cast<const bf16*>(T::SCALED ? tile_at(IS_V) : from);
    if constexpr (T::SCALED) {
      if (T::TILES == 1) __syncthreads();  // nobody reads the tile any more
      convert(tile_at(IS_V), from);
      convert_scales(const_cast<float*>(scales(IS_V)), from + KV_TILE * T::D, begin);
    }
    __syncthreads();  // the half tile is there, and nobody reads the one before any more
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
  __device__ __forceinline__ void convert_scales(float* to, const uint8_t* from, int begin) const {
    if (threadIdx.x >= KV_TILE / 4) return;
    const int token = threadIdx.x * 4, position = begin + token;
    const float4 s = load_vector<float4>(from + token * 4);
    store_vector(to + token, float4{sees(position) ? s.x : 0.f, sees(position + 1) ? s.y : 0.f,
                                    sees(position + 2) ? s.z : 0.f, sees(position + 3) ? s.w : 0.f});
  }
};
