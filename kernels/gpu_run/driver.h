// What a test's buffers tell driver.cpp, beside the interface of cpu_shim/garrick_shim.h.
#pragma once
#include <cstddef>

extern "C" {
// `bytes` of host memory get a twin on the device until they are unmapped. What holds pointers is not copied back.
void garrick_gpu_map(const void* host, size_t bytes, bool holds_pointers);
void garrick_gpu_unmap(const void* host);
}
