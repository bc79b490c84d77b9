// Experts: ranking against a sort, grouping against a count, and a whole layer against a twin.
#include <algorithm>
#include "harness.h"
using namespace test;

struct Route { std::vector<uint32_t> experts; std::vector<double> weights; };
static Route route_twin(const Buffer<float>& logits, int rows, int num_experts, int per_row, bool renormalise) {
  Route route;
  for (int r = 0; r < rows; ++r) {
    const float* l = &logits[r * num_experts];
    std::vector<uint32_t> ranked(num_experts);
    double sum = 0, chosen = 0;
    for (int e = 0; e < num_experts; ++e) {
      ranked[e] = e;
      sum += exp(double(l[e]));
    }
    std::stable_sort(ranked.begin(), ranked.end(), [&](uint32_t a, uint32_t b) { return l[a] > l[b]; });
    for (int i = 0; i < per_row; ++i) chosen += exp(double(l[ranked[i]])) / sum;
    for (int i = 0; i < per_row; ++i) {
      route.experts.push_back(ranked[i]);
      route.weights.push_back(exp(double(l[ranked[i]])) / sum / (renormalise ? chosen : 1));
    }
  }
  return route;
}

static void expect_words(const char* what, const Buffer<uint32_t>& got, const std::vector<uint32_t>& want) {
  expect(got.guards_whole(), std::string(what) + ": written beyond its end");
  expect_same_bits(what, got, words(want));
}

static void test_route(int rows, int num_experts, int per_row, bool renormalise) {
  current_case = "moe_route " + std::to_string(num_experts) + "/" + std::to_string(per_row);
  Buffer<float> logits(rows * num_experts), weights(rows * per_row);
  Buffer<uint32_t> experts(rows * per_row);
  logits.fill(-4, 4);
  for (int e = 0; e < num_experts; e += 2) logits[e] = 1.5f;  // ties
  launch("moe_route", {uint32_t(rows + 7) / 8}, {256}, 0, experts.data(), weights.data(), logits.data(), rows, num_experts,
         per_row, int(renormalise));
  const Route want = route_twin(logits, rows, num_experts, per_row, renormalise);
  expect_words("experts", experts, want.experts);
  expect_near("weights", weights, want.weights, 1e-6, 1e-5);
}

static void group_twin(const Buffer<uint32_t>& experts, int num_experts, std::vector<uint32_t>& order,
                       std::vector<uint32_t>& offsets) {
  for (int e = 0; e <= num_experts; ++e) {
    offsets.push_back(uint32_t(order.size()));
    for (size_t i = 0; i < experts.size(); ++i) if (experts[i] == uint32_t(e)) order.push_back(uint32_t(i));
  }
}
static void test_group(int entries, int num_experts) {
  current_case = "moe_group " + std::to_string(entries);
  Buffer<uint32_t> experts(entries), order(entries), offsets(num_experts + 1);
  for (int i = 0; i < entries; ++i)
    experts[i] = uint32_t(between(0, 1) ? between(0, num_experts - 1) : num_experts / 2);
  launch("moe_group", {uint32_t(num_experts)}, {256}, 0, order.data(), offsets.data(), experts.data(), entries);
  std::vector<uint32_t> want_order, want_offsets;
  group_twin(experts, num_experts, want_order, want_offsets);
  expect_words("order", order, want_order);
  expect_words("offsets", offsets, want_offsets);
}

struct Layer { int rows, num_experts, per_row, hidden, inter; };
struct Tile { const char *gather, *scatter; int m, n, threads; size_t smem; };
static const Tile TILES[] = {{"moe_gather_gemm_m16", "moe_scatter_gemm_m16", 16, 32, 64, 7 * 48 * 136 * 2},
                             {"moe_gather_gemm_m64", "moe_scatter_gemm_m64", 64, 64, 128, 5 * 128 * 72 * 2}};

// One expert's weights each, and their addresses as the device has them.
struct Experts {
  std::vector<Buffer<bf16>> weights;
  Buffer<const bf16*> addresses;
  Experts(int num, int n, int k) : addresses(num) {
    for (int e = 0; e < num; ++e) {
      weights.emplace_back(size_t(n) * k);
      weights.back().fill(-1, 1);
      addresses[e] = weights.back().data();
    }
  }
};
static double dot(const bf16* a, const bf16* b, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += double(to_float(a[i])) * to_float(b[i]);
  return sum;
}

// The two products and the sum; between them the activation's place is taken by the first half of gate_up.
static void test_layer(const Layer& l, const Tile& t) {
  current_case = std::string(t.gather) + " " + std::to_string(l.rows) + " rows";
  const int entries = l.rows * l.per_row;
  Buffer<bf16> x(l.rows * l.hidden), up(entries * l.inter), down(entries * l.hidden), out(l.rows * l.hidden);
  Buffer<uint32_t> experts(entries), order(entries), offsets(l.num_experts + 1);
  Buffer<float> weights(entries);
  x.fill(-1, 1);
  weights.fill(0, 1);
  for (int i = 0; i < entries; ++i) experts[i] = uint32_t((i / l.per_row * 3 + i % l.per_row * 2) % (l.num_experts - 1));
  const Experts first(l.num_experts, l.inter, l.hidden), second(l.num_experts, l.hidden, l.inter);
  const uint32_t tiles = (l.rows + t.m - 1) / t.m, n = l.num_experts;
  auto columns = [&](int width) { return uint32_t((width + t.n - 1) / t.n); };
  const Dim block{uint32_t(t.threads)};
  launch("moe_group", {n}, {256}, 0, order.data(), offsets.data(), experts.data(), entries);
  launch(t.gather, {tiles, columns(l.inter), n}, block, t.smem, up.data(), x.data(), first.addresses.data(), order.data(),
         offsets.data(), l.per_row, l.inter, l.hidden);
  std::vector<double> want;
  for (int i = 0; i < entries; ++i)
    for (int c = 0; c < l.inter; ++c)
      want.push_back(dot(&x[order[i] / l.per_row * l.hidden], &first.weights[experts[order[i]]][c * l.hidden], l.hidden));
  expect_near("gathered", up, want, 1e-5, BF16);
  launch(t.scatter, {tiles, columns(l.hidden), n}, block, t.smem, down.data(), up.data(), second.addresses.data(), order.data(),
         offsets.data(), l.per_row, l.hidden, l.inter);
  want.assign(size_t(entries) * l.hidden, 0);
  for (int i = 0; i < entries; ++i)
    for (int c = 0; c < l.hidden; ++c)
      want[order[i] * l.hidden + c] = dot(&up[i * l.inter], &second.weights[experts[order[i]]][c * l.inter], l.inter);
  expect_near("scattered", down, want, 1e-5, BF16);
  launch("moe_sum", {uint32_t(l.rows), 2}, {256}, 0, out.data(), down.data(), weights.data(), l.per_row, l.hidden);
  want.assign(size_t(l.rows) * l.hidden, 0);
  for (int i = 0; i < entries; ++i)
    for (int c = 0; c < l.hidden; ++c) want[i / l.per_row * l.hidden + c] += weights[i] * double(to_float(down[i * l.hidden + c]));
  expect_near("sum", out, want, 1e-5, BF16);
}

static void all() {
  test_route(1, 8, 2, true);
  test_route(9, 8, 8, false);
  test_route(3, 60, 4, false);
  test_route(3, 128, 8, true);
  test_route(2, 512, 10, true);
  test_route(1, 1, 1, false);
  for (int entries : {1, 8, 300, 1030}) test_group(entries, 7);
  for (const Tile& t : TILES) {
    test_layer({1, 8, 2, 64, 32}, t);
    test_layer({70, 5, 2, 40, 24}, t);
    test_layer({19, 6, 3, 33, 20}, t);
  }
}
int main(int argc, char** argv) { return run(argc, argv, all); }
