// The KV cache's memory: types of its elements, where a token's stand, how values become elements and back.
//
// K and V of a layer are `[num_blocks, num_kv_heads, BLOCK_TOKENS, head_dim]` each: a block's tokens of one head are one
// contiguous tile. Elements narrower than bf16 are multiples of a scale of their token and head, which stands in a region
// `[num_blocks, num_kv_heads, BLOCK_TOKENS]` of its own. Not a number, or infinite, among a token's values makes its scale
// NaN, and so whatever is read from it.
#pragma once
#include "values.h"

constexpr int BLOCK_TOKENS = 16;
constexpr int MAX_HEAD_DIM = 512;

// FP8 E4M3 (OCP 8-bit floating point, revision 1.0): bias 7, no infinities, 448 the largest.
struct fp8 { uint8_t u; };

template <class Kv> struct KvType { static constexpr bool SCALED = false; };
template <> struct KvType<int8_t> { static constexpr bool SCALED = true; static constexpr float LARGEST = 127.f; };
template <> struct KvType<fp8> { static constexpr bool SCALED = true; static constexpr float LARGEST = 448.f; };

// Of a token's row in a region of rows: index it by head_dim for K and V, by 1 for scales.
__device__ __forceinline__ size_t kv_row(uint32_t block, int num_kv_heads, int kv_head, int token) {
  return (static_cast<size_t>(block) * num_kv_heads + kv_head) * BLOCK_TOKENS + token;
}

__device__ __forceinline__ uint8_t encode(float x, int8_t) {
  return static_cast<uint8_t>(static_cast<int>(fminf(fmaxf(rintf(x), -127.f), 127.f)));
}
// To the nearest, ties to even; |x| is at most 448 and a rounding more.
__device__ __forceinline__ uint8_t encode(float x, fp8) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u;
  const float magnitude = fminf(fabsf(x), 448.f);
  if (magnitude < 0.015625f)  // 2^-6: multiples of 2^-9
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(rintf(magnitude * 512.f)));
  const uint32_t m = __float_as_uint(magnitude);
  const uint32_t rounded = m + 0x7ffffu + (m >> 20 & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

__device__ __forceinline__ float decode(float x) { return x; }
__device__ __forceinline__ float decode(bf16 x) { return bf2f(x); }
__device__ __forceinline__ float decode(int8_t x) { return static_cast<float>(x); }
// Exact: the bits as a float32 whose exponent is 120 too small.
__device__ __forceinline__ float decode(fp8 x) {
  const uint32_t bits = static_cast<uint32_t>(x.u);
  return __uint_as_float((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * 1.329227995784916e36f;  // 2^120
}

// The first or second two of a word's elements as two bf16, exactly.
//
// An int8 is its low seven bits behind 128, which a bf16 of that size holds as they are, less 128 or, below zero, 256.
__device__ __forceinline__ uint32_t decode_two(uint32_t word, int second, int8_t) {
  const uint32_t bytes = pick_bytes(word, 0x43434343u, second ? 0x4342u : 0x4140u);
  return fma_bf16x2(bytes & 0xff80ff80u, 0xbf80bf80u, bytes & 0xff7fff7fu);
}
// An fp8's exponent and mantissa in the place of a bf16's are 2^120 too small.
__device__ __forceinline__ uint32_t decode_two(uint32_t word, int second, fp8) {
  const uint32_t bytes = pick_bytes(word, 0u, second ? 0x3424u : 0x1404u);
  return fma_bf16x2((bytes >> 4 & 0x07f007f0u) | (bytes & 0x80008000u), 0x7b807b80u, 0x80008000u);
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
