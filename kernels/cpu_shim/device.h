// The CPU twins of dev.h's inline PTX. Each does what the PTX manual says, as late as it allows, and faults on misuse.
#pragma once
#include "cuda.h"
#include "registry.h"

#define KERNEL(max_threads, name, ...)                                          \
  extern "C" void name(__VA_ARGS__);                                            \
  static const shim::Registration registration_of_##name{#name, max_threads, name}; \
  extern "C" void name(__VA_ARGS__)
#define SHARED(T, name, count)    \
  static const char key_of_##name = 0; \
  T* const name = static_cast<T*>(shim::shared_array(&key_of_##name, sizeof(T) * (count)))
#define DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(shim::state().dynamic)

struct bf16 { uint16_t u; };

namespace shim {
inline void check_aligned(const void* p, unsigned bytes, const char* what, int line) {
  if (reinterpret_cast<uintptr_t>(p) % bytes) fault(what, line);
}
// Carries out all but the latest `keep` committed groups of copies.
inline void finish_copies(size_t keep) {
  Fiber& f = *state().current;
  while (f.groups.size() > keep) {
    for (auto& c : f.groups.front()) {
      memcpy(c.to, c.from, c.bytes);
      memset(static_cast<char*>(c.to) + c.bytes, 0, c.size - c.bytes);
    }
    f.groups.erase(f.groups.begin());
  }
}
inline float half_of(uint32_t pair, int second) { return __uint_as_float(second ? pair & 0xffff0000u : pair << 16); }
}  // namespace shim

// To the nearest, ties to even; NaN stays NaN.
inline bf16 f2bf(float x) {
  const uint32_t u = __float_as_uint(x);
  if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t((u >> 16) | 64)};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
inline uint32_t pack_bf16(float low, float high) { return f2bf(low).u | uint32_t(f2bf(high).u) << 16; }
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  auto one = [&](int i) { return fmaf(shim::half_of(a, i), shim::half_of(b, i), shim::half_of(c, i)); };
  return pack_bf16(one(0), one(1));
}
inline float half_to_float(uint16_t x) {
  const int exponent = x >> 10 & 31, fraction = x & 1023;
  if (exponent == 31) return __uint_as_float((x & 0x8000u) << 16 | 0x7f800000u | uint32_t(fraction) << 13);
  const float size = exponent ? ldexpf(float(fraction | 1024), exponent - 25) : ldexpf(float(fraction), -24);
  return x & 0x8000 ? -size : size;
}
inline float fast_exp2(float x) { return exp2f(x); }
inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = a | uint64_t(b) << 32;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) r |= uint32_t(both >> 8 * (selector >> 4 * i & 7u) & 255u) << 8 * i;
  return r;
}

template <class V> V load_vector(const void* p, int line = __builtin_LINE()) {
  shim::check_aligned(p, sizeof(V), "a vector load is not aligned", line);
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V> void store_vector(void* p, const V& v, int line = __builtin_LINE()) {
  shim::check_aligned(p, sizeof(V), "a vector store is not aligned", line);
  memcpy(p, &v, sizeof v);
}

namespace shim {
// The copy happens at its wait; until then the target is NaN.
inline void begin_copy(void* to, const void* from, int bytes, unsigned size, int line) {
  const bool is_wide = size == 16;
  check_aligned(to, size, is_wide ? "cp.async writes to an address that is no multiple of 16"
                                  : "cp.async writes to an address that is no multiple of 4", line);
  check_aligned(from, size, is_wide ? "cp.async reads from an address that is no multiple of 16"
                                    : "cp.async reads from an address that is no multiple of 4", line);
  if (bytes < 0 || unsigned(bytes) > size) fault(is_wide ? "cp.async of more than 16 bytes" : "cp.async of more than 4 bytes", line);
  memset(to, 0xff, size);
  state().current->open.push_back({to, from, unsigned(bytes), size});
}
}  // namespace shim
inline void cp_async16(void* to, const void* from, int bytes = 16, int line = __builtin_LINE()) {
  shim::begin_copy(to, from, bytes, 16, line);
}
inline void cp_async4(void* to, const void* from, int bytes = 4, int line = __builtin_LINE()) {
  shim::begin_copy(to, from, bytes, 4, line);
}
inline void cp_async_commit() {
  auto* f = shim::state().current;
  f->groups.push_back(std::move(f->open));
  f->open.clear();
}
template <int N> void cp_async_wait() { shim::finish_copies(N); }

namespace shim {
// Lane l gives the address of row l % 8 of matrix l / 8; the barrier behind keeps rows as they are until all have read.
template <class Read> void ldmatrix(uint32_t (&r)[4], const void* row, int line, Read read) {
  check_aligned(row, 16, "ldmatrix of a row that is not aligned", line);
  auto rows = gather(~0u, row, line);
  for (int i = 0; i < 4; ++i) read(r[i], rows, 8 * i, state().current->lane);
  __syncwarp(~0u, line);
}
}  // namespace shim
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
  shim::ldmatrix(r, row, line, [](uint32_t& r, const auto& rows, int first, int lane) {
    memcpy(&r, static_cast<const char*>(rows[first + (lane >> 2)]) + (lane & 3) * 4, 4);
  });
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, int line = __builtin_LINE()) {
  shim::ldmatrix(r, row, line, [](uint32_t& r, const auto& rows, int first, int lane) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i)
      memcpy(&pair[i], static_cast<const char*>(rows[first + (lane & 3) * 2 + i]) + (lane >> 2) * 2, 2);
    memcpy(&r, pair, 4);
  });
}
namespace shim {
struct Fragments { uint32_t a[4], b[2]; };
// All lanes' A times B. The layout: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
inline void multiply(const Lanes<Fragments>& lanes, Product& product) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < WARP; ++lane) {
    const Fragments f = lanes[lane];
    const unsigned major = lane / 4, minor = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[major + 8 * (i & 1)][minor + half + 8 * (i >> 1)] = half_of(f.a[i], half);
      for (int i = 0; i < 2; ++i) b[minor + half + 8 * i][major] = half_of(f.b[i], half);
    }
  }
  memset(product.values, 0, sizeof product.values);
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) product.values[m][n] += a[m][k] * b[k][n];
}
}  // namespace shim
// The first lane to come back from the exchange multiplies for all; the next product waits for all lanes to come again.
inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line = __builtin_LINE()) {
  shim::Fragments own;
  memcpy(own.a, a, sizeof own.a);
  memcpy(own.b, b, sizeof own.b);
  const unsigned generation = shim::exchange_of(~0u, line).barrier.generation;
  const auto lanes = shim::gather(~0u, own, line);
  shim::Product& product = shim::state().warps[shim::state().current->warp].product;
  if (!product.is_made || product.generation != generation) {
    shim::multiply(lanes, product);
    product.is_made = true;
    product.generation = generation;
  }
  const int lane = shim::state().current->lane;
  for (int i = 0; i < 4; ++i) d[i] += product.values[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}
