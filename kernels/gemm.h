// A tile of out = x * w^T on tensor cores: bf16 in, float32 sums, multi-stage asynchronous copies.
//
// Invariant: every element is one chain of m16n8k16 products in ascending order of k, zeros behind the end. So its bits
// depend on its row of x and of w alone: not on the tile's shape, the number of rows or the kernel that was chosen.
#pragma once
#include "values.h"

template <int M_, int N_, int K_, int WARPS_M_, int WARPS_N_, int STAGES_> struct GemmShape {
  static constexpr int M = M_, N = N_, K = K_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
  static constexpr int THREADS = WARP_LANES * WARPS_M * WARPS_N;
  static constexpr int ROW = K + 8;  // of a tile in shared memory: 16 bytes more, so that ldmatrix meets no bank twice
  static constexpr int STAGE = (M + N) * ROW, SMEM_BYTES = STAGES * STAGE * 2;
  static constexpr int M_TILES = M / WARPS_M / 16, N_PAIRS = N / WARPS_N / 16, N_TILES = 2 * N_PAIRS;
  static_assert(M_TILES > 0 && N_PAIRS > 0 && K % 16 == 0, "a warp has whole fragments");
};

// Rows of x and of out that row i of the product is.
struct SameRows {
  __device__ __forceinline__ int from(int i) const { return i; }
  __device__ __forceinline__ int to(int i) const { return i; }
};

template <class Rows> struct Gemm {
  const bf16 *x, *w;   // [.., k], [n, k]
  const float* bias;   // [n] or null
  int m, n, k;
  Rows rows;
  bool vectors;        // whether rows of x and w can be copied 16 bytes at a time
  __device__ __forceinline__ int width() const { return n; }  // of a row of out
};
__device__ __forceinline__ bool copies_fit(const bf16* x, const bf16* w, int k) { return vectors_fit(k, x, w); }

// Eight values of a row from column `at` on to shared memory; zeros where there are none.
__device__ __forceinline__ void copy_eight(bf16* to, const bf16* row, int at, int k, bool real, bool vectors) {
  const int count = real ? max(0, min(8, k - at)) : 0;
  if (vectors) return cp_async16(to, count ? row + at : row, count * 2);
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 2 * i < count ? row[at + 2 * i].u : 0u, high = 2 * i + 1 < count ? row[at + 2 * i + 1].u : 0u;
    pairs[i] = low | high << 16;
  }
  store_vector(to, uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
}

// The columns [k0, k0 + T::K) of the tile's rows of x and w.
template <class T, class Rows>
__device__ __forceinline__ void load_stage(bf16* stage, const Gemm<Rows>& g, int m0, int n0, int k0) {
  constexpr int CHUNKS = T::K / 8;
  for (int chunk = threadIdx.x; chunk < (T::M + T::N) * CHUNKS; chunk += T::THREADS) {
    const int i = chunk / CHUNKS, at = chunk % CHUNKS * 8;
    const bool of_x = i < T::M;
    const int row = of_x ? m0 + i : n0 + i - T::M;
    const bool real = row < (of_x ? g.m : g.n);
    const size_t source = !real ? 0 : of_x ? g.rows.from(row) : row;
    copy_eight(stage + i * T::ROW + at, (of_x ? g.x : g.w) + source * g.k, k0 + at, g.k, real, g.vectors);
  }
}

template <class T> struct Sums {
  float of[T::M_TILES][T::N_TILES][4];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < T::M_TILES; ++i)
#pragma unroll
      for (int j = 0; j < T::N_TILES * 4; ++j) of[i][j / 4][j % 4] = 0.f;
  }
};

template <class T> __device__ __forceinline__ void multiply_stage(Sums<T>& sums, const bf16* stage) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const bf16* const x = stage + (warp % T::WARPS_M * T::M_TILES * 16 + lane % 16) * T::ROW + lane / 16 * 8;
  const int w_row = T::M + warp / T::WARPS_M * T::N_PAIRS * 16 + lane % 8 + lane / 16 * 8;
  const bf16* const w = stage + w_row * T::ROW + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < T::K; k += 16) {
    uint32_t a[T::M_TILES][4];
#pragma unroll
    for (int i = 0; i < T::M_TILES; ++i) ldmatrix_x4(a[i], x + i * 16 * T::ROW + k);
#pragma unroll
    for (int j = 0; j < T::N_PAIRS; ++j) {
      uint32_t b[4];
      ldmatrix_x4(b, w + j * 16 * T::ROW + k);
      const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
      for (int i = 0; i < T::M_TILES; ++i) {
        mma_16816(sums.of[i][2 * j], a[i], even);
        mma_16816(sums.of[i][2 * j + 1], a[i], odd);
      }
    }
  }
}

__device__ __forceinline__ void store_two(float* to, float a, float b) { store_vector(to, float2{a, b}); }
__device__ __forceinline__ void store_two(bf16* to, float a, float b) { store_vector(to, pack_bf16(a, b)); }

// `g` is a Gemm, or has its m, n, rows, bias and width.
template <class T, class Out, class Product>
__device__ __forceinline__ void write_sums(Out* out, const Sums<T>& sums, const Product& g, int m0, int n0) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const bool pairs = g.n % 2 == 0 && g.width() % 2 == 0 && reinterpret_cast<uintptr_t>(out) % (2 * sizeof(Out)) == 0;
#pragma unroll
  for (int i = 0; i < T::M_TILES; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = m0 + (warp % T::WARPS_M * T::M_TILES + i) * 16 + lane / 4 + 8 * r;
      if (row >= g.m) continue;
      Out* const to = out + static_cast<size_t>(g.rows.to(row)) * g.width();
#pragma unroll
      for (int j = 0; j < T::N_TILES; ++j) {
        const int column = n0 + (warp / T::WARPS_M * T::N_TILES + j) * 8 + lane % 4 * 2;
        float v[2] = {sums.of[i][j][2 * r], sums.of[i][j][2 * r + 1]};
#pragma unroll
        for (int c = 0; c < 2; ++c) if (g.bias && column + c < g.n) v[c] += g.bias[column + c];
        if (pairs && column < g.n) {
          store_two(to + column, v[0], v[1]);
        } else {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float one[1] = {v[c]};
            if (column + c < g.n) store_values(to + column + c, one);
          }
        }
      }
    }
}

// Tiles for few, some and many rows.
using Few = GemmShape<16, 32, 64, 1, 2, 6>;
using Some = GemmShape<64, 64, 64, 2, 2, 3>;
using Many = GemmShape<128, 128, 32, 2, 4, 4>;

// The tile whose first row and column are m0 and n0; `memory` is T::SMEM_BYTES of shared memory.
template <class T, class Out, class Rows>
__device__ __forceinline__ void gemm_tile(Out* out, const Gemm<Rows>& g, int m0, int n0, bf16* memory) {
  const int stages = (g.k + T::K - 1) / T::K;
  Sums<T> sums;
  sums.clear();
  for (int s = 0; s < T::STAGES - 1; ++s) {
    if (s < stages) load_stage<T>(memory + s * T::STAGE, g, m0, n0, s * T::K);
    cp_async_commit();
  }
  for (int s = 0; s < stages; ++s) {
    cp_async_wait<T::STAGES - 2>();
    __syncthreads();  // stage s is there, and nobody reads the one before any more
    const int next = s + T::STAGES - 1;
    if (next < stages) load_stage<T>(memory + next % T::STAGES * T::STAGE, g, m0, n0, next * T::K);
    cp_async_commit();
    multiply_stage(sums, memory + s % T::STAGES * T::STAGE);
  }
  write_sums<T>(out, sums, g, m0, n0);
}
