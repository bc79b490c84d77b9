// Shuffles and votes of a warp: lanes meet at a barrier of their mask and read each other's values.
#pragma once
#include <cstring>
#include "block.h"

namespace shim {
inline Exchange& exchange_of(unsigned mask, int line) {
  Warp& warp = state().warps[state().current->warp];
  if (!(mask >> state().current->lane & 1)) fault("lane is not in its own mask", line);
  for (auto& e : warp.exchanges) if (e.mask == mask || e.mask == 0) { e.mask = mask; return e; }
  fault("more lane masks in one warp than the shim holds", line);
  return warp.exchanges[0];
}
// What every lane of a mask gave.
template <class T> struct Lanes {
  const Exchange* exchange;
  unsigned set, live;
  int line;
  T operator[](unsigned lane) const {
    if (!((exchange->mask & live) >> lane & 1)) fault("shuffle reads a lane outside the mask or exited", line);
    T value;
    memcpy(&value, exchange->slot[set][lane], sizeof value);
    return value;
  }
};
template <class T> Lanes<T> gather(unsigned mask, const T& value, int line) {
  static_assert(sizeof(T) <= sizeof(Exchange{}.slot[0][0]), "an exchange slot holds a value");
  Exchange& e = exchange_of(mask, line);
  const unsigned set = e.barrier.generation & 1, live = state().warps[state().current->warp].live;
  memcpy(e.slot[set][state().current->lane], &value, sizeof value);
  arrive(e.barrier, __builtin_popcount(mask & live), line);
  return {&e, set, live, line};
}
}  // namespace shim

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) { shim::gather(mask, 0, line); }
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, int line = __builtin_LINE()) {
  auto lanes = shim::gather(mask, v, line);
  return lanes[(shim::state().current->lane & ~(width - 1)) + (from & (width - 1))];
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32, int line = __builtin_LINE()) {
  auto lanes = shim::gather(mask, v, line);
  const int lane = shim::state().current->lane, from = lane ^ with;
  return (from & ~(width - 1)) > (lane | (width - 1)) ? v : lanes[from];
}
template <class T> T __shfl_down_sync(unsigned mask, T v, int by, int width = 32, int line = __builtin_LINE()) {
  auto lanes = shim::gather(mask, v, line);
  const int lane = shim::state().current->lane;
  return (lane & (width - 1)) + by >= width ? v : lanes[lane + by];
}
template <class T> T __shfl_up_sync(unsigned mask, T v, int by, int width = 32, int line = __builtin_LINE()) {
  auto lanes = shim::gather(mask, v, line);
  const int lane = shim::state().current->lane;
  return (lane & (width - 1)) < by ? v : lanes[lane - by];
}
inline unsigned __ballot_sync(unsigned mask, int vote, int line = __builtin_LINE()) {
  auto lanes = shim::gather(mask, int(vote != 0), line);
  unsigned votes = 0;
  for (unsigned i = 0; i < shim::WARP; ++i) if ((mask & lanes.live) >> i & 1) votes |= unsigned(lanes[i]) << i;
  return votes;
}
