// A tile of out = x * w^T on tensor cores for quantised w: bf16 times small numbers, multi-stage asynchronous copies.
//
// Weights are not rounded: numbers are exact in bf16, a group's products are summed in float32, and its scale comes after.
// Invariant: every element is, group by group in ascending order of k, `sum = fma(scale, products of the group, sum)`, then
// with a minimum `sum = fma(min, sum of the group's x, sum)`; zeros behind the end of a group. Both products and sums of x
// are chains of m16n8k16. Where a row has one scale, groups' products are added up, and the sum is multiplied by it in the
// end. So an element's bits depend on its row of x and of w alone, whatever the tile.
#pragma once
#include "experts.h"
#include "gemm.h"
#include "quant.h"

template <class F_, int M_, int N_, int K_, int WARPS_M_, int WARPS_N_, int STAGES_> struct QuantShape {
  using F = F_;
  static constexpr int M = M_, N = N_, K = K_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
  static constexpr int THREADS = WARP_LANES * WARPS_M * WARPS_N;
  static constexpr int M_TILES = M / WARPS_M / 16, N_TILES = N / WARPS_N / 8;
  static constexpr int GROUPS = K / GROUP, W_BYTES = GROUPS * F::GROUP_BYTES;
  // Rows of a stage: x in bf16, w in bytes. Both have a little more, so that a warp's reads meet no bank twice.
  static constexpr int X_ROW = K + 8, W_ROW = W_BYTES + F::GROUP_BYTES;
  static constexpr int X_BYTES = M * X_ROW * 2, STAGE_BYTES = X_BYTES + N * W_ROW;
  // Records stay for several stages: as many as STAGES stages in a row can meet.
  static constexpr int RECORDS = F::OF_ROWS ? 0 : (2 * RECORD_K - 1 - K + STAGES * K) / RECORD_K;
  static constexpr int RECORDS_BYTES = N * F::MAX_RECORD_BYTES;
  static constexpr int SMEM_BYTES = STAGES * STAGE_BYTES + RECORDS * RECORDS_BYTES;
  static_assert(M_TILES > 0 && N_TILES > 0 && K % GROUP == 0 && RECORD_K % K == 0, "whole fragments, groups and records");
};
// Tiles for few, some and many rows; with few, a stage has 128 bytes of each row of w.
template <class F> using QuantFew = QuantShape<F, 16, 32, 1024 / F::BITS, 1, 4, F::BITS == 4 ? 5 : 6>;
template <class F> using QuantSome = QuantShape<F, 64, 64, 64, 2, 2, 4>;
template <class F> using QuantMany = QuantShape<F, 128, 64, 64, 2, 4, 3>;

template <class F, class Rows> struct QuantGemm {
  const bf16* x;      // [.., k]
  Packed<F> w;        // [n, k]
  const float* bias;  // [n] or null
  int m, n, k;
  Rows rows;
  bool vectors;       // whether rows of x can be copied 16 bytes at a time
  int stride;         // of rows of out
  __device__ __forceinline__ int width() const { return stride; }
};

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

// Where a record of each of the tile's rows of w stands.
template <class T> __device__ __forceinline__ unsigned char* records_of(unsigned char* memory, int record) {
  constexpr int SLOTS = T::F::OF_ROWS ? 1 : T::RECORDS;
  return memory + T::STAGES * T::STAGE_BYTES + record % SLOTS * T::RECORDS_BYTES;
}

// The columns [stage * T::K, (stage + 1) * T::K) of the tile's rows of x and w, and the records that begin there.
template <class T, class Rows>
__device__ __forceinline__ void load_quant_stage(unsigned char* memory, const QuantGemm<typename T::F, Rows>& g, int m0,
                                                 int n0, int stage) {
  using F = typename T::F;
  unsigned char* const to = memory + stage % T::STAGES * T::STAGE_BYTES;
  for (int chunk = threadIdx.x; chunk < T::M * (T::K / 8); chunk += T::THREADS) {
    const int i = chunk / (T::K / 8), at = chunk % (T::K / 8) * 8, row = m0 + i;
    const bool real = row < g.m;
    const size_t source = real ? g.rows.from(row) : 0;
    copy_eight(reinterpret_cast<bf16*>(to) + i * T::X_ROW + at, g.x + source * g.k, stage * T::K + at, g.k, real, g.vectors);
  }
  constexpr int CHUNKS = T::W_BYTES / 16, GROUP_CHUNKS = F::GROUP_BYTES / 16;
  for (int chunk = threadIdx.x; chunk < T::N * CHUNKS; chunk += T::THREADS) {
    const int i = chunk / CHUNKS, at = chunk % CHUNKS, group = stage * T::GROUPS + at / GROUP_CHUNKS;
    const bool real = n0 + i < g.n && group < g.w.row_groups;
    const uint8_t* const from = real ? g.w.group(n0 + i, group) + at % GROUP_CHUNKS * 16 : g.w.groups;
    cp_async16(to + T::X_BYTES + i * T::W_ROW + at * 16, from, real ? 16 : 0);
  }
  if (F::OF_ROWS || stage * T::K % RECORD_K) return;
  const int record = stage * T::K / RECORD_K, parts = record_bytes(g.w.kind) / 16;
  unsigned char* const slot = records_of<T>(memory, record);
  for (int chunk = threadIdx.x; chunk < T::N * parts; chunk += T::THREADS) {
    const int i = chunk / parts, part = chunk % parts * 16;
    const bool real = n0 + i < g.n;
    cp_async16(slot + i * F::MAX_RECORD_BYTES + part, real ? g.w.record(n0 + i, record) + part : g.w.groups, real ? 16 : 0);
  }
}

// sum += products, each column times its factor.
__device__ __forceinline__ void add_products(float (&sum)[4], const float (&products)[4], float even, float odd) {
  sum[0] = fmaf(even, products[0], sum[0]);
  sum[1] = fmaf(odd, products[1], sum[1]);
  sum[2] = fmaf(even, products[2], sum[2]);
  sum[3] = fmaf(odd, products[3], sum[3]);
}

// What a warp has of a stage, from its lane's first value on.
template <class T> struct WarpStage {
  const bf16* x;
  const unsigned char *w, *records;
  __device__ __forceinline__ WarpStage(const unsigned char* stage, const unsigned char* tile_records) {
    const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    const int column = warp / T::WARPS_M * T::N_TILES * 8;
    x = reinterpret_cast<const bf16*>(stage) + (warp % T::WARPS_M * T::M_TILES * 16 + lane % 16) * T::X_ROW + lane / 16 * 8;
    w = stage + T::X_BYTES + (column + lane / 4) * T::W_ROW;
    records = tile_records + (column + lane % 4 * 2) * T::F::MAX_RECORD_BYTES;
  }
};

// Group `group` of the stage, number `index` of its record.
template <class T>
__device__ __forceinline__ void multiply_group(Sums<T>& sums, const WarpStage<T>& stage, int group, int index,
                                               const RecordReader& reader) {
  using F = typename T::F;
  uint32_t a[2][T::M_TILES][4];
  float x_sums[T::M_TILES][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < T::M_TILES; ++i) {
      ldmatrix_x4(a[half][i], stage.x + i * 16 * T::X_ROW + group * GROUP + half * 16);
      const uint32_t ones[2] = {0x3f803f80u, 0x3f803f80u};
      if constexpr (F::HAS_MIN) mma_16816(x_sums[i], a[half][i], ones);
    }
#pragma unroll
  for (int j = 0; j < T::N_TILES; ++j) {
    uint32_t b[4];
    load_numbers<F>(b, stage.w + j * 8 * T::W_ROW + group * F::GROUP_BYTES, threadIdx.x % 4);
    const unsigned char* const record = stage.records + j * 8 * F::MAX_RECORD_BYTES;
    float products[T::M_TILES][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t numbers[2] = {b[2 * half], b[2 * half + 1]};
#pragma unroll
      for (int i = 0; i < T::M_TILES; ++i) mma_16816(products[i], a[half][i], numbers);
      if (half == 0 && !F::HALVED) continue;
      if constexpr (F::OF_ROWS) {
#pragma unroll
        for (int i = 0; i < T::M_TILES; ++i) add_products(sums.of[i][j], products[i], 1.f, 1.f);
        continue;
      }
      const Range even = range_of<F>(record, index, half, reader);
      const Range odd = range_of<F>(record + F::MAX_RECORD_BYTES, index, half, reader);
#pragma unroll
      for (int i = 0; i < T::M_TILES; ++i) {
        add_products(sums.of[i][j], products[i], even.scale, odd.scale);
        if (half == 0) products[i][0] = products[i][1] = products[i][2] = products[i][3] = 0.f;
        // All columns have the same sums.
        const float of_x[4] = {x_sums[i][0], x_sums[i][0], x_sums[i][2], x_sums[i][2]};
        if constexpr (F::HAS_MIN) add_products(sums.of[i][j], of_x, even.min, odd.min);
      }
    }
  }
}

// Each column times the scale of its row of w.
template <class T> __device__ __forceinline__ void scale_sums(Sums<T>& sums, const Packed<typename T::F>& w, int n, int n0) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
#pragma unroll
  for (int j = 0; j < T::N_TILES; ++j) {
    const int column = n0 + (warp / T::WARPS_M * T::N_TILES + j) * 8 + lane % 4 * 2;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float scale = column + c < n ? w.scale(column + c) : 0.f;
#pragma unroll
      for (int i = 0; i < T::M_TILES; ++i) {
        sums.of[i][j][c] *= scale;
        sums.of[i][j][2 + c] *= scale;
      }
    }
  }
}

// The tile whose first row and column are m0 and n0; `memory` is T::SMEM_BYTES of shared memory.
template <class T, class Out, class Rows>
__device__ __forceinline__ void quant_tile(Out* out, const QuantGemm<typename T::F, Rows>& g, int m0, int n0,
                                           unsigned char* memory) {
  const int stages = (g.k + T::K - 1) / T::K;
  const RecordReader reader(g.w.kind);
  Sums<T> sums;
  sums.clear();
  for (int s = 0; s < T::STAGES - 1; ++s) {
    if (s < stages) load_quant_stage<T>(memory, g, m0, n0, s);
    cp_async_commit();
  }
  for (int s = 0; s < stages; ++s) {
    cp_async_wait<T::STAGES - 2>();
    __syncthreads();  // stage s is there, and nobody reads the one before any more
    if (s + T::STAGES - 1 < stages) load_quant_stage<T>(memory, g, m0, n0, s + T::STAGES - 1);
    cp_async_commit();
    const int first = s * T::GROUPS, record = first / RECORD_GROUPS, index = first % RECORD_GROUPS;
    const WarpStage<T> stage(memory + s % T::STAGES * T::STAGE_BYTES, records_of<T>(memory, record));
    const int count = min(T::GROUPS, g.w.row_groups - first);
    // With few rows groups are short, and several are computed at a time.
    if (T::M_TILES == 1 && count == T::GROUPS) {
#pragma unroll 4
      for (int group = 0; group < T::GROUPS; ++group) multiply_group(sums, stage, group, index + group, reader);
    } else {
#pragma unroll 1
      for (int group = 0; group < count; ++group) multiply_group(sums, stage, group, index + group, reader);
    }
  }
  if constexpr (T::F::OF_ROWS) scale_sums(sums, g.w, g.n, n0);
  write_sums<T>(out, sums, g, m0, n0);
}

// out = x * w^T (+ bias) in the tiles of a shape, rows of out `stride` apart; the same for each expert, see moe.cu.
#define QUANT_GEMM(name, Shape, Out)                                                                                    \
  KERNEL(Shape::THREADS, name, Out* out, const bf16* x, const uint8_t* w, const float* bias, int m, int n, int k,     \
         int records, int stride) {                                                                                   \
    DYNAMIC_SHARED(unsigned char, memory);                                                                            \
    const QuantGemm<Shape::F, SameRows> g{x, {w, n, k, records}, bias, m, n, k, SameRows(), vectors_fit(k, x), stride}; \
    quant_tile<Shape>(out, g, blockIdx.x * Shape::M, blockIdx.y * Shape::N, memory);                                  \
  }
#define QUANT_EXPERTS(name, Shape, GATHERS)                                                                             \
  KERNEL(Shape::THREADS, name, bf16* out, const bf16* x, const uint8_t* const* w, const uint32_t* order,              \
         const uint32_t* offsets, int per_row, int n, int k, int records, int stride) {                               \
    DYNAMIC_SHARED(unsigned char, memory);                                                                            \
    const int start = offsets[blockIdx.z], rows = static_cast<int>(offsets[blockIdx.z + 1]) - start;                  \
    const int first = blockIdx.x * Shape::M;                                                                          \
    if (first >= rows) return;                                                                                        \
    const QuantGemm<Shape::F, ExpertRows> g{x, {w[blockIdx.z], n, k, records}, nullptr, rows, n, k,                   \
                                            {order + start, start, per_row, GATHERS}, vectors_fit(k, x), stride};     \
    quant_tile<Shape>(out, g, first, blockIdx.y * Shape::N, memory);                                                  \
  }

// out[row] = table[tokens[row]] * scale; `n` rows of the table.
template <class F>
__device__ __forceinline__ void embed_quant(float* out, const Packed<F>& table, int row, float scale, int width) {
  const RecordReader reader(table.kind);
  for (int i = blockIdx.y * ROW_THREADS + threadIdx.x; i < 4 * table.row_groups; i += gridDim.y * ROW_THREADS) {
    const int group = i / 4, quarter = i % 4;
    uint32_t pairs[4];
    load_numbers<F>(pairs, table.group(row, group), quarter);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const Range range =
          range_of<F>(table.record(row, group / RECORD_GROUPS), group % RECORD_GROUPS, p / 2, reader);
      float v[2];
      unpack_bf16(pairs[p], v[0], v[1]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = group * GROUP + p * 8 + quarter * 2 + c;
        if (at < width) out[at] = fmaf(range.scale, v[c], range.min) * scale;
      }
    }
  }
}
#define QUANT_EMBED(name, F)                                                                                            \
  KERNEL(ROW_THREADS, name, float* out, const uint8_t* table, const uint32_t* tokens, float scale, int n, int width,   \
         int records) {                                                                                               \
    embed_quant<F>(out + static_cast<size_t>(blockIdx.x) * width, {table, n, width, records}, tokens[blockIdx.x],      \
                   scale, width);                                                                                     \
  }

// All kernels of a format.
#define QUANT_KERNELS(format, F)                                    \
  QUANT_GEMM(gemm_##format##_m16_bf16, QuantFew<F>, bf16)           \
  QUANT_GEMM(gemm_##format##_m16_f32, QuantFew<F>, float)           \
  QUANT_GEMM(gemm_##format##_m64_bf16, QuantSome<F>, bf16)          \
  QUANT_GEMM(gemm_##format##_m64_f32, QuantSome<F>, float)          \
  QUANT_GEMM(gemm_##format##_m128_bf16, QuantMany<F>, bf16)         \
  QUANT_GEMM(gemm_##format##_m128_f32, QuantMany<F>, float)         \
  QUANT_EXPERTS(moe_gather_gemm_##format##_m16, QuantFew<F>, true)  \
  QUANT_EXPERTS(moe_gather_gemm_##format##_m64, QuantSome<F>, true) \
  QUANT_EXPERTS(moe_scatter_gemm_##format##_m16, QuantFew<F>, false) \
  QUANT_EXPERTS(moe_scatter_gemm_##format##_m64, QuantSome<F>, false) \
  QUANT_EMBED(embed_##format, F)
