// Attention of many rows of a span: one block per tile of queries and KV head, which goes through all of their context.
//
// The last rows of a span have the longest contexts, so they come first. What the splits before the current one sum up to
// stands in memory, where each thread finds its own values again.
#include "attention_softmax.h"

// The splits so far: what a thread has of them. None of it stays in registers, which are all taken.
template <class T> struct Totals {
  static constexpr int BYTES = T::ROW_TILES * 2 * T::THREADS * sizeof(Softmax);
  static_assert(sizeof(Queries<T>) <= 64, "kernels/README.md says how much shared memory there is");
  Softmax* softmax;  // in shared memory: [ROW_TILES * 2, THREADS], at this thread's column
  float* values;     // [rows, num_heads, D]
  int num_heads;
  // Puts the splits before, if there are any, in front of the split in `s`, which then stands for all.
  __device__ __forceinline__ void put_before(TileState<T>& s, const Queries<T>& q, bool any) {
    MergeFactors f[T::ROW_TILES][2];
#pragma unroll
    for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Softmax& total = softmax[(2 * t + r) * T::THREADS];
        if (!any) total = Softmax{nothing(), 0.f};
        f[t][r] = merge(total, s.softmax(t, r));
        s.sums[t][2 * r] = total.sum;
      }
    for_rows<T>(q, [&](int t, int r, int query) {
      const float* const from = values + q.place(query, num_heads);
      for_dims<T>([&](int j, int half, int dim) {
        const float2 total = any ? load_vector<float2>(from + dim) : float2{0.f, 0.f};
        float* const v = s.values[t][j][half] + 2 * r;
        v[0] = merge_values(f[t][r], total.x, v[0]);
        v[1] = merge_values(f[t][r], total.y, v[1]);
      });
    });
  }
  __device__ __forceinline__ void add(TileState<T>& s, const Queries<T>& q, bool any) {
    put_before(s, q, any);
    for_rows<T>(q, [&](int t, int r, int query) {
      float* const to = values + q.place(query, num_heads);
      for_dims<T>([&](int j, int half, int dim) {
        const float* const v = s.values[t][j][half] + 2 * r;
        store_vector(to + dim, float2{v[0], v[1]});
      });
    });
  }
};

// The weights of a tile times its V.
template <class T>
__device__ __forceinline__ void use_weights(TileState<T>& s, const float (&weights)[T::ROW_TILES][SCORE_TILES][4], const bf16* v,
                                            const float* scales) {
#pragma unroll
  for (int k = 0; k < KV_TILE / 16; ++k) {
    uint32_t a[T::ROW_TILES][4];
#pragma unroll
    for (int t = 0; t < T::ROW_TILES; ++t) {
      const float(&low)[4] = weights[t][2 * k], (&high)[4] = weights[t][2 * k + 1];
      a[t][0] = pack_bf16(low[0], low[1]);
      a[t][1] = pack_bf16(low[2], low[3]);
      a[t][2] = pack_bf16(high[0], high[1]);
      a[t][3] = pack_bf16(high[2], high[3]);
      add_weights(s, t, a[t]);
      if constexpr (T::SCALED) {
        const float2 near = load_vector<float2>(scales + k * 16 + threadIdx.x % 4 * 2);
        const float2 far = load_vector<float2>(scales + k * 16 + 8 + threadIdx.x % 4 * 2);
        a[t][0] = pack_bf16(low[0] * near.x, low[1] * near.y);
        a[t][1] = pack_bf16(low[2] * near.x, low[3] * near.y);
        a[t][2] = pack_bf16(high[0] * far.x, high[1] * far.y);
        a[t][3] = pack_bf16(high[2] * far.x, high[3] * far.y);
      }
    }
    multiply_values(s, a, v, k);
  }
}

// Grid: tiles of the longest span, KV heads, spans.
template <class T>
__device__ __forceinline__ void attention_prefill(bf16* out, float* total_values, const Attend<typename T::Kv>& a) {
  DYNAMIC_SHARED(uint8_t, shared);
  const Span span = load_span(a.spans, blockIdx.z);
  const Queries<T> own(a, span, blockIdx.y, gridDim.x - 1 - blockIdx.x);
  if (own.begin == own.end) return;
  bf16* const queries = reinterpret_cast<bf16*>(shared + T::RING_BYTES);
  copy_queries(queries, a, own);
  // Read where it is needed: registers are all taken.
  Queries<T>& q = *reinterpret_cast<Queries<T>*>(shared + T::RING_BYTES + T::QUERY_BYTES + Totals<T>::BYTES);
  SHARED(Context, context, 1);
  if (threadIdx.x == 0) {
    q = own;
    *context = Context{a.tables + span.table_start, own.first_seen_, own.last_position + 1, static_cast<int>(blockIdx.y)};
  }
  __syncthreads();  // what the queries are, and what they see
  SHARED(uint32_t, kept, KEPT_TILES * TILE_BLOCKS);
  Ring<T> ring(a, *context, shared, kept);
  cp_async_wait<T::BUFFERS - 2>();
  __syncthreads();  // the queries are there
  TileState<T> s;
  begin_state(s, queries);
  Totals<T> totals{reinterpret_cast<Softmax*>(shared + T::RING_BYTES + T::QUERY_BYTES) + threadIdx.x, total_values,
                   a.num_heads};
  const float factor = a.score.factor();
  // Whether a split ends before `position`, other than where it begins.
  const auto follows_split = [&](int position) { return (position - 1) / SPLIT_TOKENS > context->first / SPLIT_TOKENS; };
  for (int begin = context->first / KV_TILE * KV_TILE; begin < context->end; begin += KV_TILE) {
    if (begin > context->first && begin % SPLIT_TOKENS == 0) {
      totals.add(s, q, follows_split(begin));
      clear_split(s);
    }
    float scores[T::ROW_TILES][SCORE_TILES][4], largest[T::ROW_TILES][2];
    const bf16* const k = ring.template arrive<false>(begin);
    multiply_keys(scores, s, k);
    finish_scores(scores, q, a.score, begin, ring.scales(false));
#pragma unroll
    for (int t = 0; t < T::ROW_TILES; ++t)
#pragma unroll
      for (int r = 0; r < 2; ++r) largest[t][r] = largest_score<T>(scores[t], r);
    rebase(s, largest, factor);
    weigh(scores, s, factor);
    const bf16* const v = ring.template arrive<true>(begin);
    use_weights(s, scores, v, ring.scales(true));
  }
  if (follows_split(context->end)) totals.put_before(s, q, true);
  for_rows<T>(q, [&](int t, int r, int query) { write_row(out + q.place(query, a.num_heads), s, t, r); });
}

#define INSTANCE(kv_name, Kv, D, ROW_WARPS, ROW_TILES, BUFFERS)                                                        \
  KERNEL(128, attention_prefill_##kv_name##_d##D, bf16* out, float* totals, ATTEND_PARAMETERS(Kv)) {                  \
    attention_prefill<TileShape<Kv, D, ROW_WARPS, ROW_TILES, 4 / ROW_WARPS, BUFFERS>>(out, totals, ATTEND(Kv));       \
  }
#define INSTANCES(kv_name, Kv)                                                                  \
  INSTANCE(kv_name, Kv, 64, 4, 2, 3) INSTANCE(kv_name, Kv, 80, 4, 2, 3)                          \
  INSTANCE(kv_name, Kv, 96, 4, 2, 3) INSTANCE(kv_name, Kv, 128, 4, 2, 3) INSTANCE(kv_name, Kv, 256, 2, 1, 2)
INSTANCES(bf16, bf16)
INSTANCES(int8, int8_t)
INSTANCES(fp8, fp8)
