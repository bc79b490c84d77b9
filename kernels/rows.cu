// Rows that are moved, added or converted: embeddings, gathered rows, conversions, biases, copied KV blocks.
//
// Grid x is the row, or chunks of a flat array; a chunk of blocks in y shares a row's width. Any number of blocks that is
// not zero computes the same.
#include "values.h"

// Calls f with each start of N values that this thread has of `count` which the blocks along an axis share.
template <int N, class F> __device__ __forceinline__ void for_each(int count, int block, int num_blocks, F f) {
  const size_t step = static_cast<size_t>(num_blocks) * ROW_THREADS * N;
  for (size_t i = (static_cast<size_t>(block) * ROW_THREADS + threadIdx.x) * N; i < static_cast<size_t>(count); i += step) f(i);
}

template <int N, class In, class Out>
__device__ __forceinline__ void scale_row(Out* out, const In* x, float scale, int width) {
  for_each<N>(width, blockIdx.y, gridDim.y, [&](size_t i) {
    float v[N];
    load_values(x + i, v);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] *= scale;
    store_values(out + i, v);
  });
}

KERNEL(ROW_THREADS, embed, float* out, const bf16* table, const uint32_t* tokens, float scale, int width) {
  out += static_cast<size_t>(blockIdx.x) * width;
  table += static_cast<size_t>(tokens[blockIdx.x]) * width;
  if (vectors_fit(width, out, table)) scale_row<VECTOR>(out, table, scale, width);
  else scale_row<1>(out, table, scale, width);
}

// The same of one type: words of 16 bytes, whatever they are.
template <class T> __device__ __forceinline__ void copy_row(T* out, const T* x, uint32_t from, int width) {
  constexpr int WORD = 16 / sizeof(T);
  out += static_cast<size_t>(blockIdx.x) * width;
  x += static_cast<size_t>(from) * width;
  if (width % WORD == 0 && aligned16(out) && aligned16(x))
    for_each<WORD>(width, blockIdx.y, gridDim.y, [&](size_t i) { store_vector(out + i, load_vector<uint4>(x + i)); });
  else for_each<1>(width, blockIdx.y, gridDim.y, [&](size_t i) { out[i] = x[i]; });
}
KERNEL(ROW_THREADS, gather_rows_f32, float* out, const float* x, const uint32_t* rows, int width) {
  copy_row(out, x, rows[blockIdx.x], width);
}
KERNEL(ROW_THREADS, gather_rows_bf16, bf16* out, const bf16* x, const uint32_t* rows, int width) {
  copy_row(out, x, rows[blockIdx.x], width);
}

template <int N, class In, class Out>
__device__ __forceinline__ void convert(Out* out, const In* x, int from, int count) {
  for_each<N>(count - from, blockIdx.x, gridDim.x, [&](size_t i) {
    float v[N];
    load_values(x + from + i, v);
    store_values(out + from + i, v);
  });
}
template <class In, class Out> __device__ __forceinline__ void convert_all(Out* out, const In* x, int count) {
  const int whole = aligned16(out) && aligned16(x) ? count / VECTOR * VECTOR : 0;
  convert<VECTOR>(out, x, 0, whole);
  convert<1>(out, x, whole, count);
}
KERNEL(ROW_THREADS, to_bf16, bf16* out, const float* x, int count) { convert_all(out, x, count); }
KERNEL(ROW_THREADS, to_f32, float* out, const bf16* x, int count) { convert_all(out, x, count); }

template <int N, class T> __device__ __forceinline__ void add_bias(T* x, const float* bias, int width) {
  for_each<N>(width, blockIdx.y, gridDim.y, [&](size_t i) {
    float v[N], b[N];
    load_values(x + i, v);
    load_values(bias + i, b);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] += b[j];
    store_values(x + i, v);
  });
}
template <class T> __device__ __forceinline__ void add_bias_row(T* x, const float* bias, int width) {
  x += static_cast<size_t>(blockIdx.x) * width;
  if (vectors_fit(width, x, bias)) add_bias<VECTOR>(x, bias, width);
  else add_bias<1>(x, bias, width);
}
KERNEL(ROW_THREADS, add_bias_f32, float* x, const float* bias, int width) { add_bias_row(x, bias, width); }
KERNEL(ROW_THREADS, add_bias_bf16, bf16* x, const float* bias, int width) { add_bias_row(x, bias, width); }

// Copies blocks of `block_bytes` (a multiple of 16) in each of the regions, pair after pair: a pair may read what one
// before it wrote, so every thread goes through all pairs at its own offsets. Grid: chunks of a block, regions.
KERNEL(ROW_THREADS, copy_blocks, uint8_t* const* regions, const uint32_t* pairs, int num_pairs, int block_bytes) {
  uint8_t* const region = regions[blockIdx.y];
  for (int i = (blockIdx.x * ROW_THREADS + threadIdx.x) * 16; i < block_bytes; i += gridDim.x * ROW_THREADS * 16)
    for (int pair = 0; pair < num_pairs; ++pair) {
      const uint8_t* from = region + static_cast<size_t>(pairs[2 * pair]) * block_bytes;
      uint8_t* to = region + static_cast<size_t>(pairs[2 * pair + 1]) * block_bytes;
      store_vector(to + i, load_vector<uint4>(from + i));
    }
}
