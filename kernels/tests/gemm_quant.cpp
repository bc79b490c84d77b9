// Products with quantised weights, and their embeddings, against a twin; all tiles give the same bits, as do all numbers of
// rows, alone and for experts.
#include <algorithm>
#include "quant_twin.h"
using namespace test;

struct Tile { const char* name; int m, n, threads; };
static const Tile TILES[] = {{"m16", 16, 32, 128}, {"m64", 64, 64, 128}, {"m128", 128, 64, 256}};
// Of shared memory: stages of x and w, and records.
static size_t tile_bytes(const QuantFormat& f, const Tile& t) {
  const int k = t.m == 16 ? 1024 / f.bits : 64, stages = t.m == 16 ? (f.bits == 4 ? 5 : 6) : t.m == 64 ? 4 : 3;
  const int group = 4 * f.bits, row = (k / 32 + 1) * group;
  const int records = (511 - k + stages * k) / 256, record = f.records == ROW ? 0 : !strcmp(f.name, "int8") ? 16 : 32;
  return size_t(stages) * (t.m * (k + 8) * 2 + t.n * row) + size_t(records) * t.n * record;
}
static Dim grid_of(const Tile& t, int m, int n, int experts = 1) {
  return {uint32_t((m + t.m - 1) / t.m), uint32_t((n + t.n - 1) / t.n), uint32_t(experts)};
}
struct Shape { int m, n, k; };

// `before` columns of out stand in front of the product's, `behind` after them.
struct Place { int before, behind; };
template <class Out>
static Buffer<Out> product(const Tile& t, const QuantMatrix& w, int m, const Buffer<bf16>& x, const float* bias, Place p) {
  const int stride = p.before + w.n + p.behind;
  Buffer<Out> all(size_t(m) * stride), out(size_t(m) * w.n);
  const Buffer<Out> fresh = all.copy();
  const std::string name = std::string("gemm_") + w.format.name + "_" + t.name + (sizeof(Out) == 4 ? "_f32" : "_bf16");
  launch(name.c_str(), grid_of(t, m, w.n), {uint32_t(t.threads)}, tile_bytes(w.format, t), all.data() + p.before, x.data(),
         w.bytes.data(), bias, m, w.n, w.k, int(w.format.records), stride);
  expect(all.guards_whole(), "written beyond its end");
  bool others_stay = true;
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < stride; ++j) {
      const bool is_own = j >= p.before && j < p.before + w.n;
      if (is_own) out[size_t(i) * w.n + j - p.before] = all[size_t(i) * stride + j];
      else others_stay &= !memcmp(&all[size_t(i) * stride + j], &fresh[size_t(i) * stride + j], sizeof(Out));
    }
  expect(others_stay, "columns of another product were written");
  return out;
}

static double dot(const bf16* x, const double* w, int k) {
  double sum = 0;
  for (int c = 0; c < k; ++c) sum += to_float(x[c]) * w[c];
  return sum;
}

template <class Out> static void test_shape(const QuantFormat& f, Shape s, bool with_bias, size_t shift, Place place) {
  current_case = std::string(f.name) + "/" + std::to_string(f.records) + " " + std::to_string(s.m) + "x" +
                 std::to_string(s.n) + "x" + std::to_string(s.k);
  const QuantMatrix w(f, s.n, s.k);
  Buffer<bf16> x(size_t(s.m) * s.k, shift);
  Buffer<float> bias(s.n);
  x.fill(-1, 1);
  bias.fill(-3, 3);
  std::vector<double> want;
  for (int i = 0; i < s.m; ++i)
    for (int j = 0; j < s.n; ++j)
      want.push_back((with_bias ? bias[j] : 0) + dot(&x[size_t(i) * s.k], &w.values[size_t(j) * s.k], s.k));
  const float* b = with_bias ? bias.data() : nullptr;
  Buffer<Out> first(0);
  const std::string shape = current_case;
  for (const Tile& t : TILES) {
    current_case = shape + " " + t.name;
    const auto out = product<Out>(t, w, s.m, x, b, place);
    expect_near("out", out, want, 3e-5, sizeof(Out) == 4 ? 1e-5 : BF16);
    if (&t == TILES) first = out;
    else expect_same_bits("another tile", out, first);
  }
  current_case = shape + ", one row";
  Buffer<bf16> last(s.k);
  for (int c = 0; c < s.k; ++c) last[c] = x[size_t(s.m - 1) * s.k + c];
  const auto alone = product<Out>(TILES[0], w, 1, last, b, {0, 0});
  expect(!memcmp(alone.data(), &first[size_t(s.m - 1) * s.n], s.n * sizeof(Out)), "a row has other bits in company");
}

static void test_embed(const QuantFormat& f, int vocab, int width) {
  current_case = std::string("embed_") + f.name + "/" + std::to_string(f.records) + " " + std::to_string(width);
  const QuantMatrix table(f, vocab, width);
  const Buffer<uint32_t> tokens = words({uint32_t(vocab - 1), 0, uint32_t(vocab / 2)});
  Buffer<float> out(tokens.size() * width);
  launch((std::string("embed_") + f.name).c_str(), {3, 2}, {256}, 0, out.data(), table.bytes.data(), tokens.data(), 3.5f, vocab,
         width, int(f.records));
  std::vector<double> want;
  for (size_t i = 0; i < tokens.size(); ++i)
    for (int c = 0; c < width; ++c) want.push_back(3.5 * table.values[size_t(tokens[i]) * width + c]);
  expect_near("out", out, want, 1e-12, 3e-7);
}

// Entry e of row e / per_row is some expert's; the products of both directions, and their bits against the plain ones.
static void test_experts(const QuantFormat& f, const Tile& t, int rows, int num_experts, int per_row, int n, int k) {
  current_case = std::string("experts ") + f.name + "/" + std::to_string(f.records) + " " + t.name + " " + std::to_string(rows);
  std::vector<QuantMatrix> w;
  Buffer<const uint8_t*> addresses(num_experts);
  for (int e = 0; e < num_experts; ++e) {
    w.emplace_back(f, n, k);
    addresses[e] = w.back().bytes.data();
  }
  const int entries = rows * per_row;
  std::vector<uint32_t> by_expert, begins;
  for (int e = 0; e < num_experts; ++e) {
    begins.push_back(uint32_t(by_expert.size()));
    for (int i = 0; i < entries; ++i) if ((i / per_row * 3 + i % per_row) % (num_experts - 1) == e) by_expert.push_back(uint32_t(i));
  }
  begins.push_back(uint32_t(by_expert.size()));
  const Buffer<uint32_t> order = words(by_expert), offsets = words(begins);
  for (const bool gathers : {true, false}) {
    Buffer<bf16> x(size_t(gathers ? rows : entries) * k), out(size_t(entries) * n);
    x.fill(-1, 1);
    const std::string name = std::string(gathers ? "moe_gather_gemm_" : "moe_scatter_gemm_") + f.name + "_" + t.name;
    launch(name.c_str(), grid_of(t, rows, n, num_experts), {uint32_t(t.threads)}, tile_bytes(f, t), out.data(), x.data(),
           addresses.data(), order.data(), offsets.data(), per_row, n, k, int(f.records), n);
    std::vector<double> want(size_t(entries) * n);
    for (int e = 0; e < num_experts; ++e)
      for (uint32_t i = begins[e]; i < begins[e + 1]; ++i)
        for (int c = 0; c < n; ++c)
          want[size_t(gathers ? i : order[i]) * n + c] =
              dot(&x[size_t(gathers ? order[i] / per_row : i) * k], &w[e].values[size_t(c) * k], k);
    expect_near(gathers ? "gathered" : "scattered", out, want, 3e-5, BF16);
    // The first entry alone, through the plain product.
    const uint32_t expert = uint32_t(std::upper_bound(begins.begin(), begins.end(), 0u) - begins.begin() - 1);
    Buffer<bf16> one(k);
    for (int c = 0; c < k; ++c) one[c] = x[size_t(gathers ? order[0] / per_row : 0) * k + c];
    const auto alone = product<bf16>(TILES[1], w[expert], 1, one, nullptr, {0, 0});
    expect(!memcmp(alone.data(), &out[size_t(gathers ? 0 : order[0]) * n], n * sizeof(bf16)), "an expert's row has other bits");
  }
}

// Activations in FP8, laid out as weights are.
static void test_to_fp8(int rows, int width, size_t shift) {
  current_case = "to_fp8 " + std::to_string(rows) + "x" + std::to_string(width);
  const int groups = (width + 31) / 32;
  Buffer<bf16> x(size_t(rows) * width, shift);
  Buffer<uint8_t> out(size_t(rows) * groups * 32);
  Buffer<float> scales(rows);
  for (int i = 0; i < rows; ++i)
    for (int c = 0; c < width; ++c) {
      const float size = std::ldexp(1.f, i % 5 * 9 - 20) * std::ldexp(1.f, -between(0, 12));
      assign(x[size_t(i) * width + c], i == 2 ? 0.f : uniform(-size, size));
    }
  if (rows > 4) {
    assign(x[size_t(3) * width], NAN);
    assign(x[size_t(4) * width + width - 1], -INFINITY);
  }
  launch("to_fp8", {uint32_t(rows)}, {256}, 0, out.data(), scales.data(), x.data(), width);
  expect(out.guards_whole() && scales.guards_whole(), "written beyond its end");
  for (int i = 0; i < rows; ++i) {
    double largest = 0;
    for (int c = 0; c < width; ++c) largest = std::max(largest, double(std::fabs(to_float(x[size_t(i) * width + c]))));
    const bool spoiled = rows > 4 && (i == 3 || i == 4);
    expect(spoiled ? std::isnan(scales[i]) : std::fabs(scales[i] - largest / 448) <= 1e-6 * largest, "another scale");
    for (int c = 0; c < groups * 32; ++c) {
      const double got = to_double({out[(size_t(i) * groups + c / 32) * 32 + place_of_byte(c % 32)]});
      if (spoiled || c >= width) {
        expect(got == 0, "no zero behind the end, or in a row that is not finite");
        continue;
      }
      // Half of the step at this magnitude: of four bits, or of the smallest numbers.
      const double want = to_float(x[size_t(i) * width + c]), scale = largest / 448;
      expect(std::fabs(got * scale - want) <= std::max(std::fabs(want) / 16, scale / 1024) * 1.0001, "not the nearest");
    }
  }
}

static void all() {
  for (int width : {1, 31, 32, 250, 1030}) {
    test_to_fp8(1, width, 0);
    test_to_fp8(6, width, width % 2);
  }
  const Shape shapes[] = {{1, 1, 1}, {2, 33, 8}, {17, 31, 72}, {5, 66, 200}, {70, 64, 96}, {130, 40, 33}, {3, 9, 1608}};
  for (const QuantFormat& f : QUANT_FORMATS) {
    for (const Shape& s : shapes) {
      test_shape<float>(f, s, false, 0, {0, 0});
      test_shape<bf16>(f, s, true, 0, {s.n % 2 ? 3 : 4, s.n % 2 ? 2 : 3});
    }
    test_shape<bf16>(f, {9, 40, 64}, true, 1, {1, 1});  // x and out not aligned
    for (int width : {1, 40, 300}) test_embed(f, 7, width);
    for (int i = 0; i < 2; ++i) {
      test_experts(f, TILES[i], 1, 4, 2, 24, 40);
      test_experts(f, TILES[i], 19 + 50 * i, 5, 3, 35, 300);
    }
  }
}
int main(int argc, char** argv) { return run(argc, argv, all); }
