// Which rows an expert's product reads and writes.
#pragma once
#include "dev.h"

// Row i of an expert's product: gathered from the step's rows, or scattered to entries.
struct ExpertRows {
  const uint32_t* order;  // of this expert
  int start, per_row;
  bool gathers;
  __device__ __forceinline__ int from(int i) const { return gathers ? static_cast<int>(order[i]) / per_row : start + i; }
  __device__ __forceinline__ int to(int i) const { return gathers ? start + i : static_cast<int>(order[i]); }
};
