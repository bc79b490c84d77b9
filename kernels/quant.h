// Quantised weights: numbers in groups of 32 along k, and records of what they are multiplied by.
//
// A weight is `scale * number`, or `scale * number + min`. Numbers are whole, of four bits (0 to 15) or eight (-128 to 127),
// or FP8; bf16 holds all of them exactly. A matrix is [n, groups] of groups, then [n, records] of records; eight groups share
// a record, and the last record of a row is filled up with zeros; with FP8 a row has one scale. kernels/README.md has the
// bytes.
#pragma once
#include "fp8.h"
#include "values.h"

constexpr int GROUP = 32, RECORD_GROUPS = 8, RECORD_K = GROUP * RECORD_GROUPS;

// What a record holds. `h` is a float16.
enum Records {
  SCALES = 0,  // 8 x h scale; where there is a minimum it is -8 * scale: numbers around 8
  SHARED = 1,  // 4 x (h scale, h min), each of two groups
  SUPER = 2,   // h scale, h min, 8 x low byte, 8 x high half byte: 12 bits of a group, 6 by which its scale is multiplied
               // and then 6 for its min
  PAIRS = 3,   // 8 x (h scale, h min)
  HALVES = 4,  // 16 x int8 by which the scale of 16 numbers is multiplied, h scale, 14 bytes of padding
  ROW = 5,     // float32 scale of all of the row
};
__device__ __forceinline__ int record_bytes(int records) { return records == ROW ? 4 : records >= PAIRS ? 32 : 16; }

template <int BITS_, bool HAS_MIN_, bool HALVED_> struct Quant {
  static constexpr int BITS = BITS_, GROUP_BYTES = GROUP * BITS / 8;
  static constexpr bool HAS_MIN = HAS_MIN_, HALVED = HALVED_;  // HALVED: each half of a group has its scale
  static constexpr int MAX_RECORD_BYTES = HAS_MIN || HALVED ? 32 : 16;
  static constexpr bool OF_ROWS = false;  // rows have one scale, which is applied to whole sums
};
using Int4 = Quant<4, true, false>;
using Int8 = Quant<8, false, false>;
using Int8Min = Quant<8, true, false>;
using Int8Half = Quant<8, false, true>;
struct Fp8 : Quant<8, false, false> {
  static constexpr int MAX_RECORD_BYTES = 0;  // of what is copied beside the groups
  static constexpr bool OF_ROWS = true;
};

// Where a matrix's parts are.
template <class F> struct Packed {
  const uint8_t *groups, *records;
  int kind;  // Records
  int row_groups, row_records;
  __device__ __forceinline__ Packed(const uint8_t* w, int n, int k, int kind) : kind(kind) {
    row_groups = (k + GROUP - 1) / GROUP;
    row_records = F::OF_ROWS ? 1 : (row_groups + RECORD_GROUPS - 1) / RECORD_GROUPS;
    groups = w;
    records = w + static_cast<size_t>(n) * row_groups * F::GROUP_BYTES;
  }
  __device__ __forceinline__ const uint8_t* group(int row, int index) const {
    return groups + (static_cast<size_t>(row) * row_groups + index) * F::GROUP_BYTES;
  }
  __device__ __forceinline__ const uint8_t* record(int row, int index) const {
    return records + (static_cast<size_t>(row) * row_records + (F::OF_ROWS ? 0 : index)) * record_bytes(kind);
  }
  // Where a row has one scale.
  __device__ __forceinline__ float scale(int row) const { return load_vector<float>(record(row, 0)); }
};

// Numbers 2 * quarter + {0, 1} + {0, 8, 16, 24} of a group, as pairs of bf16: what a lane of mma has of a column.
// They stand together: in four bits number 2 * quarter + 8 * p + i is half byte p + 4 * i, in eight byte
// 4 * (p / 2) + p % 2 + 2 * i of the quarter's.
template <class F> __device__ __forceinline__ void load_numbers(uint32_t (&pairs)[4], const uint8_t* group, int quarter) {
  constexpr uint32_t ONE = 0x3f803f80u, MINUS_ONE = 0xbf80bf80u, BASE = 0x43004300u, MINUS_BASE = 0xc300c300u;  // 128
  if constexpr (F::BITS == 4) {
    const uint32_t word = load_vector<uint32_t>(group + 4 * quarter);
#pragma unroll
    for (int p = 0; p < 4; ++p) pairs[p] = fma_bf16x2((word >> 4 * p & 0x000f000fu) | BASE, ONE, MINUS_BASE);
  } else {
    const uint2 words = load_vector<uint2>(group + 8 * quarter);
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      if constexpr (F::OF_ROWS) {
        pairs[p] = decode_fp8x2((p < 2 ? words.x : words.y) << (1 - p % 2) * 8);
        continue;
      }
      const uint32_t two = (p < 2 ? words.x : words.y) >> p % 2 * 8;
      // 128 + the low seven bits, less 128, or 256 where the sign is set.
      pairs[p] = fma_bf16x2((two & 0x00800080u) | BASE, MINUS_ONE, (two & 0x007f007fu) | BASE);
    }
  }
}

// How to read a matrix's records: what else would be asked for every group.
struct RecordReader {
  int shift, step;         // group i has its scale at step * (i >> shift)
  int to_min;              // and its min so many bytes behind
  bool is_super;           // with factors of their own; otherwise min is multiplied by
  float of_min;
  __device__ __forceinline__ explicit RecordReader(int kind)
      : shift(kind == SHARED), step(kind == SUPER ? 0 : kind == SCALES ? 2 : 4), to_min(kind == SCALES ? 0 : 2),
        is_super(kind == SUPER), of_min(kind == SCALES ? -8.f : 1.f) {}
};

struct Range { float scale, min; };
// What group `index` of a record, or half of it, is multiplied by. Exact, and without a branch.
template <class F>
__device__ __forceinline__ Range range_of(const uint8_t* record, int index, int half, const RecordReader& reader) {
  const auto half_at = [record](int at) { return half_to_float(load_vector<uint16_t>(record + at)); };
  if constexpr (F::OF_ROWS) {
    return {load_vector<float>(record), 0.f};
  } else if constexpr (F::HALVED) {
    return {half_at(16) * static_cast<int8_t>(record[2 * index + half]), 0.f};
  } else if constexpr (!F::HAS_MIN) {
    return {half_at(2 * index), 0.f};
  } else {
    const int at = reader.step * (index >> reader.shift);
    const uint32_t high = load_vector<uint32_t>(record + 12) >> 4 * index & 15u, factors = record[4 + index] | high << 8;
    const float of_scale = reader.is_super ? static_cast<float>(factors & 63u) : 1.f;
    const float of_min = reader.is_super ? static_cast<float>(factors >> 6) : reader.of_min;
    return {half_at(at) * of_scale, half_at(at + reader.to_min) * of_min};
  }
}
