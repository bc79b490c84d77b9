// The C interface of libgarrick_kernels_shim.so: kernels by name, launched with cuLaunchKernel's arguments.
//
// Any thread may launch, while others do. Pointers among the arguments are host memory.
#pragma once
#include <cstddef>
#include <cstdint>

// In which order the warps and lanes of a block take turns: the first warp as far as it can before the next, the last one
// first, or at random with seed `order - GARRICK_SHIM_RANDOM`. A result that depends on it is a race.
enum { GARRICK_SHIM_FORWARD = 0, GARRICK_SHIM_REVERSE = 1, GARRICK_SHIM_RANDOM = 2 };

// What garrick_shim_launch returns.
enum { GARRICK_SHIM_OK = 0, GARRICK_SHIM_UNKNOWN_KERNEL = 1, GARRICK_SHIM_BAD_LAUNCH = 2, GARRICK_SHIM_FAULT = 3 };

extern "C" {
// Runs a kernel to its end. `grid` and `block` are x, y, z; `smem` is dynamic shared memory in bytes; `args[i]` points at
// the value of parameter i. After anything but GARRICK_SHIM_OK, what the kernel writes is unspecified.
int garrick_shim_launch(const char* name, const uint32_t* grid, const uint32_t* block, size_t smem, void** args,
                        uint32_t order);
// Why this thread's last launch failed; empty after a success. Valid until the thread's next launch.
const char* garrick_shim_error(void);
// The number of kernels, and the name of one of them (null past the end), in alphabetical order.
size_t garrick_shim_num_kernels(void);
const char* garrick_shim_kernel_name(size_t index);
// The most threads a block of this kernel may have; 0 for an unknown name.
uint32_t garrick_shim_max_threads(const char* name);
// The number of parameters of this kernel, or -1 for an unknown name.
int garrick_shim_num_params(const char* name);
}
