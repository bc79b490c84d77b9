// What becomes of a fused qkv row before attention: q and k are normalised and rotated, k and v go to the KV cache.
//
// A warp takes a head of a row; q is written back in place, K and V are rounded once, to the cache's type. Norm of a whole
// row needs its q and k as they were: one block then does the row (grid.y is 1).
// A row of NO_SLOT fills up a step and is left as it is.
// Rotary embedding (Su et al. 2021) of the pairs (x[i], x[i + rotary_dim / 2]); dimensions beyond rotary_dim stay.
#include "kv.h"

constexpr int WARPS = ROW_THREADS / WARP_LANES;
constexpr uint32_t NO_SLOT = 0xffffffffu;
enum QkNorm { NORM_NONE = 0, NORM_PER_HEAD = 1, NORM_WHOLE_ROW = 2 };

template <class Kv> struct Rotate {
  bf16* qkv;
  Kv *k_cache, *v_cache;
  float *k_scales, *v_scales;
  const uint32_t *positions, *slots;
  const float *cos, *sin;        // [max_positions, rotary_dim / 2]; null: no rotation
  const float *q_norm, *k_norm;  // [head_dim] or [q_width] and [kv_width]
  float eps;
  int norm, num_heads, num_kv_heads, head_dim, rotary_dim;
};

// 1 / rms of `width` values, by the whole block.
__device__ __forceinline__ float row_inverse_rms(const bf16* x, int width, float eps) {
  float squares = 0.f;
  for (int i = threadIdx.x; i < width; i += ROW_THREADS) {
    const float v = bf2f(x[i]);
    squares += v * v;
  }
  return rsqrtf(block_sum(squares) / width + eps);
}

// Loads a head to shared memory as float32; this lane's part of its sum of squares.
template <int N> __device__ __forceinline__ float load_head(float* x, const bf16* head, int head_dim, int lane) {
  float squares = 0.f;
  for (int i = lane * N; i < head_dim; i += WARP_LANES * N) {
    float v[N];
    load_values(head + i, v);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      squares += v[j] * v[j];
      x[i + j] = v[j];
    }
  }
  __syncwarp();
  return squares;
}

__device__ __forceinline__ void rotate_head(float* x, const float* cos, const float* sin, int half, int lane) {
  for (int i = lane; i < half; i += WARP_LANES) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
  __syncwarp();
}

template <int N, class Kv>
__device__ __forceinline__ void store_head(Kv* to, float* scale_to, const float* x, int head_dim, int lane) {
  float inverse = 1.f;
  if constexpr (KvType<Kv>::SCALED) {
    float largest = 0.f, poison = 0.f;
    for (int i = lane; i < head_dim; i += WARP_LANES) {
      largest = fmaxf(largest, fabsf(x[i]));
      poison += x[i] * 0.f;
    }
    largest = warp_largest(largest);
    poison = warp_sum(poison);
    inverse = largest > 1e-30f ? KvType<Kv>::LARGEST / largest : 0.f;
    if (poison != poison) inverse = 0.f;
    if (lane == 0) *scale_to = largest / KvType<Kv>::LARGEST + poison;
  }
  for (int i = lane * N; i < head_dim; i += WARP_LANES * N) {
    float v[N];
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = inverse > 0.f ? x[i + j] : 0.f;
    store_kv(to + i, v, inverse);
  }
}

// `staged` is [WARPS, MAX_HEAD_DIM] of shared memory.
template <int N, class Kv> __device__ __forceinline__ void rotate_and_store(const Rotate<Kv>& a, float* staged) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES, heads = a.num_heads + 2 * a.num_kv_heads;
  bf16* const row = a.qkv + static_cast<size_t>(blockIdx.x) * heads * a.head_dim;
  const uint32_t slot = a.slots[blockIdx.x];
  if (slot == NO_SLOT) return;  // the whole block
  const int q_width = a.num_heads * a.head_dim, kv_width = a.num_kv_heads * a.head_dim, half = a.rotary_dim / 2;
  float q_scale = 1.f, k_scale = 1.f;
  if (a.norm == NORM_WHOLE_ROW) {
    q_scale = row_inverse_rms(row, q_width, a.eps);
    k_scale = row_inverse_rms(row + q_width, kv_width, a.eps);
  }
  const size_t table = static_cast<size_t>(a.positions[blockIdx.x]) * half;
  float* const x = staged + warp * MAX_HEAD_DIM;
  for (int head = blockIdx.y * WARPS + warp; head < heads; head += gridDim.y * WARPS) {
    const bool is_q = head < a.num_heads, is_v = head >= a.num_heads + a.num_kv_heads;
    const float squares = load_head<N>(x, row + head * a.head_dim, a.head_dim, lane);
    if (!is_v && a.norm != NORM_NONE) {
      const bool whole = a.norm == NORM_WHOLE_ROW;
      const float* weight = is_q ? a.q_norm : a.k_norm;
      if (whole) weight += (is_q ? head : head - a.num_heads) * a.head_dim;
      const float of_head = rsqrtf(warp_sum(squares) / a.head_dim + a.eps);
      const float scale = whole ? (is_q ? q_scale : k_scale) : of_head;
      for (int i = lane; i < a.head_dim; i += WARP_LANES) x[i] = x[i] * scale * weight[i];
      __syncwarp();
    }
    if (!is_v && a.cos) rotate_head(x, a.cos + table, a.sin + table, half, lane);
    if (is_q) {
      store_head<N>(row + head * a.head_dim, nullptr, x, a.head_dim, lane);
    } else {
      const int kv_head = (head - a.num_heads) % a.num_kv_heads;
      const size_t at = kv_row(slot / BLOCK_TOKENS, a.num_kv_heads, kv_head, slot % BLOCK_TOKENS);
      float* const scales = is_v ? a.v_scales : a.k_scales;
      Kv* const to = (is_v ? a.v_cache : a.k_cache) + at * a.head_dim;
      store_head<N>(to, KvType<Kv>::SCALED ? scales + at : nullptr, x, a.head_dim, lane);
    }
    __syncwarp();
  }
}

#define INSTANCE(kv_name, Kv)                                                                                        \
  KERNEL(ROW_THREADS, rotate_and_store_##kv_name, bf16* qkv, Kv* k_cache, Kv* v_cache, float* k_scales,             \
         float* v_scales, const uint32_t* positions, const uint32_t* slots, const float* cos, const float* sin,     \
         const float* q_norm, const float* k_norm, float eps, int norm, int num_heads, int num_kv_heads,            \
         int head_dim, int rotary_dim) {                                                                            \
    const Rotate<Kv> a{qkv, k_cache, v_cache, k_scales, v_scales, positions, slots, cos, sin, q_norm, k_norm,       \
                       eps, norm, num_heads, num_kv_heads, head_dim, rotary_dim};                                   \
    SHARED(float, staged, WARPS * MAX_HEAD_DIM);                                                                    \
    if (vectors_fit(head_dim, qkv, k_cache, v_cache)) rotate_and_store<VECTOR>(a, staged);                          \
    else rotate_and_store<1>(a, staged);                                                                            \
  }
INSTANCE(f32, float)
INSTANCE(bf16, bf16)
INSTANCE(int8, int8_t)
INSTANCE(fp8, fp8)
