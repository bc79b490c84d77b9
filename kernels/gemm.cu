// out = x * w^T (+ bias), in tiles for many rows, for some, and for few; all give an element the same bits.
//
// Grid: tiles of rows, tiles of columns: neighbouring blocks read the same weights.
#include "gemm.h"

#define INSTANCE(name, Shape, Out)                                                                                     \
  KERNEL(Shape::THREADS, name, Out* out, const bf16* x, const bf16* w, const float* bias, int m, int n, int k) {      \
    DYNAMIC_SHARED(bf16, memory);                                                                                     \
    const Gemm<SameRows> g{x, w, bias, m, n, k, SameRows(), copies_fit(x, w, k)};                                     \
    gemm_tile<Shape>(out, g, blockIdx.x * Shape::M, blockIdx.y * Shape::N, memory);                                   \
  }
INSTANCE(gemm_m16_bf16, Few, bf16)
INSTANCE(gemm_m16_f32, Few, float)
INSTANCE(gemm_m64_bf16, Some, bf16)
INSTANCE(gemm_m64_f32, Some, float)
INSTANCE(gemm_m64_n128_bf16, SomeWide, bf16)
INSTANCE(gemm_m64_n128_f32, SomeWide, float)
INSTANCE(gemm_m128_bf16, Many, bf16)
INSTANCE(gemm_m128_f32, Many, float)
