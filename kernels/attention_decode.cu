// Attention of few queries over a long context: every split of the context is a block of its own (flash-decoding: Dao et
// al. 2023), and a second kernel puts the splits together in their order.
//
// Meant for spans whose rows times group fit one tile of 16 queries; longer ones are right, but read K and V once a tile.
#include "attention_records.h"
#include "attention_softmax.h"

// To `out` where a row sees no other split, else to its record.
template <class T>
__device__ __forceinline__ void write_split(bf16* out, const TileState<T>& s, const Queries<T>& q, const Records<float>& records,
                                            int num_heads, int split) {
  for_rows<T>(q, [&](int t, int r, int query) {
    const Softmax softmax = s.softmax(t, r);
    const Splits splits(q.span, q.row(query), q.window);
    if (split < splits.first || split > splits.last) return;  // another row of the block sees it
    if (splits.first == splits.last) return write_row(out + q.place(query, num_heads), s, t, r);
    const size_t record = records.of(blockIdx.z, q.row(query), num_heads, q.head(query)) + split;
    if (warp_dim<T>() == 0 && threadIdx.x % 4 == 0)
      store_vector(records.sums + 2 * record, float2{softmax.base, softmax.sum});
    for_dims<T>([&](int j, int half, int dim) {
      const float* v = s.values[t][j][half] + 2 * r;
      store_vector(records.values + record * T::D + dim, float2{v[0], v[1]});
    });
  });
}

// How a block's four warps share a tile: each scores 16 of its positions for all queries, and they exchange the largest
// scores and then the weights.
struct Exchange {
  static constexpr int WARPS = 4, ROW = KV_TILE + 8;
  float* largest;  // [16, WARPS]
  bf16 *weights, *scaled;  // [16, ROW] each; scaled by V's scales
  __device__ __forceinline__ explicit Exchange(uint8_t* memory)
      : largest(reinterpret_cast<float*>(memory)), weights(reinterpret_cast<bf16*>(largest + 16 * WARPS)),
        scaled(weights + 16 * ROW) {}
  // Positions 8n + lane % 4 * 2 of this warp's 16, row r of this thread.
  static __device__ __forceinline__ int place(int n, int r) {
    const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
    return (lane / 4 + 8 * r) * ROW + warp * 16 + n * 8 + lane % 4 * 2;
  }
};

// One tile of K and V.
template <class T>
__device__ __forceinline__ void decode_tile(TileState<T>& s, Ring<T>& ring, const Exchange& e, const Attend<typename T::Kv>& a,
                                            const Queries<T>& q, int begin) {
  const int lane = threadIdx.x % WARP_LANES, warp = threadIdx.x / WARP_LANES;
  const float factor = a.score.factor();
  float scores[1][2][4], largest[1][2];
  const bf16* const k = ring.template arrive<false>(begin);
  multiply_keys(scores, s, k + warp * 16 * T::ROW);
  finish_scores(scores, q, a.score, begin + warp * 16, ring.scales(false) + warp * 16);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[0][r] = largest_score<T>(scores[0], r);
    if (lane % 4 == 0) e.largest[(lane / 4 + 8 * r) * Exchange::WARPS + warp] = largest[0][r];
  }
  const bf16* const v = ring.template arrive<true>(begin);  // and the largest scores
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float4 of_warps = load_vector<float4>(e.largest + (lane / 4 + 8 * r) * Exchange::WARPS);
    largest[0][r] = fmaxf(fmaxf(of_warps.x, of_warps.y), fmaxf(of_warps.z, of_warps.w));
  }
  rebase(s, largest, factor);
  weigh(scores, s, factor);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    float2 scale{1.f, 1.f};
    if constexpr (T::SCALED) scale = load_vector<float2>(ring.scales(true) + warp * 16 + n * 8 + lane % 4 * 2);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float low = scores[0][n][2 * r], high = scores[0][n][2 * r + 1];
      store_vector(e.weights + Exchange::place(n, r), pack_bf16(low, high));
      if constexpr (T::SCALED) store_vector(e.scaled + Exchange::place(n, r), pack_bf16(low * scale.x, high * scale.y));
    }
  }
  __syncthreads();  // the weights are there
#pragma unroll
  for (int step = 0; step < KV_TILE / 16; ++step) {
    uint32_t weights[1][4];
    const int at = lane % 16 * Exchange::ROW + step * 16 + lane / 16 * 8;
    ldmatrix_x4(weights[0], e.weights + at);
    add_weights(s, 0, weights[0]);
    if constexpr (T::SCALED) ldmatrix_x4(weights[0], e.scaled + at);
    multiply_values(s, weights, v, step);
  }
}

// Grid: splits times tiles, KV heads, spans.
template <class T>
__device__ __forceinline__ void attention_decode(bf16* out, const Records<float>& records, const Attend<typename T::Kv>& a) {
  static_assert(T::DIM_WARPS == Exchange::WARPS && T::QUERIES == 16, "warps share a tile's positions");
  DYNAMIC_SHARED(uint8_t, shared);
  const Span span = load_span(a.spans, blockIdx.z);
  const int split = blockIdx.x % records.max_splits;
  const Queries<T> q(a, span, blockIdx.y, blockIdx.x / records.max_splits);
  const int start = (first_seen(span.first_position, a.window) / SPLIT_TOKENS + split) * SPLIT_TOKENS;
  const int first = max(start, q.first_seen_), end = min(start + SPLIT_TOKENS, q.last_position + 1);
  if (q.begin == q.end || first >= end) return;
  bf16* const queries = reinterpret_cast<bf16*>(shared + T::RING_BYTES);
  const Exchange exchange(shared + T::RING_BYTES + T::QUERY_BYTES);
  copy_queries(queries, a, q);
  SHARED(uint32_t, kept, KEPT_TILES * TILE_BLOCKS);
  const Context context{a.tables + span.table_start, first, end, static_cast<int>(blockIdx.y)};
  Ring<T> ring(a, context, shared, kept);
  cp_async_wait<T::BUFFERS - 2>();
  __syncthreads();  // the queries are there
  TileState<T> s;
  begin_state(s, queries);
  for (int begin = first / KV_TILE * KV_TILE; begin < end; begin += KV_TILE) decode_tile(s, ring, exchange, a, q, begin);
  write_split(out, s, q, records, a.num_heads, split);
}

template <class Kv, int D> using DecodeShape = TileShape<Kv, D, 1, 1, 4, (D > 128 ? 2 : sizeof(Kv) == 1 ? 3 : 4)>;

#define INSTANCE(kv_name, Kv, D)                                                                                       \
  KERNEL(128, attention_decode_##kv_name##_d##D, bf16* out, float* record_values, float* record_sums,                 \
         ATTEND_PARAMETERS(Kv), int max_rows, int max_splits) {                                                       \
    const Records<float> records{record_values, record_sums, max_rows, max_splits};                                          \
    attention_decode<DecodeShape<Kv, D>>(out, records, ATTEND(Kv));                                                   \
  }
#define INSTANCES(kv_name, Kv)                                                  \
  INSTANCE(kv_name, Kv, 64) INSTANCE(kv_name, Kv, 80) INSTANCE(kv_name, Kv, 96) \
  INSTANCE(kv_name, Kv, 128) INSTANCE(kv_name, Kv, 256)
INSTANCES(bf16, bf16)
INSTANCES(int8, int8_t)
INSTANCES(fp8, fp8)
