// The interface of cpu_shim/garrick_shim.h on a GPU: the tests of kernels/tests, linked with this, run the cubins.
//
// The driver's library is opened at run time, so that nothing of CUDA is needed to build this. Every buffer of a test has a
// twin of the same size on the device, in plain memory: all of them go there before a launch and come back after it, and
// pointers among the arguments, and in buffers that hold pointers, are translated. So a kernel that writes into a buffer it
// was not given is found too, and compute-sanitizer sees the borders of each. Orders of threads mean nothing here.
//
// Environment: GARRICK_CUBINS, a folder of .cubin files for this GPU; GARRICK_LIBCUDA, another library than libcuda.so.1.
#include <dlfcn.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>
#include "garrick_shim.h"
#include "driver.h"

namespace {
using Address = unsigned long long;  // CUdeviceptr
using Handle = void*;                // CUcontext, CUmodule, CUfunction, CUstream
constexpr int UNAVAILABLE = 69;      // EX_UNAVAILABLE of sysexits.h
constexpr int NOT_FOUND = 500;       // CUDA_ERROR_NOT_FOUND
constexpr int MAX_DYNAMIC_SHARED = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr size_t PLAIN_SHARED = 48 << 10;

[[noreturn]] void unavailable(const std::string& why) {
  printf("no GPU to run on: %s\n", why.c_str());
  exit(UNAVAILABLE);
}

struct Cuda {
  int (*init)(unsigned);
  int (*device_get)(int*, int);
  int (*retain)(Handle*, int);
  int (*set_current)(Handle);
  int (*synchronize)();
  int (*error_name)(int, const char**);
  int (*module_load)(Handle*, const void*);
  int (*module_function)(Handle*, Handle, const char*);
  int (*set_attribute)(Handle, int, int);
  int (*param_info)(Handle, size_t, size_t*, size_t*);
  int (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**, void**);
  int (*allocate)(Address*, size_t);
  int (*free)(Address);
  int (*upload)(Address, const void*, size_t);
  int (*download)(void*, Address, size_t);

  Cuda() {
    const char* name = getenv("GARRICK_LIBCUDA");
    if (!name) name = "libcuda.so.1";
    void* library = dlopen(name, RTLD_NOW);
    if (!library) unavailable(dlerror());
    auto bind = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, symbol));
      if (!function) unavailable(std::string(name) + " has no " + symbol + "; a driver for CUDA 12.4 or later is needed");
    };
    bind(init, "cuInit");
    bind(device_get, "cuDeviceGet");
    bind(retain, "cuDevicePrimaryCtxRetain");
    bind(set_current, "cuCtxSetCurrent");
    bind(synchronize, "cuCtxSynchronize");
    bind(error_name, "cuGetErrorName");
    bind(module_load, "cuModuleLoadData");
    bind(module_function, "cuModuleGetFunction");
    bind(set_attribute, "cuFuncSetAttribute");
    bind(param_info, "cuFuncGetParamInfo");
    bind(launch, "cuLaunchKernel");
    bind(allocate, "cuMemAlloc_v2");
    bind(free, "cuMemFree_v2");
    bind(upload, "cuMemcpyHtoD_v2");
    bind(download, "cuMemcpyDtoH_v2");
  }
};

struct Kernel {
  Handle function;
  std::vector<size_t> param_bytes;
};
struct Twin {
  size_t bytes;
  bool holds_pointers;
  Address address;
};

// One context on the first GPU, the kernels of all cubins, and the twins by their host addresses.
class Gpu {
  Cuda cuda;
  std::vector<Handle> modules;
  std::map<std::string, Kernel> kernels;
  std::map<uintptr_t, Twin> twins;

 public:
  std::string error;

  Gpu() {
    int device = 0;
    Handle context = nullptr;
    for (int code : {cuda.init(0), cuda.device_get(&device, 0), cuda.retain(&context, device), cuda.set_current(context)})
      if (code) unavailable(name_of(code));
    const char* folder = getenv("GARRICK_CUBINS");
    if (!folder) unavailable("GARRICK_CUBINS names no folder");
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() != ".cubin") continue;
      std::ifstream file(entry.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
      modules.emplace_back();
      if (int code = cuda.module_load(&modules.back(), bytes.data())) unavailable(entry.path().string() + ": " + name_of(code));
    }
    if (modules.empty()) unavailable(std::string(folder) + " has no cubin");
  }

  std::string name_of(int code) {
    const char* name = nullptr;
    return cuda.error_name(code, &name) || !name ? "error " + std::to_string(code) : name;
  }

  // A kernel by name, null where no cubin has it.
  const Kernel* find(const char* name) {
    if (auto known = kernels.find(name); known != kernels.end()) return &known->second;
    for (Handle module : modules) {
      Kernel kernel{};
      const int code = cuda.module_function(&kernel.function, module, name);
      if (code == NOT_FOUND) continue;
      if (code) {
        error = std::string(name) + ": " + name_of(code);
        return nullptr;
      }
      size_t offset, bytes;
      for (size_t i = 0; cuda.param_info(kernel.function, i, &offset, &bytes) == 0; ++i) kernel.param_bytes.push_back(bytes);
      return &kernels.emplace(name, kernel).first->second;
    }
    error = std::string("no kernel is called ") + name;
    return nullptr;
  }

  void map(const void* host, size_t bytes, bool holds_pointers) {
    Twin twin{bytes, holds_pointers, 0};
    // After a fault nothing can be had; the launch says so.
    cuda.allocate(&twin.address, std::max<size_t>(bytes, 1));
    twins[uintptr_t(host)] = twin;
  }
  void unmap(const void* host) {
    auto twin = twins.find(uintptr_t(host));
    cuda.free(twin->second.address);
    twins.erase(twin);
  }

  // Where the device has what the host has at `host`; what is in no buffer stays as it is.
  Address translate(uint64_t host) const {
    auto next = twins.upper_bound(host);
    if (next == twins.begin()) return host;
    const auto& [begin, twin] = *std::prev(next);
    return host - begin <= twin.bytes ? twin.address + (host - begin) : host;
  }

  int upload() {
    for (const auto& [begin, twin] : twins) {
      const void* from = reinterpret_cast<const void*>(begin);
      std::vector<uint64_t> translated;
      if (twin.holds_pointers) {
        translated.resize(twin.bytes / 8);
        memcpy(translated.data(), from, translated.size() * 8);
        for (auto& pointer : translated) pointer = translate(pointer);
        from = translated.data();
      }
      if (!twin.bytes) continue;
      if (int code = cuda.upload(twin.address, from, twin.bytes)) return code;
    }
    return 0;
  }
  int download() {
    for (const auto& [begin, twin] : twins)
      if (twin.bytes && !twin.holds_pointers)
        if (int code = cuda.download(reinterpret_cast<void*>(begin), twin.address, twin.bytes)) return code;
    return 0;
  }

  int launch(const char* name, const uint32_t* grid, const uint32_t* block, size_t smem, void** args) {
    const Kernel* kernel = find(name);
    if (!kernel) return GARRICK_SHIM_UNKNOWN_KERNEL;
    std::vector<uint64_t> values(kernel->param_bytes.size());
    std::vector<void*> pointers;
    for (size_t i = 0; i < values.size(); ++i) {
      memcpy(&values[i], args[i], kernel->param_bytes[i]);
      if (kernel->param_bytes[i] == 8) values[i] = translate(values[i]);
      pointers.push_back(&values[i]);
    }
    if (smem > PLAIN_SHARED)
      if (int code = cuda.set_attribute(kernel->function, MAX_DYNAMIC_SHARED, int(smem))) return failed(name, "shared memory", code);
    if (int code = upload()) return failed(name, "upload", code);
    if (int code = cuda.launch(kernel->function, grid[0], grid[1], grid[2], block[0], block[1], block[2], unsigned(smem),
                               nullptr, pointers.data(), nullptr))
      return failed(name, "launch", code);
    if (int code = cuda.synchronize()) return failed(name, "kernel", code);
    if (int code = download()) return failed(name, "download", code);
    error.clear();
    return GARRICK_SHIM_OK;
  }
  int failed(const char* name, const char* what, int code) {
    error = std::string(name) + ": " + what + ": " + name_of(code);
    return GARRICK_SHIM_FAULT;
  }
};

// Never destroyed: buffers may outlive it, and the driver cleans up.
Gpu& gpu() {
  static Gpu* gpu = new Gpu;
  return *gpu;
}
}  // namespace

extern "C" {
int garrick_shim_launch(const char* name, const uint32_t* grid, const uint32_t* block, size_t smem, void** args, uint32_t) {
  return gpu().launch(name, grid, block, smem, args);
}
const char* garrick_shim_error() { return gpu().error.c_str(); }
int garrick_shim_num_params(const char* name) {
  const Kernel* kernel = gpu().find(name);
  return kernel ? int(kernel->param_bytes.size()) : -1;
}
void garrick_gpu_map(const void* host, size_t bytes, bool holds_pointers) { gpu().map(host, bytes, holds_pointers); }
void garrick_gpu_unmap(const void* host) { gpu().unmap(host); }
}
