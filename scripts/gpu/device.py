"""The GPU through the driver's library alone (libcuda.so.1, by ctypes): whether there is one, and kernels launched by name.

    device.py         prints the GPU; ends with 69 and says why where there is none that can be used
    device.py cubins  puts the kernels for its chip into target/gpu-build/cubins, compiled on the spot where the archive
                      cannot be read
"""

import ctypes
import io
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h
ROOT = pathlib.Path(__file__).resolve().parents[2]
PREBUILT = ROOT / "kernels/prebuilt"
CUBINS = ROOT / "target/gpu-build/cubins"
OLDEST = (8, 0)
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


def unavailable(why):
    print(f"no GPU to run on: {why}", file=sys.stderr)
    sys.exit(UNAVAILABLE)


class Driver:
    """libcuda with its errors as exceptions. Its first use is in the caller's hands: torch, or `first`."""

    def __init__(self):
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            unavailable(error)

    def call(self, name, *args):
        code = getattr(self.library, name)(*args)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'unknown').decode()} ({code})")

    def first(self):
        """(name, capability) of the first GPU; ends the program where there is none."""
        try:
            self.call("cuInit", 0)
            device, number = ctypes.c_int(), ctypes.c_int()
            self.call("cuDeviceGet", ctypes.byref(device), 0)
            name = ctypes.create_string_buffer(256)
            self.call("cuDeviceGetName", name, 256, device)
            capability = []
            for attribute in CAPABILITY:
                self.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
                capability.append(number.value)
        except RuntimeError as error:
            unavailable(error)
        if tuple(capability) < OLDEST:
            unavailable(f"{name.value.decode()} has compute capability {capability}; 8.0 or later is needed")
        return name.value.decode(), tuple(capability)


def archive(capability):
    """The name of what was built for a chip, as `sm_90a`: the rule of src/exec/cuda/module.rs. None: nothing was."""
    major, minor = capability
    fitting = []
    for path in PREBUILT.glob("sm_*.tar.zst"):
        digits, exact = re.fullmatch(r"sm_(\d+)(a?)", path.name.removesuffix(".tar.zst")).groups()
        own = (int(digits[:-1]), int(digits[-1]))
        if own[0] == major and (own[1] == minor if exact else own[1] <= minor):
            fitting.append((own, path.name.removesuffix(".tar.zst")))
    return max(fitting)[1] if fitting else None


def decompressed(path):
    """A .zst file's content with whatever can read it here; None where nothing can."""
    data = path.read_bytes()
    try:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except ImportError:
        pass
    if shutil.which("zstd"):
        return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    try:
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read()
    except ImportError:
        return None


def compile_all(chip, folder):
    """Every kernel for this chip with nvcc."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    target = ["-gencode", f"arch=compute_{chip},code=sm_{chip}"]
    running = []
    for source in sorted((ROOT / "kernels").glob("*.cu")):
        out = ["-o", str(folder / f"{source.stem}.cubin")]
        command = [nvcc, "-std=c++17", "-O3", "-cubin", *target, f"-I{ROOT}/kernels", str(source), *out]
        running.append((source.name, subprocess.Popen(command)))
    failed = [name for name, process in running if process.wait()]
    if failed:
        sys.exit(f"nvcc could not compile {', '.join(failed)}")


def cubins(capability, folder):
    """Puts the .cubin files for a chip into `folder`, unless they are there; says where they come from."""
    folder = pathlib.Path(folder)
    origin = folder / "origin"
    name = archive(capability)
    if origin.exists() and origin.read_text().startswith(f"{name},"):
        return origin.read_text()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plain = name and decompressed(PREBUILT / f"{name}.tar.zst")
    if plain:
        with tarfile.open(fileobj=io.BytesIO(plain)) as files:
            for member in files:
                (folder / member.name).write_bytes(files.extractfile(member).read())
        text = f"{name}, prebuilt"
    else:
        chip = name.removeprefix("sm_") if name else "".join(map(str, capability))
        compile_all(chip, folder)
        text = f"{name}, compiled here for sm_{chip}"
    origin.write_text(text)
    return text


class Kernels:
    """The kernels in the current context (torch's), launched on a stream. Arguments: addresses and ints as int, floats."""

    def __init__(self, capability, folder):
        self.driver, self.functions, self.modules = Driver(), {}, []
        self.origin = cubins(capability, folder)
        for path in sorted(pathlib.Path(folder).glob("*.cubin")):
            module = ctypes.c_void_p()
            self.driver.call("cuModuleLoadData", ctypes.byref(module), path.read_bytes())
            self.modules.append(module)

    def function(self, name, smem):
        """(function, its parameters' sizes in bytes), allowed this much dynamic shared memory (as at its first launch)."""
        if name not in self.functions:
            function = ctypes.c_void_p()
            find = self.driver.library.cuModuleGetFunction
            if not any(find(ctypes.byref(function), module, name.encode()) == 0 for module in self.modules):
                raise RuntimeError(f"no kernel is called {name}")
            sizes, offset, size = [], ctypes.c_size_t(), ctypes.c_size_t()
            info = self.driver.library.cuFuncGetParamInfo
            while not info(function, ctypes.c_size_t(len(sizes)), ctypes.byref(offset), ctypes.byref(size)):
                sizes.append(size.value)
            if smem > 48 << 10:
                self.driver.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, smem)
            self.functions[name] = (function, sizes)
        return self.functions[name]

    def launch(self, stream, name, grid, block, smem, *args):
        function, sizes = self.function(name, smem)
        if len(args) != len(sizes):
            raise RuntimeError(f"{name} has {len(sizes)} parameters, not {len(args)}")
        values = [value_of(arg, size) for arg, size in zip(args, sizes)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        x, y, z = (*grid, 1, 1)[:3]
        self.driver.call("cuLaunchKernel", function, x, y, z, block, 1, 1, smem, ctypes.c_void_p(stream), pointers, None)


def value_of(arg, size):
    if isinstance(arg, float):
        return ctypes.c_float(arg)
    return ctypes.c_uint64(arg) if size == 8 else ctypes.c_int32(arg)


def main():
    if sys.argv[1:2] not in ([], ["cubins"]):
        sys.exit(__doc__)
    name, capability = Driver().first()
    print(f"{name}, compute capability {capability[0]}.{capability[1]}")
    if sys.argv[1:2] == ["cubins"]:
        print(f"kernels: {cubins(capability, CUBINS)}")


if __name__ == "__main__":
    main()
