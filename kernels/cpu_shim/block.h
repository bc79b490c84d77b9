// One block of threads at a time: its fibers, barriers, shared memory and faults.
//
// Owns the running block's state (one for each thread that launches). Invariants: a fiber runs until it waits
// or ends; a fault ends the launch, its fibers are abandoned where they stand (kernels own nothing that would leak).
#pragma once
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>
#include "fiber.h"

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace shim {
constexpr unsigned WARP = 32;
constexpr unsigned MAX_MASKS = 8;

struct Barrier { unsigned arrived = 0, generation = 0; int line = 0; };
// Where the lanes of one mask give each other values; two sets, so that a fast lane does not overwrite what a slow one reads.
struct Exchange { unsigned mask = 0; Barrier barrier; alignas(16) char slot[2][WARP][32]; };
// What a warp's latest mma.sync made, and in which generation of the full mask's exchange.
struct Product { bool is_made = false; unsigned generation = 0; float values[16][8]; };
struct Warp { unsigned live = 0; Exchange exchanges[MAX_MASKS]; Product product; };
// A cp.async under way: `bytes` of 16 come from `from`, the rest are zeros.
struct Copy { void* to; const void* from; unsigned bytes, size; };  // zeros from `bytes` to `size`
struct Fiber {
  Context context;
  dim3 thread{0, 0, 0};
  unsigned lane = 0, warp = 0;
  bool done = false;
  const unsigned* waits_on = nullptr;  // asleep while *waits_on == waits_for
  unsigned waits_for = 0;
  int line = 0;
  std::vector<std::vector<Copy>> groups;  // committed copies
  std::vector<Copy> open;                 // not yet committed
};
// A SHARED array of the running block, found by the address of its declaration's key.
struct SharedArray { const void* key; void* memory; };
struct State {
  dim3 grid, block, block_index;
  unsigned live = 0;
  Barrier sync;
  std::vector<Warp> warps;
  std::vector<Fiber> fibers;
  std::vector<char> stacks;
  void* dynamic = nullptr;
  size_t dynamic_bytes = 0;
  std::vector<SharedArray> shared;
  Fiber* current = nullptr;
  Context scheduler;
  const std::function<void()>* kernel = nullptr;
  std::string error;
};
// A thread's launches have a state of their own. Loaded with the library or with dlopen, a pointer fits the room that there
// is for the fast model.
extern thread_local State* thread_state __attribute__((tls_model("initial-exec")));
inline State& state() { return *thread_state; }

inline void to_scheduler() { switch_to(state().current->context, state().scheduler); }

inline void set_fault(const char* what, int line, const Fiber& f) {
  char text[256];
  snprintf(text, sizeof text, "%s (line %d) in block (%u,%u,%u) thread (%u,%u,%u)", what, line, state().block_index.x,
           state().block_index.y, state().block_index.z, f.thread.x, f.thread.y, f.thread.z);
  if (state().error.empty()) state().error = text;
}
// Ends the launch with this text. It does not return, but the compiler must not know: ASan would look for the end of the
// fiber's stack at the call.
inline void fault(const char* what, int line) {
  set_fault(what, line, *state().current);
  while (!state().error.empty()) to_scheduler();
}

inline void open_barrier(Barrier& b) { b.arrived = 0; ++b.generation; }
// Waits until `expected` threads have come; all must come from the same line.
inline void arrive(Barrier& b, unsigned expected, int line) {
  if (b.arrived == 0) b.line = line;
  else if (b.line != line) fault("threads of one barrier are at different lines", line);
  if (++b.arrived == expected) return open_barrier(b);
  Fiber& f = *state().current;
  f.waits_on = &b.generation; f.waits_for = b.generation; f.line = line;
  to_scheduler();
  f.waits_on = nullptr;
}

// Shared memory starts as NaN bytes, so that a read before a write shows, and has its exact size, so that ASan sees its end.
inline void* new_shared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes ? bytes : 1)) abort();
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(memory)[i] = 0xff;
  return memory;
}
inline void* shared_array(const void* key, size_t bytes) {
  for (auto& a : state().shared) if (a.key == key) return a.memory;
  state().shared.push_back({key, new_shared(bytes)});
  return state().shared.back().memory;
}

// Runs the block `state().block_index` of `state().kernel`; false after a fault.
bool run_block(uint32_t order);
}  // namespace shim
