// Embeddings, gathered rows, conversions, biases, copied blocks, norms, activations, residual additions, logits.
#include "harness.h"
using namespace test;

static const Dim BLOCK{256};
static const int WIDTHS[] = {1, 7, 8, 64, 100, 576, 2050, 2048 + 8, 8192 + 8};

template <class T> static std::vector<double> values_of(const Buffer<T>& b) {
  std::vector<double> v(b.size());
  for (size_t i = 0; i < b.size(); ++i) v[i] = to_float(b[i]);
  return v;
}
static uint32_t chunks() { return uint32_t(between(1, 3)); }

static void test_embed() {
  for (int width : WIDTHS) {
    current_case = "embed " + std::to_string(width);
    const int vocab = 11;
    auto tokens = words({10, 0, 3, 3, 7});
    Buffer<bf16> table(size_t(vocab) * width);
    table.fill(-2, 2);
    Buffer<float> out(tokens.size() * width);
    launch("embed", {uint32_t(tokens.size()), chunks()}, BLOCK, 0, out.data(), table.data(), tokens.data(), 1.5f, width);
    std::vector<double> want;
    for (size_t r = 0; r < tokens.size(); ++r)
      for (int i = 0; i < width; ++i) want.push_back(1.5 * to_float(table[tokens[r] * width + i]));
    expect_near("out", out, want, 0, 1e-7);
  }
}

template <class T> static void test_gather(const char* name) {
  for (int width : WIDTHS) {
    current_case = std::string(name) + " " + std::to_string(width);
    auto rows = words({4, 0, 2});
    Buffer<T> x(5 * width), out(3 * width);
    x.fill(-3, 3);
    launch(name, {3, chunks()}, BLOCK, 0, out.data(), x.data(), rows.data(), width);
    std::vector<double> want;
    for (int r = 0; r < 3; ++r) for (int i = 0; i < width; ++i) want.push_back(to_float(x[rows[r] * width + i]));
    expect_near("out", out, want, 0, 0);
  }
}

template <class Out, class In> static void test_convert(const char* name) {
  for (int count : {1, 8, 13, 5000})
    for (size_t shift : {0, 3}) {
      current_case = std::string(name) + " " + std::to_string(count);
      Buffer<In> x(count, shift);
      Buffer<Out> out(count, shift);
      x.fill(-9, 9);
      launch(name, {chunks()}, BLOCK, 0, out.data(), x.data(), count);
      std::vector<double> want;
      for (int i = 0; i < count; ++i) want.push_back(to_float(to_bf16(to_float(x[i]))));
      expect_near("out", out, want, 0, 0);
    }
}

template <class T> static void test_bias(const char* name) {
  for (int width : WIDTHS) {
    current_case = std::string(name) + " " + std::to_string(width);
    Buffer<T> x(3 * width);
    Buffer<float> bias(width);
    x.fill(-3, 3);
    bias.fill(-1, 1);
    auto want = values_of(x);
    for (size_t i = 0; i < want.size(); ++i) want[i] += bias[i % width];
    launch(name, {3, chunks()}, BLOCK, 0, x.data(), bias.data(), width);
    expect_near("x", x, want, 1e-6, sizeof(T) == 2 ? BF16 : 1e-6);
  }
}

static void test_copy_blocks() {
  for (int bytes : {16, 2048, 16 * 777}) {
    current_case = "copy_blocks " + std::to_string(bytes);
    // The second pair reads what the first wrote; the last copies a block to itself.
    auto pairs = words({0, 3, 3, 1, 2, 4, 2, 2});
    Buffer<uint8_t> a(5 * bytes), b(5 * bytes);
    for (auto* x : {&a, &b}) for (size_t i = 0; i < x->size(); ++i) (*x)[i] = uint8_t(random_bits());
    auto want_a = a.copy(), want_b = b.copy();
    for (auto* x : {&want_a, &want_b})
      for (int p = 0; p < 4; ++p) memmove(&(*x)[pairs[2 * p + 1] * bytes], &(*x)[pairs[2 * p] * bytes], bytes);
    Buffer<uint8_t*> regions(2);
    regions[0] = a.data();
    regions[1] = b.data();
    launch("copy_blocks", {chunks(), 2}, BLOCK, 0, regions.data(), pairs.data(), 4, bytes);
    expect_same_bits("first region", a, want_a);
    expect_same_bits("second region", b, want_b);
    expect(a.guards_whole() && b.guards_whole(), "written beyond a region");
  }
}

static std::vector<double> norm_twin(const std::vector<double>& x, const Buffer<float>& weight, double eps) {
  const size_t width = weight.size();
  std::vector<double> out(x.size());
  for (size_t r = 0; r < x.size() / width; ++r) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += x[r * width + i] * x[r * width + i];
    for (size_t i = 0; i < width; ++i) out[r * width + i] = x[r * width + i] / sqrt(squares / width + eps) * weight[i];
  }
  return out;
}

template <class Out, class In> static void test_norm(const char* name, bool in_place) {
  for (int width : WIDTHS)
    for (uint32_t rows : {1u, 3u}) {
      current_case = std::string(name) + " " + std::to_string(width);
      Buffer<In> x(rows * width);
      Buffer<float> weight(width);
      x.fill(-3, 3);
      weight.fill(0.5, 2);
      const auto want = norm_twin(values_of(x), weight, 1e-3);
      Buffer<Out> separate(rows * width);
      Out* out = in_place ? reinterpret_cast<Out*>(x.data()) : separate.data();
      launch(name, {rows}, BLOCK, 0, out, x.data(), weight.data(), 1e-3f, width);
      const double relative = sizeof(Out) == 2 ? BF16 : 1e-5;
      if constexpr (std::is_same_v<Out, In>) expect_near("out", in_place ? x : separate, want, 1e-6, relative);
      else expect_near("out", separate, want, 1e-6, relative);
    }
}

template <class Delta> static void test_add_scaled(const char* name, const char* fused) {
  for (int width : WIDTHS) {
    current_case = std::string(fused) + " " + std::to_string(width);
    const uint32_t rows = 2;
    Buffer<float> stream(rows * width, width % 2), weight(width);  // aligned or not
    Buffer<Delta> delta(rows * width);
    stream.fill(-3, 3);
    delta.fill(-2, 2);
    weight.fill(0.5, 2);
    auto want = values_of(stream);
    for (size_t i = 0; i < want.size(); ++i) want[i] += 0.25 * to_float(delta[i]);
    auto alone = stream.copy();
    launch(name, {chunks()}, BLOCK, 0, alone.data(), delta.data(), 0.25f, int(rows) * width);
    expect_near("x", alone, want, 1e-6, 1e-6);
    Buffer<bf16> normed(rows * width);
    launch(fused, {rows}, BLOCK, 0, stream.data(), normed.data(), delta.data(), 0.25f, weight.data(), 1e-5f, width);
    expect_near("stream", stream, want, 1e-6, 1e-6);
    expect_near("normed", normed, norm_twin(want, weight, 1e-5), 1e-6, BF16);
    // The program may take either way.
    Buffer<bf16> apart(rows * width);
    launch("rms_norm_f32_bf16", {rows}, BLOCK, 0, apart.data(), alone.data(), weight.data(), 1e-5f, width);
    expect_same_bits("stream of two kernels", alone, stream);
    expect_same_bits("normed of two kernels", apart, normed);
  }
}

static void test_parts() {
  for (int parts : {1, 2, 5})
    for (int count : {1, 7, 8, 13, 20, 5000}) {
      current_case = "add_parts " + std::to_string(parts) + " of " + std::to_string(count);
      Buffer<float> x(size_t(parts) * count), out(count);
      x.fill(-3, 3);
      Buffer<float> want(count);
      for (int i = 0; i < count; ++i) {
        float sum = x[i];
        for (int p = 1; p < parts; ++p) sum += x[p * count + i];
        want[i] = sum;
      }
      launch("add_parts", {chunks()}, BLOCK, 0, out.data(), x.data(), parts, count);
      expect_same_bits("out", out, want);
      expect(out.guards_whole(), "written beyond the sum");
    }
}

static double silu(double x) { return x / (1 + exp(-x)); }
static double gelu_tanh(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

static void test_gated(const char* name, double (*activation)(double)) {
  for (int inter : WIDTHS) {
    current_case = std::string(name) + " " + std::to_string(inter);
    Buffer<bf16> gate_up(2 * 2 * inter), out(2 * inter);
    gate_up.fill(-9, 9);
    gate_up[0] = to_bf16(-300);  // beyond the range of exp
    std::vector<double> want;
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < inter; ++i) {
        const auto row = &gate_up[r * 2 * inter];
        want.push_back(activation(to_float(row[i])) * to_float(row[inter + i]));
      }
    launch(name, {2, chunks()}, BLOCK, 0, out.data(), gate_up.data(), inter);
    expect_near("out", out, want, 2e-6, BF16);
  }
}

static void test_logits() {
  for (float cap : {0.f, 30.f})
    for (int count : {1, 777}) {
      current_case = "finish_logits " + std::to_string(count);
      Buffer<float> x(count);
      x.fill(-200, 200);
      std::vector<double> want;
      for (int i = 0; i < count; ++i) want.push_back(cap > 0 ? cap * tanh(0.5 * x[i] / cap) : 0.5 * x[i]);
      launch("finish_logits", {chunks()}, BLOCK, 0, x.data(), 0.5f, cap, count);
      expect_near("logits", x, want, 1e-5, 1e-6);
    }
}

static void all() {
  test_embed();
  test_gather<float>("gather_rows_f32");
  test_gather<bf16>("gather_rows_bf16");
  test_convert<bf16, float>("to_bf16");
  test_convert<float, bf16>("to_f32");
  test_bias<float>("add_bias_f32");
  test_bias<bf16>("add_bias_bf16");
  test_copy_blocks();
  test_norm<bf16, float>("rms_norm_f32_bf16", false);
  test_norm<bf16, bf16>("rms_norm_bf16_bf16", true);
  test_norm<float, float>("rms_norm_f32_f32", true);
  test_add_scaled<bf16>("add_scaled_bf16", "add_scaled_rms_norm_bf16");
  test_add_scaled<float>("add_scaled_f32", "add_scaled_rms_norm_f32");
  test_parts();
  test_gated("gated_activation_silu", silu);
  test_gated("gated_activation_gelu_tanh", gelu_tanh);
  test_logits();
}
int main(int argc, char** argv) { return run(argc, argv, all); }
