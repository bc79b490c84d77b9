"""Matrix products of an 8B model's shapes: our tiles beside torch.matmul, which is cuBLAS.

Weights go round several copies where one would stay in the L2 cache. GB/s are the bytes of weights, rows and results.
"""

import argparse
import re
import sys

import device
import results
from limits import Limits
from timing import median_ms, rounds

PRODUCT = device.ROOT / "src/exec/cuda/product.rs"
TILE = re.compile(r"const \w+: Tile = Tile \{ rows: (\d+), cols: (\d+), threads: (\d+), shared_bytes: ([\d_]+) \}")
MOST_ROWS = {"gemm_m16": 256}  # beyond which a tile is not tried


def tiles():
    """Name: rows, columns, threads, shared memory of each tile, as the program has them; the smallest first."""
    found = sorted(tuple(int(number) for number in match.groups()) for match in TILE.finditer(PRODUCT.read_text()))
    if not found:
        sys.exit(f"{PRODUCT} names no tile in the way that this reads")
    widest = {tile[0]: 0 for tile in found}
    names = {}
    for tile in found:
        names[f"gemm_m{tile[0]}" if not widest[tile[0]] else f"gemm_m{tile[0]}_n{tile[1]}"] = tile
        widest[tile[0]] = tile[1]
    return names


TILES = tiles()
WIDE_FROM = int(re.search(r"WIDE_FROM: usize = ([\d_]+)", PRODUCT.read_text()).group(1))
# k and n.
SHAPES = {
    "qkv": (4096, 6144), "out": (4096, 4096), "gate+up": (4096, 28672), "down": (14336, 4096), "head": (4096, 128256),
}
ROWS = (1, 4, 16, 64, 256, 2048)


def chosen(m, n):
    """What the program takes for m rows and n columns: the tile of fewest rows that holds them, up to that of most; of two
    with as many rows the wide one from so many columns on."""
    rows = next((tile[0] for tile in TILES.values() if m <= tile[0]), max(tile[0] for tile in TILES.values()))
    names = [name for name, tile in TILES.items() if tile[0] == rows]
    return names[-1] if n >= WIDE_FROM else names[0]


def launcher(torch, kernels, name, x, w, out):
    rows, columns, threads, smem = TILES[name]
    (m, k), n = x.shape, w.shape[0]
    grid = (-(-m // rows), -(-n // columns))

    def launch():
        stream = torch.cuda.current_stream().cuda_stream
        args = (out.data_ptr(), x.data_ptr(), w.data_ptr(), 0, m, n, k)
        kernels.launch(stream, f"{name}_bf16", grid, threads, smem, *args)

    return launch


def error_of(torch, x, w, out):
    """The largest difference of up to 256 rows and 4096 columns from float32, over the largest value."""
    want = x[:256].float() @ w[:4096].float().T
    return ((out[:256, :4096].float() - want).abs().max() / want.abs().max()).item()


def measure(torch, kernels, found, limits, shape, m):
    k, n = SHAPES[shape]
    bytes_moved = 2 * (n * k + m * k + m * n)
    sets = rounds(torch, 2 * n * k)
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    repeats = max(1, 4 // sets)
    theirs = median_ms(torch, [lambda w=w: torch.mm(x, w.T, out=out) for w in weights] * repeats)
    times, right = {}, []
    for name in TILES:
        if m > MOST_ROWS.get(name, m):
            continue
        out.fill_(torch.nan)
        launcher(torch, kernels, name, x, weights[0], out)()
        right.append(error_of(torch, x, weights[0], out) < 0.01)
        times[name] = median_ms(torch, [launcher(torch, kernels, name, x, w, out) for w in weights] * repeats)
    ms, best = times[chosen(m, n)], min(times, key=times.get)
    floor = max(bytes_moved / limits.bandwidth, 2 * m * n * k / limits.product) * 1e3
    found.add("gemm", shape=f"{shape} {k}x{n}", m=m, tile=chosen(m, n), **{
        "ms": ms, "TFLOP/s": 2 * m * n * k / ms / 1e9, "GB/s": bytes_moved / ms / 1e6, "of the floor": floor / ms,
        "cuBLAS ms": theirs, "over cuBLAS": theirs / ms, "best tile": best, "best over cuBLAS": theirs / times[best],
        "right": found.check(all(right))})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=lambda text: [int(n) for n in text.split(",")], default=ROWS)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    args = parser.parse_args()
    torch, capability = results.torch_on_gpu()
    found = results.Results("gemm")
    kernels = device.Kernels(capability, device.CUBINS)
    found.note(f"kernels: {kernels.origin}")
    torch.backends.cuda.matmul.allow_tf32 = False
    limits = Limits(torch)
    limits.add_to(found)
    for shape in args.shapes:
        for m in args.rows:
            if results.is_over():
                found.note(f"cut after {results.spent():.0f} s: {shape} {m} and later are missing")
                sys.exit(not found.is_right)
            measure(torch, kernels, found, limits, shape, m)
    sys.exit(not found.is_right)


if __name__ == "__main__":
    main()
