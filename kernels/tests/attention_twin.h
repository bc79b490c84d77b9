// What the tests of attention share: one twin for all its kernels, and the comparison of each with it and with the others:
// decode and prefill give a row the same bits, however the rows were put into spans.
#pragma once
#include "kv_twin.h"

namespace test {
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
inline size_t ring_bytes(int dim, size_t element, int buffers) {
  if (element == 2) return buffers * 64 * (dim + 8) * 2;
  return buffers * 64 * (dim + 4) + (dim > 128 ? 1 : 2) * 64 * (dim + 8) * 2 + 512;
}
inline int prefill_queries(int dim) { return dim == 256 ? 32 : 128; }
inline size_t prefill_bytes(int dim, size_t element) {
  return ring_bytes(dim, element, dim == 256 ? 2 : 3) + prefill_queries(dim) * (dim + 8) * 2 + (dim == 256 ? 2112 : 4160);
}
inline size_t decode_bytes(int dim, size_t element) {
  const int buffers = dim == 256 ? 2 : element == 1 ? 3 : 4;
  return ring_bytes(dim, element, buffers) + 16 * (dim + 8) * 2 + 256 + (element == 1 ? 2 : 1) * 16 * 72 * 2;
}
template <class Kv> std::string name_of(const char* kind, int dim = 0) {
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

inline void describe(const char* what, const char* kv, Heads h, Look l) {
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
}  // namespace test
