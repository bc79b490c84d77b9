// Attention without tensor cores, for every head_dim up to MAX_HEAD_DIM and for float32 KV: exact rather than fast.
//
// A block takes one row and head, and goes through its context in tiles of THREADS positions that begin at multiples of
// their size, one online-softmax update each: a thread scores one position of the tile, then sums up every THREADS-th
// dimension of the values.
#include "attention.h"

constexpr int THREADS = 128;
constexpr int THREAD_VALUES = MAX_HEAD_DIM / THREADS;

// The product of a query (float32, in shared memory) and a row of K.
template <class Kv> __device__ __forceinline__ float dot(const float* query, const Kv* k, int head_dim) {
  float sum = 0.f;
  for (int d = 0; d < head_dim; ++d) sum = fmaf(query[d], decode(k[d]), sum);
  return sum;
}

// Grid: rows of the longest span, heads, spans.
template <class Kv> __device__ __forceinline__ void attention_plain(bf16* out, const Attend<Kv>& a, int head_dim) {
  SHARED(float, query, MAX_HEAD_DIM);
  SHARED(float, weights, THREADS);  // of the tile's positions; their scores before
  SHARED(float, scaled, THREADS);   // the same times the scale of V
  const Span span = load_span(a.spans, blockIdx.z);
  if (static_cast<int>(blockIdx.x) >= span.num_rows) return;
  const int row = span.row_start + blockIdx.x, head = blockIdx.y;
  const int position = span.first_position + blockIdx.x, first = first_seen(position, a.window);
  const bf16* q = a.qkv + (static_cast<size_t>(row) * (a.num_heads + 2 * a.num_kv_heads) + head) * head_dim;
  const uint32_t* table = a.tables + span.table_start;
  const int kv_head = head / (a.num_heads / a.num_kv_heads);
  for (int d = threadIdx.x; d < head_dim; d += THREADS) query[d] = bf2f(q[d]);
  __syncthreads();
  Softmax total{nothing(), 0.f};
  float sum[THREAD_VALUES] = {};
  for (int tile = first / THREADS * THREADS; tile <= position; tile += THREADS) {
    const int begin = max(first, tile), end = min(position + 1, tile + THREADS), own = tile + threadIdx.x;
    float score = nothing(), v_scale = 1.f;
    if (own >= begin && own < end) {
      const size_t k_row = kv_row(table[own / BLOCK_TOKENS], a.num_kv_heads, kv_head, own % BLOCK_TOKENS);
      float product = dot(query, a.k_cache + k_row * head_dim, head_dim);
      if constexpr (KvType<Kv>::SCALED) {
        product *= a.k_scales[k_row];
        v_scale = a.v_scales[k_row];
      }
      score = a.score.of(product);
    }
    weights[threadIdx.x] = score;
    __syncthreads();
    float base = total.base;
    for (int i = 0; i < THREADS; ++i) base = fmaxf(base, weights[i]);
    __syncthreads();  // all have read the scores
    const float reference = finite_base(base), rescale = fast_exp2(total.base - reference);
    const float weight = fast_exp2(score - reference);
    weights[threadIdx.x] = weight;
    scaled[threadIdx.x] = weight * v_scale;
    __syncthreads();
    float part = 0.f;
    for (int i = 0; i < THREADS; ++i) part += weights[i];
    total = Softmax{base, fmaf(total.sum, rescale, part)};
#pragma unroll
    for (int i = 0; i < THREAD_VALUES; ++i) sum[i] *= rescale;
    for (int p = begin; p < end; ++p) {
      const size_t v_row = kv_row(table[p / BLOCK_TOKENS], a.num_kv_heads, kv_head, p % BLOCK_TOKENS);
#pragma unroll
      for (int i = 0; i < THREAD_VALUES; ++i) {
        const int d = threadIdx.x + THREADS * i;
        if (d < head_dim) sum[i] = fmaf(scaled[p - tile], decode(a.v_cache[v_row * head_dim + d]), sum[i]);
      }
    }
    __syncthreads();  // all have read the weights
  }
#pragma unroll
  for (int i = 0; i < THREAD_VALUES; ++i) {
    const int d = threadIdx.x + THREADS * i;
    if (d < head_dim) out[(static_cast<size_t>(row) * a.num_heads + head) * head_dim + d] = f2bf(sum[i] * normaliser(total));
  }
}

#define INSTANCE(kv_name, Kv)                                                                     \
  KERNEL(THREADS, attention_plain_##kv_name, bf16* out, ATTEND_PARAMETERS(Kv), int head_dim) {   \
    attention_plain(out, ATTEND(Kv), head_dim);                                                  \
  }
INSTANCE(f32, float)
INSTANCE(bf16, bf16)
INSTANCE(int8, int8_t)
INSTANCE(fp8, fp8)
