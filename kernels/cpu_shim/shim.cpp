// Launches: the scheduler of a block's fibers, the table of kernels, the C interface.
#include "garrick_shim.h"
#include <algorithm>
#include <map>
#include <random>
#include "device.h"
#include "registry.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace shim {
thread_local State* thread_state = nullptr;

namespace {
constexpr size_t MAX_SMEM = 99 << 10;  // what a block of every chip may have: sm_86, 89 and 120 give no more
constexpr unsigned MAX_GRID_YZ = 65535;

void fiber_main() {
  (*state().kernel)();
  Fiber& f = *state().current;
  if (!f.open.empty()) f.groups.push_back(std::move(f.open));
  finish_copies(0);
  Warp& warp = state().warps[f.warp];
  f.done = true;
  --state().live;
  warp.live &= ~(1u << f.lane);
  // An exited thread counts as arrived.
  if (state().live && state().sync.arrived == state().live) open_barrier(state().sync);
  for (auto& e : warp.exchanges) {
    const unsigned expected = __builtin_popcount(e.mask & warp.live);
    if (e.barrier.arrived && e.barrier.arrived == expected) open_barrier(e.barrier);
  }
  for (;;) to_scheduler();
}

void begin_block() {
  const unsigned n = state().block.x * state().block.y * state().block.z;
  state().live = n;
  state().sync = {};
  state().warps.assign((n + WARP - 1) / WARP, Warp());
  state().fibers.assign(n, Fiber());
  state().dynamic = new_shared(state().dynamic_bytes);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(state().stacks.data(), state().stacks.size());  // frames that were left, not returned from
#endif
  if (state().stacks.size() < n * STACK_BYTES) state().stacks = std::vector<char>(n * STACK_BYTES);
  for (unsigned i = 0; i < n; ++i) {
    Fiber& f = state().fibers[i];
    f.lane = i % WARP;
    f.warp = i / WARP;
    state().warps[f.warp].live |= 1u << f.lane;
    f.thread = dim3(i % state().block.x, i / state().block.x % state().block.y, i / (state().block.x * state().block.y));
    prepare(f.context, state().stacks.data() + i * STACK_BYTES, fiber_main);
  }
}

void end_block() {
  free(state().dynamic);
  for (auto& a : state().shared) free(a.memory);
  state().shared.clear();
  state().current = nullptr;
}

// One turn for each lane of a warp that can run, in this order; whether there was one. A fault leaves at once.
bool run_warp(unsigned warp, const std::vector<unsigned>& lanes) {
  bool progress = false;
  for (unsigned lane : lanes) {
    const unsigned i = warp * WARP + lane;
    if (i >= state().fibers.size()) continue;
    Fiber& f = state().fibers[i];
    if (f.done || (f.waits_on && *f.waits_on == f.waits_for)) continue;
    progress = true;
    state().current = &f;
    switch_to(state().scheduler, f.context);
    if (!state().error.empty()) break;
  }
  return progress;
}

// Lets fibers run until none is left. Warps run as far ahead of each other as barriers let them: the first one (or the
// last) until it waits for others; in random order any one for a random number of turns.
void schedule(uint32_t order) {
  std::vector<unsigned> warps(state().warps.size()), lanes(WARP);
  for (unsigned i = 0; i < warps.size(); ++i) warps[i] = i;
  for (unsigned i = 0; i < WARP; ++i) lanes[i] = i;
  if (order == GARRICK_SHIM_REVERSE) {
    std::reverse(warps.begin(), warps.end());
    std::reverse(lanes.begin(), lanes.end());
  }
  const bool random_order = order >= GARRICK_SHIM_RANDOM;
  const dim3 b = state().block_index;
  std::mt19937 random(order * 2654435761u + b.x * 7919 + b.y * 104729 + b.z * 1299709);
  while (state().live) {
    if (random_order) std::shuffle(warps.begin(), warps.end(), random);
    bool progress = false;
    for (unsigned warp : warps) {
      unsigned turns = random_order ? 1 + random() % 64 : ~0u;
      do {
        if (random_order && turns % 8 == 0) std::shuffle(lanes.begin(), lanes.end(), random);
        if (!run_warp(warp, lanes)) break;
        progress = true;
        if (!state().error.empty()) return;
      } while (--turns);
    }
    if (progress) continue;
    auto stuck = std::find_if(state().fibers.begin(), state().fibers.end(), [](const Fiber& f) { return !f.done; });
    return set_fault("deadlock: threads wait for others that will not come", stuck->line, *stuck);
  }
}

std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> table;
  return table;
}
thread_local std::string last_error;

int fail(int code, std::string text) {
  last_error = std::move(text);
  return code;
}

const Kernel* find(const char* name) {
  auto entry = kernels().find(name);
  return entry == kernels().end() ? nullptr : &entry->second;
}
}  // namespace

bool run_block(uint32_t order) {
  begin_block();
  schedule(order);
  end_block();
  return state().error.empty();
}

void add_kernel(Kernel kernel) {
  std::string name = kernel.name;
  if (!kernels().emplace(name, std::move(kernel)).second) {
    fprintf(stderr, "two kernels are called %s\n", name.c_str());
    abort();
  }
}
}  // namespace shim

using namespace shim;
#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int garrick_shim_launch(const char* name, const uint32_t* grid, const uint32_t* block, size_t smem, void** args,
                               uint32_t order) {
  const Kernel* kernel = find(name);
  if (!kernel) return fail(GARRICK_SHIM_UNKNOWN_KERNEL, std::string("no kernel is called ") + name);
  const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
  const bool grid_fits = grid[0] && grid[1] && grid[2] && grid[1] <= MAX_GRID_YZ && grid[2] <= MAX_GRID_YZ;
  if (!threads || threads > kernel->max_threads || !grid_fits || smem > MAX_SMEM) {
    char text[200];
    snprintf(text, sizeof text, "grid (%u,%u,%u), block (%u,%u,%u) of at most %u threads, %zu bytes of shared memory",
             grid[0], grid[1], grid[2], block[0], block[1], block[2], kernel->max_threads, smem);
    return fail(GARRICK_SHIM_BAD_LAUNCH, std::string(name) + ": not launchable: " + text);
  }
  const auto thread = kernel->bind(args);
  static thread_local State own;
  thread_state = &own;
  state().grid = dim3(grid[0], grid[1], grid[2]);
  state().block = dim3(block[0], block[1], block[2]);
  state().dynamic_bytes = smem;
  state().kernel = &thread;
  state().error.clear();
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        state().block_index = dim3(x, y, z);
        if (!run_block(order)) return fail(GARRICK_SHIM_FAULT, std::string(name) + ": " + state().error);
      }
  last_error.clear();
  return GARRICK_SHIM_OK;
}

EXPORT const char* garrick_shim_error(void) { return last_error.c_str(); }
EXPORT size_t garrick_shim_num_kernels(void) { return kernels().size(); }
EXPORT const char* garrick_shim_kernel_name(size_t index) {
  if (index >= kernels().size()) return nullptr;
  return std::next(kernels().begin(), long(index))->first.c_str();
}
EXPORT uint32_t garrick_shim_max_threads(const char* name) { const Kernel* k = find(name); return k ? k->max_threads : 0; }
EXPORT int garrick_shim_num_params(const char* name) { const Kernel* k = find(name); return k ? k->num_params : -1; }
