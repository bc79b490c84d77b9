// Root-mean-square norms of rows (Zhang and Sennrich 2019), alone and fused with the residual addition before them.
//
// One block per row. The order of summation depends on the width alone, so a row's bits do not depend on other rows.
#include "values.h"

// 1 / sqrt(mean(x^2) + eps) from this thread's part of the sum of squares.
__device__ __forceinline__ float inverse_rms(float squares, int width, float eps) {
  return rsqrtf(block_sum(squares) / width + eps);
}

// Passes of a row whose values a thread keeps from the sum to the result; what is wider is read again.
constexpr int HELD = 4;
// Calls f(pass, at) with this thread's places of a row of `width` values; pass is below HELD, and known when compiling,
// where values are held, and HELD behind them.
template <int N, class F> __device__ __forceinline__ void for_passes(int width, F f) {
#pragma unroll
  for (int pass = 0; pass < HELD; ++pass)
    if (const int i = (pass * ROW_THREADS + threadIdx.x) * N; i < width) f(pass, i);
  for (int i = (HELD * ROW_THREADS + threadIdx.x) * N; i < width; i += ROW_THREADS * N) f(HELD, i);
}
template <int N> struct Held {
  float of[HELD][N];
  __device__ __forceinline__ void keep(int pass, const float (&v)[N]) {
    if (pass >= HELD) return;
#pragma unroll
    for (int j = 0; j < N; ++j) of[pass][j] = v[j];
  }
  template <class In> __device__ __forceinline__ void take(int pass, const In* x, float (&v)[N]) const {
    if (pass >= HELD) return load_values(x, v);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = of[pass][j];
  }
};

// `out = x / rms(x) * weight`; `out` may be `x`: each thread reads a value before it writes it.
template <int N, class In, class Out>
__device__ __forceinline__ void rms_norm(Out* out, const In* x, const float* weight, float eps, int width) {
  float squares = 0.f;
  Held<N> held;
  for_passes<N>(width, [&](int pass, int i) {
    float v[N];
    load_values(x + i, v);
#pragma unroll
    for (int j = 0; j < N; ++j) squares += v[j] * v[j];
    held.keep(pass, v);
  });
  const float scale = inverse_rms(squares, width, eps);
  for_passes<N>(width, [&](int pass, int i) {
    float v[N], w[N];
    held.take(pass, x + i, v);
    load_values(weight + i, w);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = v[j] * scale * w[j];
    store_values(out + i, v);
  });
}

template <class In, class Out>
__device__ __forceinline__ void rms_norm_row(Out* out, const In* x, const float* weight, float eps, int width) {
  const size_t start = static_cast<size_t>(blockIdx.x) * width;
  if (vectors_fit(width, out, x, weight)) rms_norm<VECTOR>(out + start, x + start, weight, eps, width);
  else rms_norm<1>(out + start, x + start, weight, eps, width);
}

// `stream += delta * scale`, then `normed = stream / rms(stream) * weight`.
template <int N, class Delta>
__device__ __forceinline__ void add_scaled_rms_norm(float* stream, bf16* normed, const Delta* delta, float scale,
                                                    const float* weight, float eps, int width) {
  float squares = 0.f;
  Held<N> held;
  for_passes<N>(width, [&](int pass, int i) {
    float v[N], d[N];
    load_values(stream + i, v);
    load_values(delta + i, d);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      v[j] += d[j] * scale;
      squares += v[j] * v[j];
    }
    store_values(stream + i, v);
    held.keep(pass, v);
  });
  const float inverse = inverse_rms(squares, width, eps);
  for_passes<N>(width, [&](int pass, int i) {
    float v[N], w[N];
    held.take(pass, stream + i, v);  // this thread's own
    load_values(weight + i, w);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = v[j] * inverse * w[j];
    store_values(normed + i, v);
  });
}

template <class Delta>
__device__ __forceinline__ void add_scaled_rms_norm_row(float* stream, bf16* normed, const Delta* delta, float scale,
                                                        const float* weight, float eps, int width) {
  const size_t start = static_cast<size_t>(blockIdx.x) * width;
  stream += start;
  normed += start;
  delta += start;
  if (vectors_fit(width, stream, normed, delta, weight))
    add_scaled_rms_norm<VECTOR>(stream, normed, delta, scale, weight, eps, width);
  else add_scaled_rms_norm<1>(stream, normed, delta, scale, weight, eps, width);
}

KERNEL(ROW_THREADS, rms_norm_f32_bf16, bf16* out, const float* x, const float* weight, float eps, int width) {
  rms_norm_row(out, x, weight, eps, width);
}
KERNEL(ROW_THREADS, rms_norm_bf16_bf16, bf16* out, const bf16* x, const float* weight, float eps, int width) {
  rms_norm_row(out, x, weight, eps, width);
}
KERNEL(ROW_THREADS, rms_norm_f32_f32, float* out, const float* x, const float* weight, float eps, int width) {
  rms_norm_row(out, x, weight, eps, width);
}
KERNEL(ROW_THREADS, add_scaled_rms_norm_bf16, float* stream, bf16* normed, const bf16* delta, float scale,
       const float* weight, float eps, int width) {
  add_scaled_rms_norm_row(stream, normed, delta, scale, weight, eps, width);
}
KERNEL(ROW_THREADS, add_scaled_rms_norm_f32, float* stream, bf16* normed, const float* delta, float scale,
       const float* weight, float eps, int width) {
  add_scaled_rms_norm_row(stream, normed, delta, scale, weight, eps, width);
}
