// The KV cache's memory: types of its elements, where a token's stand, how values become elements and back.
//
// K and V of a layer are `[num_blocks, num_kv_heads, BLOCK_TOKENS, head_dim]` each: a block's tokens of one head are one
// contiguous tile. Elements narrower than bf16 are multiples of a scale of their token and head, which stands in a region
// `[num_blocks, num_kv_heads, BLOCK_TOKENS]` of its own. Not a number, or infinite, among a token's values makes its scale
// NaN, and so whatever is read from it.
#pragma once
#include "fp8.h"
#include "values.h"

constexpr int BLOCK_TOKENS = 16;
constexpr int MAX_HEAD_DIM = 512;

template <class Kv> struct KvType { static constexpr bool SCALED = false; };
template <> struct KvType<int8_t> { static constexpr bool SCALED = true; static constexpr float LARGEST = 127.f; };
template <> struct KvType<fp8> { static constexpr bool SCALED = true; static constexpr float LARGEST = LARGEST_FP8; };

// Of a token's row in a region of rows: index it by head_dim for K and V, by 1 for scales.
__device__ __forceinline__ size_t kv_row(uint32_t block, int num_kv_heads, int kv_head, int token) {
  return (static_cast<size_t>(block) * num_kv_heads + kv_head) * BLOCK_TOKENS + token;
}

__device__ __forceinline__ uint8_t encode(float x, int8_t) {
  return static_cast<uint8_t>(static_cast<int>(fminf(fmaxf(rintf(x), -127.f), 127.f)));
}
__device__ __forceinline__ uint8_t encode(float x, fp8) { return encode_fp8(x); }

__device__ __forceinline__ float decode(float x) { return x; }
__device__ __forceinline__ float decode(bf16 x) { return bf2f(x); }
__device__ __forceinline__ float decode(int8_t x) { return static_cast<float>(x); }
__device__ __forceinline__ float decode(fp8 x) { return decode_fp8(x); }

// The first or second two of a word's elements as two bf16, exactly.
//
// An int8 is its low seven bits behind 128, which a bf16 of that size holds as they are, less 128 or, below zero, 256.
__device__ __forceinline__ uint32_t decode_two(uint32_t word, int second, int8_t) {
  const uint32_t bytes = pick_bytes(word, 0x43434343u, second ? 0x4342u : 0x4140u);
  return fma_bf16x2(bytes & 0xff80ff80u, 0xbf80bf80u, bytes & 0xff7fff7fu);
}
__device__ __forceinline__ uint32_t decode_two(uint32_t word, int second, fp8) {
  return decode_fp8x2(pick_bytes(word, 0u, second ? 0x3424u : 0x1404u));
}

// Stores N of a token's values at `to`; `inverse` is of their scale, where their type has one.
template <class Kv, int N> __device__ __forceinline__ void store_kv(Kv* to, const float (&v)[N], float inverse) {
  if constexpr (!KvType<Kv>::SCALED) {
    store_values(to, v);
  } else if constexpr (N == 1) {
    *reinterpret_cast<uint8_t*>(to) = encode(v[0] * inverse, Kv());
  } else {
    static_assert(N == 8, "eight bytes are a vector");
    uint32_t word[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < N; ++j) word[j / 4] |= static_cast<uint32_t>(encode(v[j] * inverse, Kv())) << 8 * (j % 4);
    store_vector(to, uint2{word[0], word[1]});
  }
}
