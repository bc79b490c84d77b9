// Attention of few queries over a long context: every split of the context is a block of its own (flash-decoding: Dao et
// al. 2023), and a second kernel puts the splits together in their order.
//
// Meant for spans whose rows times group fit one tile of 16 queries; longer ones are right, but read K and V once a tile.
#include "attention_softmax.h"

constexpr int MERGE_THREADS = 128;

// Of the split `split` of a row and head, among a span's `max_rows` rows; splits count from the first that the span sees.
__device__ __forceinline__ size_t record_of(int span, int max_rows, int row, int num_heads, int head, int max_splits,
                                            int split) {
  return ((static_cast<size_t>(span) * max_rows + row) * num_heads + head) * max_splits + split;
}

// Where decode leaves its splits: [spans, max_rows, num_heads, max_splits] of head_dim values, and of base and sum.
struct Records { float *values, *sums; int max_rows, max_splits; };

template <class T>
__device__ __forceinline__ void write_split(const TileState<T>& s, const Queries<T>& q, const Records& records,
                                            int num_heads, int split) {
  const int lane = threadIdx.x % WARP_LANES;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = q.begin + query_of<T>(r);
    if (query >= q.end) continue;
    const size_t record =
        record_of(blockIdx.z, records.max_rows, q.row(query), num_heads, q.head(query), records.max_splits, split);
    if (warp_dim<T>() == 0 && lane % 4 == 0)
      store_vector(records.sums + 2 * record, float2{s.softmax[r].base, s.softmax[r].sum});
#pragma unroll
    for (int j = 0; j < T::PAIRS; ++j) {
      const int pair = warp_dim<T>() + j * T::DIM_WARPS;
      if (T::DIM_PAIRS % T::DIM_WARPS != 0 && pair >= T::DIM_PAIRS) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float* v = s.values[j][n] + 2 * r;
        store_vector(records.values + record * T::D + pair * 16 + n * 8 + lane % 4 * 2, float2{v[0], v[1]});
      }
    }
  }
}

// Grid: splits times tiles, KV heads, spans.
template <class T>
__device__ __forceinline__ void attention_decode(const Records& records, const Attend<typename T::Kv>& a) {
  DYNAMIC_SHARED(uint8_t, shared);
  const Span span = load_span(a.spans, blockIdx.z);
  const int split = blockIdx.x % records.max_splits;
  const Queries<T> q(a, span, blockIdx.y, blockIdx.x / records.max_splits);
  const int begin = (first_seen(span.first_position, a.window) / SPLIT_TOKENS + split) * SPLIT_TOKENS;
  const int first = max(begin, q.first_seen_), end = min(begin + SPLIT_TOKENS, q.last_position + 1);
  const Context context{a.tables + span.table_start, first, end, a.num_kv_heads, static_cast<int>(blockIdx.y)};
  if (q.begin == q.end || first >= end) return;
  TileState<T> s;
  attend_tiles(s, a, q, context, shared, [] {});
  complete_sums(s);
  write_split(s, q, records, a.num_heads, split);
}

#define INSTANCE(kv_name, Kv, D)                                                                                       \
  KERNEL(128, attention_decode_##kv_name##_d##D, float* record_values, float* record_sums, const bf16* qkv,           \
         const Kv* k_cache, const Kv* v_cache, const float* k_scales, const float* v_scales, const uint32_t* spans,   \
         const uint32_t* tables, float scale, float softcap, int window, int num_heads, int num_kv_heads,             \
         int max_rows, int max_splits) {                                                                              \
    const Records records{record_values, record_sums, max_rows, max_splits};                                          \
    const Attend<Kv> a{qkv,    k_cache, v_cache, k_scales,  v_scales,    spans,                                       \
                       tables, {scale, softcap}, window, num_heads, num_kv_heads};                                    \
    attention_decode<TileShape<Kv, D, 1, 4>>(records, a);                                                             \
  }
#define INSTANCES(kv_name, Kv)                                                  \
  INSTANCE(kv_name, Kv, 64) INSTANCE(kv_name, Kv, 80) INSTANCE(kv_name, Kv, 96) \
  INSTANCE(kv_name, Kv, 128) INSTANCE(kv_name, Kv, 256)
INSTANCES(bf16, bf16)
INSTANCES(int8, int8_t)
INSTANCES(fp8, fp8)

// out[row, head] from its splits, in their order. Grid: heads, max_rows, spans.
KERNEL(MERGE_THREADS, attention_merge, bf16* out, const float* record_values, const float* record_sums,
       const uint32_t* spans,
       int window, int num_heads, int head_dim, int max_rows, int max_splits) {
  const Span span = load_span(spans, blockIdx.z);
  const int head = blockIdx.x, row = blockIdx.y, position = span.first_position + row;
  if (row >= span.num_rows) return;
  const int of_span = first_seen(span.first_position, window) / SPLIT_TOKENS;
  const int first = first_seen(position, window) / SPLIT_TOKENS - of_span, last = position / SPLIT_TOKENS - of_span;
  out += (static_cast<size_t>(span.row_start + row) * num_heads + head) * head_dim;
  for (int d = threadIdx.x; d < head_dim; d += MERGE_THREADS) {
    Softmax total{nothing(), 0.f};
    float value = 0.f;
    for (int split = first; split <= last; ++split) {
      const size_t record = record_of(blockIdx.z, max_rows, row, num_heads, head, max_splits, split);
      const float2 part = load_vector<float2>(record_sums + 2 * record);
      const MergeFactors f = merge(total, Softmax{part.x, part.y});
      value = merge_values(f, value, record_values[record * head_dim + d]);
    }
    out[d] = f2bf(value * normaliser(total));
  }
}
