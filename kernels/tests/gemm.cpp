// Matrix products against a twin; all tiles give the same bits, as do all numbers of rows.
#include "harness.h"
using namespace test;

struct Tile { const char* name; int m, n, threads; size_t smem; };
static const Tile TILES[] = {
    {"gemm_m16", 16, 32, 64, 7 * 48 * 136 * 2},
    {"gemm_m64", 64, 64, 128, 5 * 128 * 72 * 2},
    {"gemm_m64_n128", 64, 128, 128, 3 * 192 * 72 * 2},
    {"gemm_m128", 128, 128, 128, 5 * 256 * 36 * 2},
};
struct Shape { int m, n, k; };

template <class Out>
static Buffer<Out> gemm(const Tile& t, Shape s, const Buffer<bf16>& x, const Buffer<bf16>& w, const float* bias) {
  Buffer<Out> out(size_t(s.m) * s.n);
  const std::string name = std::string(t.name) + (sizeof(Out) == 4 ? "_f32" : "_bf16");
  const Dim grid{uint32_t((s.m + t.m - 1) / t.m), uint32_t((s.n + t.n - 1) / t.n)};
  launch(name.c_str(), grid, {uint32_t(t.threads)}, t.smem, out.data(), x.data(), w.data(), bias, s.m, s.n, s.k);
  return out;
}

template <class Out> static void test_shape(Shape s, bool with_bias, size_t shift) {
  Buffer<bf16> x(size_t(s.m) * s.k, shift), w(size_t(s.n) * s.k);
  Buffer<float> bias(s.n);
  x.fill(-1, 1);
  w.fill(-1, 1);
  bias.fill(-3, 3);
  std::vector<double> want;
  for (int i = 0; i < s.m; ++i)
    for (int j = 0; j < s.n; ++j) {
      double sum = with_bias ? bias[j] : 0;
      for (int c = 0; c < s.k; ++c) sum += double(to_float(x[size_t(i) * s.k + c])) * to_float(w[size_t(j) * s.k + c]);
      want.push_back(sum);
    }
  const float* b = with_bias ? bias.data() : nullptr;
  Buffer<Out> first(0);
  for (const Tile& t : TILES) {
    current_case = std::string(t.name) + " " + std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
    const auto out = gemm<Out>(t, s, x, w, b);
    expect_near("out", out, want, 1e-5, sizeof(Out) == 4 ? 1e-5 : BF16);
    if (&t == TILES) first = out;
    else expect_same_bits("another tile", out, first);
  }
  // The last row alone.
  current_case += ", one row";
  Buffer<bf16> last(s.k);
  for (int c = 0; c < s.k; ++c) last[c] = x[size_t(s.m - 1) * s.k + c];
  const auto alone = gemm<Out>(TILES[0], {1, s.n, s.k}, last, w, b);
  expect(!memcmp(alone.data(), &first[size_t(s.m - 1) * s.n], s.n * sizeof(Out)), "a row has other bits in company");
}

static void all() {
  const Shape shapes[] = {{1, 1, 1},    {1, 64, 64},  {2, 33, 8},    {16, 32, 200}, {17, 31, 72}, {5, 130, 24},
                          {70, 66, 96}, {130, 40, 40}, {65, 129, 33}, {3, 48, 520},  {20, 20, 7}};
  for (const Shape& s : shapes) {
    test_shape<float>(s, false, 0);
    test_shape<bf16>(s, true, 0);
  }
  test_shape<float>({9, 40, 64}, true, 1);  // not aligned
}
int main(int argc, char** argv) { return run(argc, argv, all); }
