// Attention without tensor cores, for every head_dim up to MAX_HEAD_DIM and for float32 KV: exact rather than fast.
//
// A block takes one row and head. Each of its warps goes through a split of the context, position by position, its lanes
// holding every 32nd dimension; then the splits are merged in their order, and the warps take the next ones.
#include "attention.h"

constexpr int THREADS = 128, WARPS = THREADS / WARP_LANES;
constexpr int LANE_VALUES = MAX_HEAD_DIM / WARP_LANES, THREAD_VALUES = MAX_HEAD_DIM / THREADS;

// One warp's softmax over positions [begin, end) of a row: left in `values` (head_dim of shared memory) and returned.
template <class Kv>
__device__ __forceinline__ Softmax attend_split(float* values, const Attend<Kv>& a, const bf16* q,
                                                const uint32_t* table,
                                                int kv_head, int head_dim, int begin, int end) {
  const int lane = threadIdx.x % WARP_LANES;
  float query[LANE_VALUES], sum[LANE_VALUES];
#pragma unroll
  for (int i = 0; i < LANE_VALUES; ++i) {
    const int d = lane + WARP_LANES * i;
    query[i] = d < head_dim ? bf2f(q[d]) : 0.f;
    sum[i] = 0.f;
  }
  Softmax s{nothing(), 0.f};
  for (int position = begin; position < end; ++position) {
    const size_t row = kv_row(table[position / BLOCK_TOKENS], a.num_kv_heads, kv_head, position % BLOCK_TOKENS);
    const Kv *k = a.k_cache + row * head_dim, *v = a.v_cache + row * head_dim;
    float dot = 0.f;
#pragma unroll
    for (int i = 0; i < LANE_VALUES; ++i) {
      const int d = lane + WARP_LANES * i;
      if (d < head_dim) dot = fmaf(query[i], decode(k[d]), dot);
    }
    dot = warp_sum(dot);
    float v_scale = 1.f;
    if constexpr (KvType<Kv>::SCALED) {
      dot *= a.k_scales[row];
      v_scale = a.v_scales[row];
    }
    const float score = a.score.of(dot), base = fmaxf(s.base, score), reference = finite_base(base);
    const float rescale = fast_exp2(s.base - reference), weight = fast_exp2(score - reference);
    s = Softmax{base, fmaf(s.sum, rescale, weight)};
#pragma unroll
    for (int i = 0; i < LANE_VALUES; ++i) {
      const int d = lane + WARP_LANES * i;
      if (d < head_dim) sum[i] = fmaf(weight * v_scale, decode(v[d]), sum[i] * rescale);
    }
  }
#pragma unroll
  for (int i = 0; i < LANE_VALUES; ++i) {
    const int d = lane + WARP_LANES * i;
    if (d < head_dim) values[d] = sum[i];
  }
  return s;
}

// Grid: rows of the longest span, heads, spans.
template <class Kv> __device__ __forceinline__ void attention_plain(bf16* out, const Attend<Kv>& a, int head_dim) {
  SHARED(float, values, WARPS * MAX_HEAD_DIM);
  SHARED(float, softmaxes, WARPS * 2);
  const Span span = load_span(a.spans, blockIdx.z);
  if (static_cast<int>(blockIdx.x) >= span.num_rows) return;
  const int row = span.row_start + blockIdx.x, head = blockIdx.y, warp = threadIdx.x / WARP_LANES;
  const int position = span.first_position + blockIdx.x, first = first_seen(position, a.window);
  const bf16* q = a.qkv + (static_cast<size_t>(row) * (a.num_heads + 2 * a.num_kv_heads) + head) * head_dim;
  const int kv_head = head / (a.num_heads / a.num_kv_heads);
  Softmax total{nothing(), 0.f};
  float sum[THREAD_VALUES] = {};
  for (int round = first / SPLIT_TOKENS; round <= position / SPLIT_TOKENS; round += WARPS) {
    const int begin = (round + warp) * SPLIT_TOKENS;
    const Softmax s = attend_split(values + warp * MAX_HEAD_DIM, a, q, a.tables + span.table_start, kv_head, head_dim,
                                   max(begin, first), min(begin + SPLIT_TOKENS, position + 1));
    if (threadIdx.x % WARP_LANES == 0) store_vector(softmaxes + 2 * warp, float2{s.base, s.sum});
    __syncthreads();
    for (int w = 0; w < WARPS; ++w) {
      const float2 part = load_vector<float2>(softmaxes + 2 * w);
      const MergeFactors f = merge(total, Softmax{part.x, part.y});
#pragma unroll
      for (int i = 0; i < THREAD_VALUES; ++i) {
        const int d = threadIdx.x + THREADS * i;
        if (d < head_dim) sum[i] = merge_values(f, sum[i], values[w * MAX_HEAD_DIM + d]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < THREAD_VALUES; ++i) {
    const int d = threadIdx.x + THREADS * i;
    if (d < head_dim) out[(static_cast<size_t>(row) * a.num_heads + head) * head_dim + d] = f2bf(sum[i] * normaliser(total));
  }
}

#define INSTANCE(kv_name, Kv)                                                                                          \
  KERNEL(THREADS, attention_plain_##kv_name, bf16* out, const bf16* qkv, const Kv* k_cache, const Kv* v_cache,        \
         const float* k_scales, const float* v_scales, const uint32_t* spans, const uint32_t* tables, float scale,    \
         float softcap, int window, int num_heads, int num_kv_heads, int head_dim) {                                  \
    const Attend<Kv> a{qkv,    k_cache, v_cache, k_scales,  v_scales,    spans,                                       \
                       tables, {scale, softcap}, window, num_heads, num_kv_heads};                                    \
    attention_plain(out, a, head_dim);                                                                                \
  }
INSTANCE(f32, float)
INSTANCE(bf16, bf16)
INSTANCE(int8, int8_t)
INSTANCE(fp8, fp8)
