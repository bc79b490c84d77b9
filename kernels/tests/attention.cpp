// All attention kernels against one twin, and against each other: decode and prefill give a row the same bits, however the
// rows were put into spans.
#include "kv_twin.h"
using namespace test;

struct Heads { int num, kv, dim; };
struct Look { float softcap; int window; };
struct Rows { int first_position, num; };

// Sequences whose K and V stand in shuffled blocks. Slots that no query sees are NaN, blocks that none sees have no number.
template <class Kv> struct Scene {
  Heads heads;
  Look look;
  std::vector<uint32_t> spans, tables;
  int rows = 0, max_rows = 0, max_end = 0;
  float scale;
  Cache<Kv> k, v;
  Buffer<bf16> qkv;

  Scene(Heads heads, Look look, const std::vector<Rows>& sequences, float peak = 1)
      : heads(heads), look(look), scale(peak / sqrtf(float(heads.dim))), k(blocks_of(sequences), heads.kv, heads.dim),
        v(blocks_of(sequences), heads.kv, heads.dim), qkv(rows_of(sequences) * (heads.num + 2 * heads.kv) * heads.dim) {
    std::vector<uint32_t> free_blocks(blocks_of(sequences));
    for (size_t i = 0; i < free_blocks.size(); ++i) free_blocks[i] = uint32_t(i);
    std::shuffle(free_blocks.begin(), free_blocks.end(), random_bits);
    for (const Rows& s : sequences) add(s, free_blocks);
    qkv.fill(-2, 2);
  }
  static int blocks_of(const std::vector<Rows>& sequences) {
    int n = 1;
    for (auto& s : sequences) n += (s.first_position + s.num + 15) / 16;
    return n;
  }
  static size_t rows_of(const std::vector<Rows>& sequences) {
    size_t n = 0;
    for (auto& s : sequences) n += s.num;
    return n;
  }
  int first_seen(int position) const { return look.window > 0 ? std::max(0, position + 1 - look.window) : 0; }
  void add(const Rows& s, std::vector<uint32_t>& free_blocks) {
    const int end = s.first_position + s.num, num_blocks = (end + 15) / 16, first = first_seen(s.first_position);
    for (uint32_t word : {rows, s.num, s.first_position, int(tables.size()), num_blocks}) spans.push_back(word);
    for (int b = 0; b < num_blocks; ++b) {
      if (b * 16 + 16 <= first) {
        tables.push_back(0x7fffffff);
        continue;
      }
      tables.push_back(free_blocks.back());
      free_blocks.pop_back();
      for (int p = std::max(first, b * 16); p < std::min(end, b * 16 + 16); ++p)
        for (int h = 0; h < heads.kv; ++h) {
          k.randomise(tables.back() * 16 + p % 16, h, 2);
          v.randomise(tables.back() * 16 + p % 16, h, 1);
        }
    }
    rows += s.num;
    max_rows = std::max(max_rows, s.num);
    max_end = std::max(max_end, end);
  }
  int num_spans() const { return int(spans.size() / 5); }
  // Spans of no rows, which fill up a step: nothing of theirs may be looked at.
  void add_empty() {
    for (int i = 0; i < 2; ++i)
      for (uint32_t word : {0x7fffffffu, 0u, i * 700u, 0x7fffffffu, 0u}) spans.push_back(word);
  }
  // The same rows in spans of at most `most` rows.
  void cut(int most) {
    std::vector<uint32_t> pieces;
    max_rows = 0;
    for (int s = 0; s < num_spans(); ++s)
      for (uint32_t from = 0; from < spans[5 * s + 1]; from += most) {
        const uint32_t n = std::min<uint32_t>(most, spans[5 * s + 1] - from), first = spans[5 * s + 2] + from;
        for (uint32_t word : {spans[5 * s] + from, n, first, spans[5 * s + 3], (first + n + 15) / 16}) pieces.push_back(word);
        max_rows = std::max(max_rows, int(n));
      }
    spans = pieces;
  }
};

template <class Kv> std::vector<double> twin(const Scene<Kv>& s) {
  std::vector<double> out(size_t(s.rows) * s.heads.num * s.heads.dim);
  const int D = s.heads.dim, group = s.heads.num / s.heads.kv, width = (s.heads.num + 2 * s.heads.kv) * D;
  for (int i = 0; i < s.num_spans(); ++i)
    for (uint32_t r = 0; r < s.spans[5 * i + 1]; ++r)
      for (int h = 0; h < s.heads.num; ++h) {
        const int row = s.spans[5 * i] + r, position = s.spans[5 * i + 2] + r, first = s.first_seen(position);
        auto slot = [&](int p) { return s.tables[s.spans[5 * i + 3] + p / 16] * 16 + p % 16; };
        std::vector<double> weight;
        double most = -1e300, sum = 0;
        for (int p = first; p <= position; ++p) {
          double dot = 0;
          for (int d = 0; d < D; ++d) dot += to_float(s.qkv[row * width + h * D + d]) * s.k.value(slot(p), h / group, d);
          dot *= s.scale;
          if (s.look.softcap > 0) dot = s.look.softcap * tanh(dot / s.look.softcap);
          weight.push_back(dot);
          most = std::max(most, dot);
        }
        for (auto& w : weight) sum += w = exp(w - most);
        double* o = &out[(size_t(row) * s.heads.num + h) * D];
        for (int p = first; p <= position; ++p)
          for (int d = 0; d < D; ++d) o[d] += weight[p - first] / sum * s.v.value(slot(p), h / group, d);
      }
  return out;
}

// As kernels/README.md has them.
static size_t ring_bytes(int dim, size_t element, int buffers) {
  if (element == 2) return buffers * 64 * (dim + 8) * 2;
  return buffers * 64 * (dim + 4) + (dim > 128 ? 1 : 2) * 64 * (dim + 8) * 2 + 512;
}
static int prefill_queries(int dim) { return dim == 256 ? 32 : 128; }
static size_t prefill_bytes(int dim, size_t element) {
  return ring_bytes(dim, element, dim == 256 ? 2 : 3) + prefill_queries(dim) * (dim + 8) * 2 + (dim == 256 ? 2112 : 4160);
}
static size_t decode_bytes(int dim, size_t element) {
  const int buffers = dim == 256 ? 2 : element == 1 ? 3 : 4;
  return ring_bytes(dim, element, buffers) + 16 * (dim + 8) * 2 + 256 + (element == 1 ? 2 : 1) * 16 * 72 * 2;
}
template <class Kv> static std::string name_of(const char* kind, int dim = 0) {
  return std::string("attention_") + kind + "_" + kv_name<Kv>() + (dim ? "_d" + std::to_string(dim) : "");
}

template <class Kv> Buffer<bf16> prefill(const Scene<Kv>& s) {
  Buffer<bf16> out(size_t(s.rows) * s.heads.num * s.heads.dim);
  Buffer<float> totals(out.size());
  auto spans = words(s.spans), tables = words(s.tables);
  const int queries = prefill_queries(s.heads.dim), group = s.heads.num / s.heads.kv;
  const uint32_t tiles = (s.max_rows * group + queries - 1) / queries;
  launch(name_of<Kv>("prefill", s.heads.dim).c_str(), {tiles, uint32_t(s.heads.kv), uint32_t(s.num_spans())}, {128},
         prefill_bytes(s.heads.dim, sizeof(Kv)), out.data(), totals.data(), s.qkv.data(), s.k.values.data(), s.v.values.data(), s.k.scale_data(),
         s.v.scale_data(), spans.data(), tables.data(), s.scale, s.look.softcap, s.look.window, s.heads.num, s.heads.kv);
  return out;
}

template <class Kv> Buffer<bf16> decode(const Scene<Kv>& s, int more_splits = 0) {
  Buffer<bf16> out(size_t(s.rows) * s.heads.num * s.heads.dim);
  auto spans = words(s.spans), tables = words(s.tables);
  const int group = s.heads.num / s.heads.kv, max_splits = (s.max_end + 511) / 512 + more_splits;
  const uint32_t tiles = (s.max_rows * group + 15) / 16, n = s.num_spans();
  const size_t records = size_t(n) * s.max_rows * s.heads.num * max_splits;
  Buffer<float> values(records * s.heads.dim), sums(records * 2);
  launch(name_of<Kv>("decode", s.heads.dim).c_str(), {tiles * max_splits, uint32_t(s.heads.kv), n}, {128},
         decode_bytes(s.heads.dim, sizeof(Kv)), out.data(), values.data(), sums.data(), s.qkv.data(), s.k.values.data(), s.v.values.data(),
         s.k.scale_data(), s.v.scale_data(), spans.data(), tables.data(), s.scale, s.look.softcap, s.look.window,
         s.heads.num, s.heads.kv, s.max_rows, max_splits);
  expect(values.guards_whole() && sums.guards_whole(), "written beyond the records");
  launch("attention_merge", {uint32_t(s.heads.num), uint32_t(s.max_rows), n}, {128}, 0, out.data(), values.data(), sums.data(),
         spans.data(), s.look.window, s.heads.num, s.heads.dim, s.max_rows, max_splits);
  return out;
}

template <class Kv> Buffer<bf16> plain(const Scene<Kv>& s) {
  Buffer<bf16> out(size_t(s.rows) * s.heads.num * s.heads.dim);
  auto spans = words(s.spans), tables = words(s.tables);
  launch(name_of<Kv>("plain").c_str(), {uint32_t(s.max_rows), uint32_t(s.heads.num), uint32_t(s.num_spans())}, {128}, 0,
         out.data(), s.qkv.data(), s.k.values.data(), s.v.values.data(), s.k.scale_data(), s.v.scale_data(), spans.data(),
         tables.data(), s.scale, s.look.softcap, s.look.window, s.heads.num, s.heads.kv, s.heads.dim);
  return out;
}

static void describe(const char* what, const char* kv, Heads h, Look l) {
  current_case = std::string(what) + " " + kv + " heads " + std::to_string(h.num) + "/" + std::to_string(h.kv) + " of " +
                 std::to_string(h.dim) + " window " + std::to_string(l.window) + " cap " + std::to_string(l.softcap);
}

// Weights are rounded to bf16 before they meet V, whose values are up to 1.
template <class Kv> void test_tensor_cores(Heads heads, Look look, const std::vector<Rows>& rows, float peak = 1) {
  Scene<Kv> s(heads, look, rows, peak);
  const auto want = twin(s);
  describe("prefill", kv_name<Kv>(), heads, look);
  const auto whole = prefill(s);
  expect_near("out", whole, want, 0.004, BF16);
  describe("decode", kv_name<Kv>(), heads, look);
  expect_same_bits("decode of whole spans", decode(s, 1), whole);
  describe("rows cut into spans", kv_name<Kv>(), heads, look);
  s.cut(between(1, 3));
  expect_same_bits("prefill of few rows", prefill(s), whole);
  s.cut(1);
  expect_same_bits("decode of single rows", decode(s), whole);
  s.add_empty();
  expect_same_bits("prefill beside spans of no rows", prefill(s), whole);
  expect_same_bits("decode beside spans of no rows", decode(s, 2), whole);
}
template <class Kv> void test_plain(Heads heads, Look look, const std::vector<Rows>& rows) {
  Scene<Kv> s(heads, look, rows);
  describe("plain", kv_name<Kv>(), heads, look);
  const auto out = plain(s);
  expect_near("out", out, twin(s), 1e-5, BF16);
  s.add_empty();
  expect_same_bits("beside spans of no rows", plain(s), out);
}

template <class Kv> void test_type() {
  for (int dim : {64, 80, 96, 128, 256}) test_tensor_cores<Kv>({4, 2, dim}, {0, 0}, {{0, 1}, {60, 9}, {14, 2}});
  test_tensor_cores<Kv>({2, 1, 64}, {20, 40}, {{500, 20}, {0, 17}, {1030, 1}});
}

// More splits than the merging block has threads; a window that begins within the splits of its span.
static void test_merge(int dim, int context, int window) {
  current_case = "merge of " + std::to_string(dim) + " context " + std::to_string(context) + " window " + std::to_string(window);
  const int heads = 2, rows = 2, first_position = context - rows;
  auto first_split = [&](int position) { return window ? std::max(0, position + 1 - window) / 512 : 0; };
  const int of_span = first_split(first_position), max_splits = (context - 1) / 512 - of_span + 2;
  Buffer<float> values(size_t(rows) * heads * max_splits * dim), sums(size_t(rows) * heads * max_splits * 2);
  values.fill(-1, 1);
  sums.fill(1, 9);
  std::vector<double> want(size_t(rows) * heads * dim);
  for (int r = 0; r < rows; ++r)
    for (int h = 0; h < heads; ++h) {
      const size_t record = size_t(r * heads + h) * max_splits;
      const int position = first_position + r, first = first_split(position) - of_span, last = position / 512 - of_span;
      double most = -1e300, sum = 0;
      for (int i = first; i <= last; ++i) most = std::max(most, double(sums[2 * (record + i)]));
      for (int i = first; i <= last; ++i) sum += exp2(sums[2 * (record + i)] - most) * sums[2 * (record + i) + 1];
      for (int i = first; i <= last; ++i)
        for (int d = 0; d < dim; ++d)
          want[(r * heads + h) * dim + d] += exp2(sums[2 * (record + i)] - most) * values[(record + i) * dim + d] / sum;
    }
  Buffer<bf16> out(want.size());
  auto spans = words({0u, uint32_t(rows), uint32_t(first_position), 0u, 0u});
  launch("attention_merge", {heads, rows, 1}, {128}, 0, out.data(), values.data(), sums.data(), spans.data(), window, heads, dim,
         rows, max_splits);
  expect_near("out", out, want, 1e-6, BF16);
}

static void all() {
  test_merge(64, 300 * 512 + 1, 0);
  test_merge(256, 128 * 512 + 2, 0);
  test_merge(80, 400 * 512, 257 * 512);
  test_type<bf16>();
  test_type<int8_t>();
  test_type<fp8>();
  // Groups of every size, some of which divide no tile; at the borders of blocks and tiles.
  for (int group = 1; group <= 17; ++group)
    test_tensor_cores<bf16>({group, 1, 64}, {0, 0}, {{group % 2 ? 15 : 62, 3}, {16 * group, 1}});
  test_tensor_cores<bf16>({40, 2, 64}, {0, 0}, {{3, 2}});
  // A prompt from its start, longer than a tile of queries; a context of three splits; sharp and flat softmax.
  test_tensor_cores<bf16>({2, 2, 64}, {0, 0}, {{0, 70}}, 8);
  test_tensor_cores<bf16>({3, 1, 64}, {0, 0}, {{1020, 12}, {511, 2}, {512, 1}}, 0.01f);
  test_tensor_cores<bf16>({2, 1, 256}, {30, 0}, {{505, 12}});
  // Windows that end in, before and after blocks and splits, and one of a single position.
  for (int window : {1, 16, 17, 64, 100, 600})
    test_tensor_cores<bf16>({2, 1, 64}, {0, window}, {{window - 1, 3}, {1022, 5}});
  for (int dim : {1, 30, 64, 100, 128, 512}) {
    test_plain<float>({2, 1, dim}, {0, 0}, {{0, 2}, {17, 1}});
    test_plain<bf16>({3, 3, dim}, {0, 5}, {{15, 3}});
  }
  test_plain<float>({2, 1, 32}, {20, 0}, {{2600, 1}});
  test_plain<int8_t>({2, 1, 72}, {0, 0}, {{40, 2}});
  test_plain<fp8>({2, 1, 72}, {0, 520}, {{1030, 1}});
}
int main(int argc, char** argv) { return run(argc, argv, all); }
