// Attention of many rows of a span: one block per tile of queries and KV head, which goes through all of their context.
//
// The last rows of a span have the longest contexts, so they come first. What the splits before the current one sum up to
// stands in shared memory, each thread's own values in a column of their own.
#include "attention_softmax.h"

template <class T>
__device__ __forceinline__ void write_rows(bf16* out, const TileState<T>& s, const Queries<T>& q, int num_heads) {
  const int lane = threadIdx.x % WARP_LANES;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = q.begin + query_of<T>(r);
    if (query >= q.end) continue;
    const float factor = normaliser(s.softmax[r]);
    bf16* const row = out + (static_cast<size_t>(q.span.row_start + q.row(query)) * num_heads + q.head(query)) * T::D;
#pragma unroll
    for (int j = 0; j < T::PAIRS; ++j) {
      const int pair = warp_dim<T>() + j * T::DIM_WARPS;
      if (T::DIM_PAIRS % T::DIM_WARPS != 0 && pair >= T::DIM_PAIRS) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float* v = s.values[j][n] + 2 * r;
        store_vector(row + pair * 16 + n * 8 + lane % 4 * 2, pack_bf16(v[0] * factor, v[1] * factor));
      }
    }
  }
}

// The splits so far: what a thread has of them.
template <class T> struct Totals {
  float* values;  // [VALUES][THREADS], at this thread's column
  Softmax softmax[2];
  // Adds the split in `s`, whose sums are complete.
  __device__ __forceinline__ void add(const TileState<T>& s, bool first) {
    MergeFactors f[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (first) softmax[r] = Softmax{nothing(), 0.f};
      f[r] = merge(softmax[r], s.softmax[r]);
    }
#pragma unroll
    for (int i = 0; i < T::VALUES; ++i) {
      float* const total = values + i * T::THREADS;
      *total = merge_values(f[i % 4 / 2], first ? 0.f : *total, s.values[i / 8][i / 4 % 2][i % 4]);
    }
  }
  __device__ __forceinline__ void take(TileState<T>& s) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) s.softmax[r] = softmax[r];
#pragma unroll
    for (int i = 0; i < T::VALUES; ++i) s.values[i / 8][i / 4 % 2][i % 4] = values[i * T::THREADS];
  }
};

// Grid: tiles of the longest span, KV heads, spans.
template <class T> __device__ __forceinline__ void attention_prefill(bf16* out, const Attend<typename T::Kv>& a) {
  DYNAMIC_SHARED(uint8_t, shared);
  const Span span = load_span(a.spans, blockIdx.z);
  const Queries<T> q(a, span, blockIdx.y, gridDim.x - 1 - blockIdx.x);
  if (q.begin == q.end) return;
  const Context context{a.tables + span.table_start, q.first_seen_, q.last_position + 1, a.num_kv_heads,
                        static_cast<int>(blockIdx.y)};
  TileState<T> s;
  Totals<T> totals{TileMemory<T>(shared).totals + threadIdx.x, {{nothing(), 0.f}, {nothing(), 0.f}}};
  bool first = true;
  attend_tiles(s, a, q, context, shared, [&] {
    complete_sums(s);
    totals.add(s, first);
    first = false;
    clear_split(s);
  });
  complete_sums(s);
  if (!first) {
    totals.add(s, false);
    totals.take(s);
  }
  write_rows(out, s, q, a.num_heads);
}

#define INSTANCE(kv_name, Kv, D, ROW_WARPS)                                                                            \
  KERNEL(128, attention_prefill_##kv_name##_d##D, bf16* out, const bf16* qkv, const Kv* k_cache, const Kv* v_cache,   \
         const float* k_scales, const float* v_scales, const uint32_t* spans, const uint32_t* tables, float scale,    \
         float softcap, int window, int num_heads, int num_kv_heads) {                                                \
    const Attend<Kv> a{qkv,    k_cache, v_cache, k_scales,  v_scales,    spans,                                       \
                       tables, {scale, softcap}, window, num_heads, num_kv_heads};                                    \
    attention_prefill<TileShape<Kv, D, ROW_WARPS, 4 / ROW_WARPS>>(out, a);                                            \
  }
#define INSTANCES(kv_name, Kv)                                                         \
  INSTANCE(kv_name, Kv, 64, 4) INSTANCE(kv_name, Kv, 80, 4) INSTANCE(kv_name, Kv, 96, 4) \
  INSTANCE(kv_name, Kv, 128, 4) INSTANCE(kv_name, Kv, 256, 2)
INSTANCES(bf16, bf16)
INSTANCES(int8, int8_t)
INSTANCES(fp8, fp8)
