// Attention in each dimension of heads and each type of K and V, and the merging of splits.
#include "attention_twin.h"
using namespace test;

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
  for (int dim : {1, 30, 64, 100, 128, 512}) {
    test_plain<float>({2, 1, dim}, {0, 0}, {{0, 2}, {17, 1}});
    test_plain<bf16>({3, 3, dim}, {0, 5}, {{15, 3}});
  }
  test_plain<float>({2, 1, 32}, {20, 0}, {{2600, 1}});
  test_plain<int8_t>({2, 1, 72}, {0, 0}, {{40, 2}});
  test_plain<fp8>({2, 1, 72}, {0, 520}, {{1030, 1}});
}
int main(int argc, char** argv) { return run(argc, argv, all); }
