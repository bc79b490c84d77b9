"""What the GPU gives at most: bandwidth and bf16 products as torch reaches them, for the share that other figures are of."""

import importlib.metadata
import shutil
import subprocess

import results
from timing import median_ms

COPY_BYTES = 4 << 30
PRODUCT = 8192


def bandwidths(torch):
    """Bytes a second of a copy and of a sum."""
    size = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 8)
    source = torch.empty(size // 4, device="cuda").uniform_(-1, 1)
    target, total = torch.empty_like(source), torch.empty((), device="cuda")
    copy_ms = median_ms(torch, [lambda: target.copy_(source)])
    read_ms = median_ms(torch, [lambda: torch.sum(source, dim=0, out=total)])
    return 2e3 * source.nbytes / copy_ms, 1e3 * source.nbytes / read_ms


def product_rate(torch):
    """Multiplications and additions a second."""
    a, b, c = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    return 2e3 * PRODUCT**3 / median_ms(torch, [lambda: torch.mm(a, b, out=c)] * 4)


class Limits:
    """Bytes a second of a copy (read and written together) and of a sum (read), multiply-adds as FLOP a second."""

    def __init__(self, torch):
        self.copy, self.read = bandwidths(torch)
        self.product = product_rate(torch)
        torch.cuda.empty_cache()

    @property
    def bandwidth(self):
        """The better of the two: what shares are of."""
        return max(self.copy, self.read)

    def add_to(self, found):
        found.add(
            "limits", **{"copy GB/s": self.copy / 1e9, "read-only sum GB/s": self.read / 1e9,
                         "bf16 product TFLOP/s": self.product / 1e12},
        )


def output(*command):
    """What a program prints, in one line; what is wrong where it cannot run."""
    if not shutil.which(command[0]):
        return "not here"
    done = subprocess.run(command, capture_output=True, text=True)
    return " | ".join(line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip())


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not here"


def main():
    torch, capability = results.torch_on_gpu()
    found = results.Results("info")
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    found.add(
        "machine", device=card.name, date=results.today(), capability="{}.{}".format(*capability),
        multiprocessors=card.multi_processor_count,
        **{"L2 MiB": card.L2_cache_size >> 20, "memory GiB": total / 2**30, "free GiB": free / 2**30},
    )
    versions = {
        "torch": torch.__version__, "transformers": version("transformers"), "nvcc": output("nvcc", "--version")[-60:],
        "compute-sanitizer": output("compute-sanitizer", "--version")[-60:],
    }
    for what, value in versions.items():
        found.add("versions", what=what, value=value)
    clocks = "clocks.sm,clocks.mem,temperature.gpu"
    report_card(found, f"driver_version,{clocks},clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current")
    for _ in range(2):  # the second shows how far the first can be trusted
        Limits(torch).add_to(found)
    report_card(found, clocks)


def report_card(found, query):
    """What nvidia-smi says."""
    value = output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    found.add("versions", what=f"nvidia-smi: {query}", value=value)


if __name__ == "__main__":
    main()
