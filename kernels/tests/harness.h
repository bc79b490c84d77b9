// What the tests share: buffers with canaries, launches by name in three orders, comparison with a twin.
//
// A twin computes in double precision from the same (already rounded) inputs; it is the specification of its kernel.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>
#include "garrick_shim.h"
#ifdef GARRICK_ON_GPU
#include "driver.h"
#endif

namespace test {
struct bf16 { uint16_t u; };
inline float to_float(float x) { return x; }
inline float to_float(bf16 b) { uint32_t u = uint32_t(b.u) << 16; float x; memcpy(&x, &u, 4); return x; }
inline bf16 to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t(u >> 16 | 64)};
  return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
inline void assign(float& to, float x) { to = x; }
inline void assign(bf16& to, float x) { to = to_bf16(x); }

inline int failures = 0, checks = 0;
inline uint32_t order = GARRICK_SHIM_FORWARD;
inline std::mt19937 random_bits;
inline std::string current_case;

inline bool stops_at_failure = false;

inline void fail(const std::string& why) {
  if (++failures <= 20) printf("FAILED: %s (order %u): %s\n", current_case.c_str(), order, why.c_str());
  if (stops_at_failure) exit(1);
}
inline void expect(bool ok, const std::string& what) {
  ++checks;
  if (!ok) fail(what);
}
// E4M3 by its definition.
struct fp8 { uint8_t u; };
inline double to_double(fp8 x) {
  const int exponent = x.u >> 3 & 15, mantissa = x.u & 7;
  const double magnitude = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return x.u & 0x80 ? -magnitude : magnitude;
}
inline float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_bits); }
inline int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }
inline fp8 random_fp8() { return {uint8_t(between(0, 126) | between(0, 1) << 7)}; }

// Memory that starts as NaN bytes and, where the tests run on a GPU, has a twin there.
inline std::shared_ptr<unsigned char> allocate(size_t bytes, [[maybe_unused]] bool holds_pointers) {
  void* p = nullptr;
  if (posix_memalign(&p, 64, bytes ? bytes : 1)) abort();
  memset(p, 0xff, bytes);
#ifdef GARRICK_ON_GPU
  garrick_gpu_map(p, bytes, holds_pointers);
  return {static_cast<unsigned char*>(p), [](unsigned char* p) { garrick_gpu_unmap(p); free(p); }};
#else
  return {static_cast<unsigned char*>(p), free};
#endif
}

// `n` values that start as NaN bytes, between guards of the same bytes; without guards, but exactly as long, where a checker
// knows the ends: under ASan, or with GARRICK_NO_GUARDS for compute-sanitizer.
// `shift` elements off the alignment of 64 bytes that allocations have.
template <class T> class Buffer {
#if defined(__SANITIZE_ADDRESS__) || defined(GARRICK_NO_GUARDS)
  static constexpr size_t GUARD = 0;
#else
  static constexpr size_t GUARD = 256;
#endif
  size_t n, shift, bytes;
  std::shared_ptr<unsigned char> memory;

 public:
  explicit Buffer(size_t n, size_t shift = 0) : n(n), shift(shift), bytes((n + shift) * sizeof(T) + 2 * GUARD),
                                            memory(allocate(bytes, std::is_pointer_v<T>)) {}
  T* data() const { return reinterpret_cast<T*>(memory.get() + GUARD) + shift; }
  size_t size() const { return n; }
  T& operator[](size_t i) const { return data()[i]; }
  Buffer copy() const {
    Buffer b(n, shift);
    memcpy(b.data(), data(), n * sizeof(T));
    return b;
  }
  const Buffer& fill(float low, float high) const {
    for (size_t i = 0; i < n; ++i) assign(data()[i], uniform(low, high));
    return *this;
  }
  bool guards_whole() const {
    const unsigned char* p = memory.get();
    const size_t begin = GUARD + shift * sizeof(T), end = begin + n * sizeof(T);
    for (size_t i = 0; i < bytes; ++i) if ((i < begin || i >= end) && p[i] != 0xff) return false;
    return true;
  }
};
inline Buffer<uint32_t> words(const std::vector<uint32_t>& values) {
  Buffer<uint32_t> b(values.size());
  if (!values.empty()) memcpy(b.data(), values.data(), values.size() * 4);
  return b;
}

struct Dim { uint32_t x = 1, y = 1, z = 1; };
// Launches and returns the code; arguments have the parameters' exact types.
template <class... A> int try_launch(const char* name, Dim grid, Dim block, size_t smem, A... args) {
  std::tuple<A...> values(args...);
  void* pointers[sizeof...(A) + 1];
  int i = 0;
  std::apply([&](auto&... v) { ((pointers[i++] = const_cast<void*>(static_cast<const void*>(&v))), ...); }, values);
  const uint32_t g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
  const int params = garrick_shim_num_params(name);
  if (params >= 0 && params != int(sizeof...(A))) fail(std::string(name) + " has another number of parameters");
  return garrick_shim_launch(name, g, b, smem, pointers, order);
}
template <class... A> bool launch(const char* name, Dim grid, Dim block, size_t smem, A... args) {
  const int code = try_launch(name, grid, block, smem, args...);
  expect(code == GARRICK_SHIM_OK, garrick_shim_error());
  return code == GARRICK_SHIM_OK;
}

// |got - want| <= absolute + relative * |want|, everywhere, and nothing written beyond the buffer.
template <class T>
void expect_near(const char* what, const Buffer<T>& got, const std::vector<double>& want, double absolute,
                 double relative) {
  expect(got.guards_whole(), std::string(what) + ": written beyond its end");
  expect(got.size() == want.size(), std::string(what) + ": the twin has another size");
  size_t worst = 0;
  double excess = -1;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(to_float(got[i]) - want[i]), allowed = absolute + relative * std::fabs(want[i]);
    const double over = std::isnan(error) ? 1e300 : error - allowed;
    if (over > 0 && over > excess) { excess = over; worst = i; }
  }
  ++checks;
  if (excess <= 0) return;
  char text[200];
  snprintf(text, sizeof text, "%s[%zu] is %.9g, the twin says %.9g", what, worst, to_float(got[worst]), want[worst]);
  fail(text);
}
template <class T> void expect_same_bits(const char* what, const Buffer<T>& a, const Buffer<T>& b) {
  expect(a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(T)), std::string(what) + ": other bits");
}
constexpr double BF16 = 1.0 / 256;  // half a unit in the last place of a bf16, relatively

// Arguments: the random order's seed; the only order to run in (forward, reverse, random), or `first`: stop at the first
// failure.
inline int run(int argc, char** argv, void (*all)()) {
  const uint32_t seed = argc > 1 ? uint32_t(atoi(argv[1])) : std::random_device{}() % 100000;
  const std::string mode = argc > 2 ? argv[2] : "";
  stops_at_failure = mode == "first";
  const std::pair<const char*, uint32_t> orders[] = {
      {"forward", GARRICK_SHIM_FORWARD}, {"reverse", GARRICK_SHIM_REVERSE}, {"random", GARRICK_SHIM_RANDOM + seed}};
  for (auto [name, o] : orders) {
    if (!mode.empty() && mode != "first" && mode != name) continue;
    order = o;
    random_bits.seed(seed + 1);
    all();
    if (failures) break;
  }
  printf("%s %s: %d checks, %d failed, seed %u\n", argv[0], mode.c_str(), checks, failures, seed);
  return failures != 0 || checks == 0;
}
}  // namespace test
