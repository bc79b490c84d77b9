// Products with weights in FP8, and their embedding; and rows of x in FP8, for products of the tensor cores' own.
#include "gemm_quant.h"

QUANT_KERNELS(fp8, Fp8)

// A row as weights in FP8 stand: [ceil(width / 32)] groups in `out`, zeros behind the end, and its scale. What is not finite
// makes the scale NaN. Grid: rows.
KERNEL(ROW_THREADS, to_fp8, uint8_t* out, float* scales, const bf16* x, int width) {
  const bf16* const row = x + static_cast<size_t>(blockIdx.x) * width;
  const int groups = (width + GROUP - 1) / GROUP;
  uint8_t* const to = out + static_cast<size_t>(blockIdx.x) * groups * GROUP;
  const bool in_pairs = width % 2 == 0 && reinterpret_cast<uintptr_t>(x) % 4 == 0;
  // Pair p, of two values, of quarter i % 4 of group i / 4: they stand eight apart. Zeros behind the end.
  const auto load_pair = [&](int i, int p, float(&v)[2]) {
    const int at = i / 4 * GROUP + i % 4 * 2 + p * 8;
    if (in_pairs && at < width) return unpack_bf16(load_vector<uint32_t>(row + at), v[0], v[1]);
    for (int c = 0; c < 2; ++c) v[c] = at + c < width ? bf2f(row[at + c]) : 0.f;
  };
  float largest = 0.f, poison = 0.f, v[2];
  for (int i = threadIdx.x; i < 4 * groups; i += ROW_THREADS)
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      load_pair(i, p, v);
      largest = fmaxf(largest, fmaxf(fabsf(v[0]), fabsf(v[1])));
      poison += v[0] * 0.f + v[1] * 0.f;
    }
  largest = block_largest(largest);
  poison = block_sum(poison);
  const float inverse = largest > 1e-30f && poison == 0.f ? LARGEST_FP8 / largest : 0.f;
  if (threadIdx.x == 0) scales[blockIdx.x] = largest / LARGEST_FP8 + poison;
  for (int i = threadIdx.x; i < 4 * groups; i += ROW_THREADS) {
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      load_pair(i, p, v);
#pragma unroll
      for (int c = 0; c < 2; ++c)
        words[p / 2] |= static_cast<uint32_t>(encode_fp8(inverse > 0.f ? v[c] * inverse : 0.f)) << (p % 2 + 2 * c) * 8;
    }
    store_vector(to + i * 8, uint2{words[0], words[1]});
  }
}
