// q and k norm, rotation, and what reaches the KV cache, for every type of it.
#include "kv_twin.h"
#include <algorithm>
using namespace test;

struct Case {
  int num_heads, num_kv_heads, head_dim, rotary_dim, norm;
  bool rope;
};

// The row after norm and rotation, in float64.
static std::vector<double> twin(const Case& c, const Buffer<bf16>& qkv, int row, const Buffer<float>& q_norm,
                                const Buffer<float>& k_norm, double eps, const float* cos, const float* sin) {
  const int width = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, q_width = c.num_heads * c.head_dim;
  const int rotated = q_width + c.num_kv_heads * c.head_dim;
  std::vector<double> x(width);
  for (int i = 0; i < width; ++i) x[i] = to_float(qkv[row * width + i]);
  auto normalise = [&](int from, int count, const float* weight) {
    double squares = 0;
    for (int i = 0; i < count; ++i) squares += x[from + i] * x[from + i];
    for (int i = 0; i < count; ++i) x[from + i] *= weight[i] / sqrt(squares / count + eps);
  };
  if (c.norm == 1)
    for (int h = 0; h < rotated; h += c.head_dim) normalise(h, c.head_dim, (h < q_width ? q_norm : k_norm).data());
  if (c.norm == 2) {
    normalise(0, q_width, q_norm.data());
    normalise(q_width, rotated - q_width, k_norm.data());
  }
  const int half = c.rotary_dim / 2;
  if (c.rope)
    for (int h = 0; h < rotated; h += c.head_dim)
      for (int i = 0; i < half; ++i) {
        const double a = x[h + i], b = x[h + i + half];
        x[h + i] = a * cos[i] - b * sin[i];
        x[h + i + half] = b * cos[i] + a * sin[i];
      }
  return x;
}

// What the cache may hold of `want`: the value rounded to its type.
template <class Kv>
static void check_cache(const char* what, const Cache<Kv>& cache, uint32_t slot, int head, const double* want) {
  double largest = 0;
  for (int d = 0; d < cache.head_dim; ++d) largest = std::max(largest, fabs(want[d]));
  const double step = cache_error<Kv>(largest);
  for (int d = 0; d < cache.head_dim; ++d) {
    const double got = cache.value(slot, head, d), allowed = step + cache_relative<Kv>() * fabs(want[d]) + 1e-6;
    if (!(fabs(got - want[d]) <= allowed)) {
      char text[160];
      snprintf(text, sizeof text, "%s of slot %u, head %d, [%d] is %.9g, the twin says %.9g", what, slot, head, d, got, want[d]);
      return fail(text);
    }
  }
  expect(true, what);
}

template <class Kv> static void test_case(const Case& c, size_t shift) {
  current_case = std::string("rotate_and_store_") + kv_name<Kv>() + " heads " + std::to_string(c.num_heads) + "/" +
                 std::to_string(c.num_kv_heads) + " of " + std::to_string(c.head_dim) + " norm " + std::to_string(c.norm);
  const int rows = 3, blocks = 4, max_positions = 50, half = c.rotary_dim / 2;
  const int heads = c.num_heads + 2 * c.num_kv_heads, width = heads * c.head_dim;
  const int norm_of = c.norm == 2 ? 1 : 0;
  Buffer<bf16> qkv(size_t(rows) * width, shift);
  qkv.fill(-3, 3);
  Buffer<float> cos(max_positions * half), sin(max_positions * half);
  Buffer<float> q_norm((norm_of ? c.num_heads : 1) * c.head_dim), k_norm((norm_of ? c.num_kv_heads : 1) * c.head_dim);
  q_norm.fill(0.5, 2);
  k_norm.fill(0.5, 2);
  for (int i = 0; i < max_positions * half; ++i) {
    const float angle = uniform(0, 6.28f);
    cos[i] = cosf(angle);
    sin[i] = sinf(angle);
  }
  auto positions = words({0, 49, 17}), slots = words({15, 16 * 3, 20});
  Cache<Kv> k(blocks, c.num_kv_heads, c.head_dim), v(blocks, c.num_kv_heads, c.head_dim);
  std::vector<std::vector<double>> want;
  for (int r = 0; r < rows; ++r)
    want.push_back(twin(c, qkv, r, q_norm, k_norm, 1e-5, &cos[positions[r] * half], &sin[positions[r] * half]));
  const auto before = qkv.copy();
  const uint32_t grid_y = c.norm == 2 ? 1 : uint32_t((heads + 7) / 8);
  launch((std::string("rotate_and_store_") + kv_name<Kv>()).c_str(), {rows, grid_y}, {256}, 0, qkv.data(), k.values.data(),
         v.values.data(), k.scale_data(), v.scale_data(), positions.data(), slots.data(), c.rope ? cos.data() : nullptr,
         c.rope ? sin.data() : nullptr, q_norm.data(), k_norm.data(), 1e-5f, c.norm, c.num_heads, c.num_kv_heads,
         c.head_dim, c.rotary_dim);
  std::vector<double> row_values;
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < width; ++i)
      row_values.push_back(i < c.num_heads * c.head_dim ? want[r][i] : to_float(before[r * width + i]));
  expect_near("qkv", qkv, row_values, 1e-6, BF16);
  for (int r = 0; r < rows; ++r)
    for (int h = 0; h < c.num_kv_heads; ++h) {
      const double* of_k = &want[r][(c.num_heads + h) * c.head_dim];
      check_cache("K", k, slots[r], h, of_k);
      check_cache("V", v, slots[r], h, of_k + c.num_kv_heads * c.head_dim);
    }
  for (auto* cache : {&k, &v}) {
    size_t written = 0;
    for (size_t i = 0; i < cache->values.size(); ++i) written += cache->is_written(i);
    expect(written <= size_t(rows) * c.num_kv_heads * c.head_dim, "slots of others were written");
    expect(cache->values.guards_whole() && cache->scales.guards_whole(), "written beyond the cache");
  }
}

// Not a number in a head makes what is read from a scaled cache not a number, in that head alone.
template <class Kv> static void test_poison() {
  current_case = std::string("not a number in ") + kv_name<Kv>();
  Buffer<bf16> qkv(3 * 16);
  qkv.fill(-1, 1);
  qkv[16 + 3] = bf16{0x7fc0};  // in the one head of K of the first row
  auto positions = words({0}), slots = words({2});
  Cache<Kv> k(1, 1, 16), v(1, 1, 16);
  const float* none = nullptr;
  launch((std::string("rotate_and_store_") + kv_name<Kv>()).c_str(), {1}, {256}, 0, qkv.data(), k.values.data(),
         v.values.data(), k.scale_data(), v.scale_data(), positions.data(), slots.data(), none, none, none, none, 1e-5f, 0, 1,
         1, 16, 0);
  expect(std::isnan(k.value(2, 0, 0)), "K is a number");
  expect(!std::isnan(v.value(2, 0, 0)), "V is not a number");
}

// A row that fills up a step changes nothing, whatever its position.
template <class Kv> static void test_no_slot(int norm) {
  current_case = std::string("no slot, ") + kv_name<Kv>() + " norm " + std::to_string(norm);
  const int dim = 16, width = 3 * dim;
  Buffer<bf16> qkv(2 * width);
  qkv.fill(-1, 1);
  const auto before = qkv.copy();
  Buffer<float> weight(dim);
  weight.fill(0.5, 2);
  auto positions = words({0xffffffffu, 0}), slots = words({0xffffffffu, 3});
  Cache<Kv> k(1, 1, dim), v(1, 1, dim);
  const float* none = nullptr;
  launch((std::string("rotate_and_store_") + kv_name<Kv>()).c_str(), {2}, {256}, 0, qkv.data(), k.values.data(),
         v.values.data(), k.scale_data(), v.scale_data(), positions.data(), slots.data(), none, none, weight.data(),
         weight.data(), 1e-5f, norm, 1, 1, dim, 0);
  bool is_same = true, is_changed = false;
  for (int i = 0; i < width; ++i) is_same &= qkv[i].u == before[i].u;
  for (int i = 0; i < dim; ++i) is_changed |= qkv[width + i].u != before[width + i].u;
  expect(is_same, "a row without a slot was changed");
  expect(is_changed, "the row with a slot was left as it is");
  for (auto* cache : {&k, &v}) {
    size_t written = 0;
    for (size_t i = 0; i < cache->values.size(); ++i) written += cache->is_written(i);
    expect(written <= size_t(dim) && written > 0, "slots of nobody were written, or those of the other row were not");
    expect(cache->values.guards_whole() && cache->scales.guards_whole(), "written beyond the cache");
  }
}

// E4M3 to the nearest, ties to even: with a largest magnitude of 448 the scale is one.
static void test_fp8_rounding() {
  current_case = "fp8 rounding";
  const float tiny = 1.f / 512;
  const float values[16] = {448, 17,         19,         1.0625f,    1.1875f,   -17.5f,      0.5f * tiny, 1.5f * tiny,
                            0,   2.5f * tiny, 7.5f * tiny, -3 * tiny, 0.015625f, -432, 240, 1e-6f};
  const float rounded[16] = {448, 16,       20,       1,        1.25f,     -18,  0,   2 * tiny,
                             0,   2 * tiny, 8 * tiny, -3 * tiny, 0.015625f, -448, 240, 0};
  Buffer<bf16> qkv(3 * 16);
  for (int i = 0; i < 48; ++i) qkv[i] = to_bf16(values[i % 16]);
  auto positions = words({0}), slots = words({2});
  Cache<fp8> k(1, 1, 16), v(1, 1, 16);
  const float* none = nullptr;
  launch("rotate_and_store_fp8", {1}, {256}, 0, qkv.data(), k.values.data(), v.values.data(), k.scale_data(), v.scale_data(),
         positions.data(), slots.data(), none, none, none, none, 1e-5f, 0, 1, 1, 16, 0);
  for (int d = 0; d < 16; ++d)
    expect(k.value(2, 0, d) == rounded[d] && v.value(2, 0, d) == rounded[d],
           std::to_string(values[d]) + " became " + std::to_string(k.value(2, 0, d)));
}

template <class Kv> static void test_type() {
  const Case cases[] = {
      {4, 2, 64, 64, 0, true},  {3, 1, 128, 128, 1, true}, {9, 3, 64, 32, 2, true}, {2, 2, 80, 40, 0, true},
      {5, 1, 30, 10, 1, true},  {1, 1, 256, 256, 1, true}, {2, 1, 512, 64, 2, true}, {4, 4, 16, 16, 0, false},
      {6, 2, 96, 96, 1, false},
  };
  for (const Case& c : cases) test_case<Kv>(c, 0);
  test_case<Kv>(cases[0], 1);  // not aligned
}

static void all() {
  test_type<float>();
  test_type<bf16>();
  test_type<int8_t>();
  test_type<fp8>();
  test_no_slot<float>(1);
  test_no_slot<bf16>(2);
  test_no_slot<int8_t>(1);
  test_no_slot<fp8>(2);
  test_poison<int8_t>();
  test_poison<fp8>();
  test_fp8_rounding();
}
int main(int argc, char** argv) { return run(argc, argv, all); }
