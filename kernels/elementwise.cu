// Arithmetic on single values: residual additions, gated activations, the end of logits.
#include "values.h"

constexpr float LOG2_E = 1.4426950408889634f;

template <int N, class Delta>
__device__ __forceinline__ void add_scaled(float* x, const Delta* delta, float scale, int from, int count) {
  const size_t step = static_cast<size_t>(gridDim.x) * ROW_THREADS * N;
  size_t i = from + (static_cast<size_t>(blockIdx.x) * ROW_THREADS + threadIdx.x) * N;
  for (; i < static_cast<size_t>(count); i += step) {
    float v[N], d[N];
    load_values(x + i, v);
    load_values(delta + i, d);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] += d[j] * scale;
    store_values(x + i, v);
  }
}
template <class Delta>
__device__ __forceinline__ void add_scaled_all(float* x, const Delta* delta, float scale, int count) {
  const int whole = aligned16(x) && aligned16(delta) ? count / VECTOR * VECTOR : 0;
  add_scaled<VECTOR>(x, delta, scale, 0, whole);
  add_scaled<1>(x, delta, scale, whole, count);
}
KERNEL(ROW_THREADS, add_scaled_f32, float* x, const float* delta, float scale, int count) {
  add_scaled_all(x, delta, scale, count);
}
KERNEL(ROW_THREADS, add_scaled_bf16, float* x, const bf16* delta, float scale, int count) {
  add_scaled_all(x, delta, scale, count);
}

// x / (1 + exp(-y)): x times the logistic function of y.
__device__ __forceinline__ float times_logistic(float x, float y) { return __fdividef(x, 1.f + fast_exp2(-LOG2_E * y)); }
struct Silu {
  static __device__ __forceinline__ float of(float x) { return times_logistic(x, x); }
};
// GELU's tanh form (Hendrycks and Gimpel 2016), with (1 + tanh(u)) / 2 as the logistic function of 2u.
struct GeluTanh {
  static __device__ __forceinline__ float of(float x) {
    return times_logistic(x, 2.f * 0.7978845608f * (x + 0.044715f * x * x * x));
  }
};

template <int N, class Activation>
__device__ __forceinline__ void gate_row(bf16* out, const bf16* gate, const bf16* up, int inter) {
  for (int i = (blockIdx.y * ROW_THREADS + threadIdx.x) * N; i < inter; i += gridDim.y * ROW_THREADS * N) {
    float g[N], u[N];
    load_values(gate + i, g);
    load_values(up + i, u);
#pragma unroll
    for (int j = 0; j < N; ++j) g[j] = Activation::of(g[j]) * u[j];
    store_values(out + i, g);
  }
}
template <class Activation>
__device__ __forceinline__ void gated_activation(bf16* out, const bf16* gate_up, int inter) {
  const bf16* gate = gate_up + static_cast<size_t>(blockIdx.x) * 2 * inter;
  out += static_cast<size_t>(blockIdx.x) * inter;
  if (vectors_fit(inter, out, gate)) gate_row<VECTOR, Activation>(out, gate, gate + inter, inter);
  else gate_row<1, Activation>(out, gate, gate + inter, inter);
}
KERNEL(ROW_THREADS, gated_activation_silu, bf16* out, const bf16* gate_up, int inter) {
  gated_activation<Silu>(out, gate_up, inter);
}
KERNEL(ROW_THREADS, gated_activation_gelu_tanh, bf16* out, const bf16* gate_up, int inter) {
  gated_activation<GeluTanh>(out, gate_up, inter);
}

// `logits * scale`, then `softcap * tanh(logits / softcap)` where softcap is above zero.
KERNEL(ROW_THREADS, finish_logits, float* logits, float scale, float softcap, int count) {
  const size_t step = static_cast<size_t>(gridDim.x) * ROW_THREADS;
  for (size_t i = static_cast<size_t>(blockIdx.x) * ROW_THREADS + threadIdx.x; i < static_cast<size_t>(count); i += step) {
    const float x = logits[i] * scale;
    logits[i] = softcap > 0.f ? softcap * tanhf(x / softcap) : x;
  }
}
