// The KV cache as the tests see it: values by slot and head, whatever their type.
#pragma once
#include <algorithm>
#include "harness.h"

namespace test {
template <class Kv> const char* kv_name();
template <> inline const char* kv_name<float>() { return "f32"; }
template <> inline const char* kv_name<bf16>() { return "bf16"; }
template <> inline const char* kv_name<int8_t>() { return "int8"; }
template <> inline const char* kv_name<fp8>() { return "fp8"; }

inline double element(float x) { return x; }
inline double element(bf16 x) { return to_float(x); }
inline double element(int8_t x) { return x; }
inline double element(fp8 x) { return to_double(x); }

template <class Kv> constexpr bool scaled = sizeof(Kv) == 1;
// The largest absolute error of a rounding that a token's largest magnitude brings, and the relative one beside it.
template <class Kv> double cache_error(double largest) {
  if (std::is_same_v<Kv, int8_t>) return largest / 127 * 0.505;
  return std::is_same_v<Kv, fp8> ? largest / 448 / 1024 * 1.01 : 0;
}
template <class Kv> double cache_relative() {
  if (std::is_same_v<Kv, fp8>) return 1.01 / 16;
  return std::is_same_v<Kv, bf16> ? BF16 : 1e-5;
}

template <class Kv> struct Cache {
  int num_kv_heads, head_dim;
  Buffer<Kv> values;
  Buffer<float> scales;
  Cache(int blocks, int num_kv_heads, int head_dim)
      : num_kv_heads(num_kv_heads), head_dim(head_dim), values(size_t(blocks) * num_kv_heads * 16 * head_dim),
        scales(scaled<Kv> ? size_t(blocks) * num_kv_heads * 16 : 0) {}
  size_t row(uint32_t slot, int head) const { return (size_t(slot / 16) * num_kv_heads + head) * 16 + slot % 16; }
  double value(uint32_t slot, int head, int d) const {
    const size_t r = row(slot, head);
    return element(values[r * head_dim + d]) * (scaled<Kv> ? scales[r] : 1.0);
  }
  float* scale_data() const { return scaled<Kv> ? scales.data() : nullptr; }
  bool is_written(size_t i) const {
    const auto* p = reinterpret_cast<const unsigned char*>(&values[i]);
    return std::any_of(p, p + sizeof(Kv), [](unsigned char b) { return b != 0xff; });
  }
  // Random values at one slot and head; `size` their magnitude.
  void randomise(uint32_t slot, int head, float size) {
    const size_t r = row(slot, head);
    for (int d = 0; d < head_dim; ++d) set(values[r * head_dim + d], uniform(-size, size));
    if (scaled<Kv>) scales[r] = uniform(0.5f, 1.f) * size / (std::is_same_v<Kv, int8_t> ? 127 : 448);
  }

 private:
  static void set(float& to, float x) { to = x; }
  static void set(bf16& to, float x) { to = to_bf16(x); }
  static void set(int8_t& to, float) { to = int8_t(between(-127, 127)); }
  static void set(fp8& to, float) { to = random_fp8(); }
};
}  // namespace test
