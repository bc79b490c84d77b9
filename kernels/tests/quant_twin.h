// Quantised matrices of random numbers, and what their weights are, by kernels/README.md.
#pragma once
#include "harness.h"

namespace test {
enum Records { SCALES, SHARED, SUPER, PAIRS, HALVES, ROW };
// A kernel's format with one of the records that it takes.
struct QuantFormat { const char* name; int bits; Records records; };
inline const QuantFormat QUANT_FORMATS[] = {
    {"int4", 4, SCALES}, {"int4", 4, SHARED},    {"int4", 4, SUPER},     {"int4", 4, PAIRS},
    {"int8", 8, SCALES}, {"int8_min", 8, SUPER}, {"int8_min", 8, PAIRS}, {"int8_half", 8, HALVES}, {"fp8", 8, ROW},
};

// A float16 of a magnitude between 2^-9 and 2^-5, and what it is.
struct Half { uint16_t bits; double value; };
inline Half random_half(bool is_signed) {
  const int exponent = between(6, 9), fraction = between(0, 1023), sign = is_signed ? between(0, 1) : 0;
  return {uint16_t(sign << 15 | exponent << 10 | fraction), (sign ? -1 : 1) * std::ldexp(1024 + fraction, exponent - 25)};
}

// The place of number i of a group whose numbers have eight bits.
inline int place_of_byte(int i) { return 8 * (i % 8 / 2) + 4 * (i / 16) + i / 8 % 2 + 2 * (i % 2); }

// Row-major [n, k] in a buffer of groups and records.
struct QuantMatrix {
  QuantFormat format;
  int n, k, groups, num_records;
  Buffer<uint8_t> bytes;
  std::vector<double> values;

  static int record_bytes(Records r) { return r == ROW ? 4 : r == PAIRS || r == HALVES ? 32 : 16; }
  QuantMatrix(QuantFormat format, int n, int k)
      : format(format), n(n), k(k), groups((k + 31) / 32),
        num_records(format.records == ROW ? 1 : (groups + 7) / 8),
        bytes(size_t(n) * (groups * 4 * format.bits + num_records * record_bytes(format.records))),
        values(size_t(n) * k) {
    for (int row = 0; row < n; ++row)
      for (int r = 0; r < num_records; ++r) format.records == ROW ? fill_row(row) : fill_record(row, r);
  }

  void fill_row(int row) {
    const float scale = uniform(-1.f / 64, 1.f / 64);
    memcpy(&bytes[size_t(n) * groups * 32 + size_t(row) * 4], &scale, 4);
    for (int i = 0; i < 32 * groups; ++i) {
      const fp8 number = random_fp8();
      bytes[(size_t(row) * groups + i / 32) * 32 + place_of_byte(i % 32)] = number.u;
      if (i < k) values[size_t(row) * k + i] = scale * to_double(number);
    }
  }

  void put_half(uint8_t* at, uint16_t bits) { memcpy(at, &bits, 2); }
  void fill_record(int row, int r) {
    uint8_t* const record = &bytes[size_t(n) * groups * 4 * format.bits + (size_t(row) * num_records + r) * record_bytes(format.records)];
    memset(record, 0, record_bytes(format.records));
    const Half d = random_half(true), m = random_half(true);
    if (format.records == SUPER) { put_half(record, d.bits); put_half(record + 2, m.bits); }
    if (format.records == HALVES) put_half(record + 16, d.bits);
    Half shared[2] = {};
    for (int g = 0; g < 8 && 8 * r + g < groups; ++g) {
      double scale[2], min = 0;
      const Half own = random_half(true), own_min = random_half(true);
      scale[0] = scale[1] = own.value;
      switch (format.records) {
        case SCALES:
          put_half(record + 2 * g, own.bits);
          if (format.bits == 4) min = -8 * own.value;
          break;
        case SHARED:
        case PAIRS: {
          if (format.records == PAIRS || g % 2 == 0) { shared[0] = own; shared[1] = own_min; }
          uint8_t* const pair = record + 4 * (format.records == PAIRS ? g : g / 2);
          put_half(pair, shared[0].bits);
          put_half(pair + 2, shared[1].bits);
          scale[0] = scale[1] = shared[0].value;
          min = shared[1].value;
          break;
        }
        case SUPER: {
          const int of_scale = between(0, 63), of_min = between(0, 63), code = of_scale | of_min << 6;
          record[4 + g] = uint8_t(code);
          record[12 + g / 2] |= uint8_t(code >> 8 << g % 2 * 4);
          scale[0] = scale[1] = d.value * of_scale / 16;
          put_half(record, uint16_t(d.bits - (4 << 10)));  // a sixteenth
          min = m.value * of_min;
          break;
        }
        case HALVES:
          for (int half = 0; half < 2; ++half) {
            const int factor = between(-128, 127);
            record[2 * g + half] = uint8_t(factor);
            scale[half] = d.value * factor / 16;
          }
          put_half(record + 16, uint16_t(d.bits - (4 << 10)));
          break;
        case ROW: abort();  // by fill_row
      }
      fill_group(row, 8 * r + g, scale, min);
    }
  }
  void fill_group(int row, int g, const double (&scale)[2], double min) {
    uint8_t* const group = &bytes[(size_t(row) * groups + g) * 4 * format.bits];
    memset(group, 0, 4 * format.bits);
    for (int i = 0; i < 32; ++i) {
      // Behind the end anything may stand.
      const int number = format.bits == 4 ? between(0, 15) : between(-128, 127);
      const int quarter = i % 8 / 2, p = i / 8, odd = i % 2;
      if (format.bits == 4) group[4 * quarter + (p + 4 * odd) / 2] |= uint8_t(number << (p + 4 * odd) % 2 * 4);
      else group[place_of_byte(i)] = uint8_t(number);
      if (32 * g + i < k) values[size_t(row) * k + 32 * g + i] = scale[i / 16] * number + min;
    }
  }
};
}  // namespace test
