// A tile of out = x * w^T on tensor cores: bf16 in, float32 sums, multi-stage asynchronous copies.
//
// Invariant: every element is one chain of m16n8k16 products in ascending order of k, zeros behind the end. So its bits
// depend on its row of x and of w alone: not on the tile's shape, the number of rows or the kernel that was chosen.
#pragma once
#include "values.h"

template <int M_, int N_, int K_, int WARPS_M_, int WARPS_N_, int STAGES_> struct GemmShape {
  static constexpr int M = M_, N = N_, K = K_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
  static constexpr int THREADS = WARP_LANES * WARPS_M * WARPS_N;
  // Rows of a tile stand in lines of 128 bytes or more, each with 16 bytes behind it: neither the eight rows of an ldmatrix
  // nor the 128 bytes that eight threads copy meet a bank twice.
  static constexpr int LINE_ROWS = K < 64 ? 64 / K : 1, LINE = LINE_ROWS * K + 8;
  static constexpr int ROWS_16 = 16 / LINE_ROWS * LINE, STAGE = (M + N) / LINE_ROWS * LINE;
  static constexpr int SMEM_BYTES = STAGES * STAGE * 2;
  static constexpr int PASS_SIZE = THREADS / (K / 8) / LINE_ROWS * LINE;
  static __device__ __forceinline__ int place(int row) { return row / LINE_ROWS * LINE + row % LINE_ROWS * K; }
  static constexpr int M_TILES = M / WARPS_M / 16, N_PAIRS = N / WARPS_N / 16, N_TILES = 2 * N_PAIRS;
  static constexpr int STEPS = K / 16;
  // The block copies PASS rows at a time; a thread has the same eight columns in every pass.
  static constexpr int PASS = THREADS / (K / 8), X_PASSES = M / PASS, PASSES = X_PASSES + N / PASS;
  static_assert(M_TILES > 0 && N_PAIRS > 0 && STEPS >= 2, "a warp has whole fragments, and steps to go ahead by");
  static_assert(M % PASS == 0 && N % PASS == 0 && THREADS % (K / 8) == 0 && PASS % LINE_ROWS == 0, "passes are whole");
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

// What a thread copies of each stage: eight columns of a row of x or w in every pass. Found once, so that a copy costs the
// inner loop an addition and a comparison.
template <class T> struct Sources {
  const bf16* rows[T::PASSES];  // at this thread's columns of the next stage
  uint32_t real;                // by pass: whether there is such a row
  int left, to;                 // of a row from there on; this thread's place in a stage
  template <class Rows> __device__ __forceinline__ Sources(const Gemm<Rows>& g, int m0, int n0) : real(0) {
    const int first = threadIdx.x / (T::K / 8);
    const int column = threadIdx.x % (T::K / 8) * 8;
    left = g.k - column;
    to = T::place(first) + column;
#pragma unroll
    for (int pass = 0; pass < T::PASSES; ++pass) {
      const bool of_x = pass < T::X_PASSES;
      const int row = (of_x ? m0 + pass * T::PASS : n0 + (pass - T::X_PASSES) * T::PASS) + first;
      const bool is_real = row < (of_x ? g.m : g.n);
      const size_t source = !is_real ? 0 : of_x ? g.rows.from(row) : row;
      rows[pass] = (of_x ? g.x : g.w) + source * g.k + column;
      real |= static_cast<uint32_t>(is_real) << pass;
    }
  }
  // The next stage's passes [from, end), in order; zeros where there are no values, whose addresses are not read.
  __device__ __forceinline__ void copy(bf16* stage, int from, int end) {
#pragma unroll
    for (int pass = 0; pass < T::PASSES; ++pass)
      if (pass >= from && pass < end) {
        cp_async16(stage + pass * T::PASS_SIZE + to, rows[pass], real >> pass & 1u && left > 0 ? 16 : 0);
        rows[pass] += T::K;
      }
    if (end == T::PASSES) left -= T::K;
  }
};

// A stage value by value, where rows cannot be copied in vectors.
template <class T, class Rows>
__device__ __forceinline__ void copy_singles(bf16* stage, const Gemm<Rows>& g, int m0, int n0, int k0) {
#pragma unroll 1
  for (int i = threadIdx.x; i < (T::M + T::N) * T::K; i += T::THREADS) {
    const int in_tile = i / T::K, column = k0 + i % T::K;
    const bool of_x = in_tile < T::M;
    const int row = of_x ? m0 + in_tile : n0 + in_tile - T::M;
    const bool real = row < (of_x ? g.m : g.n) && column < g.k;
    const size_t source = !real ? 0 : of_x ? g.rows.from(row) : row;
    stage[T::place(in_tile) + i % T::K] = real ? (of_x ? g.x : g.w)[source * g.k + column] : bf16{0};
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

// A warp's operands of sixteen columns.
template <class T> struct Fragments {
  uint32_t x[T::M_TILES][4], w[T::N_PAIRS][4];
  // From this lane's row and column of x and w in a stage, `step` times sixteen columns on.
  __device__ __forceinline__ void load(const bf16* x_at, const bf16* w_at, int step) {
#pragma unroll
    for (int i = 0; i < T::M_TILES; ++i) ldmatrix_x4(x[i], x_at + i * T::ROWS_16 + step * 16);
#pragma unroll
    for (int j = 0; j < T::N_PAIRS; ++j) ldmatrix_x4(w[j], w_at + j * T::ROWS_16 + step * 16);
  }
  __device__ __forceinline__ void multiply(Sums<T>& sums) const {
#pragma unroll
    for (int j = 0; j < T::N_PAIRS; ++j) {
      const uint32_t even[2] = {w[j][0], w[j][1]}, odd[2] = {w[j][2], w[j][3]};
#pragma unroll
      for (int i = 0; i < T::M_TILES; ++i) {
        mma_16816(sums.of[i][2 * j], x[i], even);
        mma_16816(sums.of[i][2 * j + 1], x[i], odd);
      }
    }
  }
};

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

// Tiles for few, some and many rows; for some rows of many columns, where there are blocks enough of twice as many, which
// fetch the rows half as often.
using Few = GemmShape<16, 32, 128, 1, 2, 7>;
using Some = GemmShape<64, 64, 64, 2, 2, 5>;
using SomeWide = GemmShape<64, 128, 64, 1, 4, 3>;
using Many = GemmShape<128, 128, 32, 2, 2, 5>;

// Operands are fetched a step ahead of their products, over the borders of stages too, and copies lie between the steps: so
// a chain of products waits for neither.
template <class T, bool VECTORS, class Rows>
__device__ __forceinline__ void multiply_tile(Sums<T>& sums, const Gemm<Rows>& g, int m0, int n0, bf16* memory) {
  const int stages = (g.k + T::K - 1) / T::K, lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const bf16* x = memory + T::place(warp % T::WARPS_M * T::M_TILES * 16 + lane % 16) + lane / 16 * 8;
  const int w_row = T::M + warp / T::WARPS_M * T::N_PAIRS * 16 + lane % 8 + lane / 16 * 8;
  const bf16* w = memory + T::place(w_row) + lane / 8 % 2 * 8;
  Sources<T> sources(g, m0, n0);
#pragma unroll
  for (int s = 0; s < T::STAGES - 1; ++s) {
    bf16* const stage = memory + s * T::STAGE;
    if (s >= stages) {}
    else if constexpr (VECTORS) sources.copy(stage, 0, T::PASSES);
    else copy_singles<T>(stage, g, m0, n0, s * T::K);
    cp_async_commit();
  }
  cp_async_wait<T::STAGES - 2>();
  __syncthreads();  // the first stage is there
  Fragments<T> fragments[2];
  fragments[0].load(x, w, 0);
  int slot = 0;                                      // of the current stage
  bf16* unused = memory + (T::STAGES - 1) * T::STAGE;  // the stage before it
  for (int s = 0; s < stages; ++s) {
    const int next = s + T::STAGES - 1;
    if (!VECTORS && next < stages) copy_singles<T>(unused, g, m0, n0, next * T::K);
#pragma unroll
    for (int step = 0; step < T::STEPS; ++step) {
      constexpr int LAST = T::STEPS - 1;
      if (step == LAST) {
        cp_async_commit();
        cp_async_wait<T::STAGES - 2>();
        __syncthreads();  // the next stage is there, and nobody reads this one any more
        const int ahead = ++slot == T::STAGES ? -(T::STAGES - 1) * T::STAGE : T::STAGE;
        unused = memory + (slot - 1) * T::STAGE;
        if (slot == T::STAGES) slot = 0;
        x += ahead;
        w += ahead;
      }
      // Behind the last stage there is an old one, which nobody multiplies.
      fragments[(step + 1) % 2].load(x, w, (step + 1) % T::STEPS);
      if (VECTORS && step < LAST && next < stages)
        sources.copy(unused, step * T::PASSES / LAST, (step + 1) * T::PASSES / LAST);
      fragments[step % 2].multiply(sums);
    }
  }
}

// The tile whose first row and column are m0 and n0; `memory` is T::SMEM_BYTES of shared memory.
template <class T, class Out, class Rows>
__device__ __forceinline__ void gemm_tile(Out* out, const Gemm<Rows>& g, int m0, int n0, bf16* memory) {
  Sums<T> sums;
  sums.clear();
  if (g.vectors) multiply_tile<T, true>(sums, g, m0, n0, memory);
  else multiply_tile<T, false>(sums, g, m0, n0, memory);
  write_sums<T>(out, sums, g, m0, n0);
}
