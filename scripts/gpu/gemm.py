"""Matrix products of an 8B model's shapes: our tiles beside torch.matmul, which is cuBLAS; then with quantised weights.

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
# Quantised weights (kernels/README.md): bits, what records hold, bytes of a record, and shared memory of each tile. A record
# is of 256 numbers, in FP8 of a row.
ROW_SCALE = 5
FORMATS = {
    "int4 (Q4_K)": ("int4", 4, 2, 16, (70400, 53248, 68608)),
    "int4 (Q4_1)": ("int4", 4, 3, 32, (70400, 53248, 68608)),
    "int8 (Q8_0)": ("int8", 8, 0, 16, (58880, 63488, 75776)),
    "int8_half (Q6_K)": ("int8_half", 8, 4, 32, (60928, 65536, 77824)),
    "fp8": ("fp8", 8, ROW_SCALE, 4, (56832, 61440, 73728)),
}
# Rows and columns of a tile, and threads.
QUANT_TILES = {"m16": (16, 32, 128), "m64": (64, 64, 128), "m128": (128, 64, 256)}
QUANT_SHAPES, QUANT_ROWS = ("qkv", "gate+up", "down"), (1, 4, 16, 64, 512)


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


def num_records(n, k, records):
    return n if records == ROW_SCALE else n * (k // 256)


def quantised(torch, n, k, bits, records, record_bytes):
    """Random numbers, whose scales and minima are float16 of about 0.01: in a Q4_K, of what they are multiplied by; in FP8
    float32."""
    packed = torch.randint(0, 256, (n * (k // 32) * 4 * bits,), device="cuda", dtype=torch.uint8)
    count = num_records(n, k, records)
    if records == ROW_SCALE:
        packed &= 0xBF  # of magnitude 1.875 at most, and never NaN
        scales = torch.full((count,), 0.01, device="cuda")
        return torch.cat([packed, scales.view(torch.uint8)])
    halves = torch.full((count, record_bytes // 2), 0.01, device="cuda", dtype=torch.float16)
    if records == 2:
        halves[:, :2] = torch.tensor([1e-3, -1e-3], device="cuda")
        halves.view(torch.uint8)[:, 4:] = torch.randint(0, 256, (count, 12), device="cuda", dtype=torch.uint8)
    elif records == 4:
        halves.view(torch.uint8)[:, :16] = torch.randint(0, 256, (count, 16), device="cuda", dtype=torch.uint8)
        halves[:, 8] = 1e-4
    return torch.cat([packed, halves.view(torch.uint8).flatten()])


def quant_launcher(torch, kernels, form, tile, x, w, out):
    name, _, records, _, smem = FORMATS[form]
    rows, columns, threads = QUANT_TILES[tile]
    (m, k), n = x.shape, out.shape[1]
    grid, of_tile = (-(-m // rows), -(-n // columns)), smem[list(QUANT_TILES).index(tile)]

    def launch():
        stream = torch.cuda.current_stream().cuda_stream
        args = (out.data_ptr(), x.data_ptr(), w.data_ptr(), 0, m, n, k, records, n)
        kernels.launch(stream, f"gemm_{name}_{tile}_bf16", grid, threads, of_tile, *args)

    return launch


def measure_quantised(torch, kernels, found, limits, form, shape, m):
    """Beside our own product with bf16 weights. Every tile is to give the same bits."""
    _, bits, records, record_bytes, _ = FORMATS[form]
    k, n = SHAPES[shape]
    bytes_of_weights = n * k * bits // 8 + num_records(n, k, records) * record_bytes
    sets = rounds(torch, bytes_of_weights)
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    weights = [quantised(torch, n, k, bits, records, record_bytes) for _ in range(sets)]
    out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    times, outs = {}, []
    for tile in QUANT_TILES:
        out.fill_(torch.nan)
        quant_launcher(torch, kernels, form, tile, x, weights[0], out)()
        outs.append(out.clone())
        launches = [quant_launcher(torch, kernels, form, tile, x, w, out) for w in weights] * max(1, 4 // sets)
        times[tile] = median_ms(torch, launches)
    right = outs[0].isfinite().all().item() and all(torch.equal(outs[0], other) for other in outs[1:])
    del weights
    wide = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(rounds(torch, 2 * n * k))]
    bf16_ms = median_ms(torch, [launcher(torch, kernels, chosen(m, n), x, w, out) for w in wide])
    tile = "m16" if m <= 16 else "m64" if m <= 64 else "m128"
    ms, best = times[tile], min(times, key=times.get)
    moved = bytes_of_weights + 2 * (m * k + m * n)
    found.add("quantised gemm", weights=form, shape=f"{shape} {k}x{n}", m=m, tile=tile, **{
        "ms": ms, "TFLOP/s": 2 * m * n * k / ms / 1e9, "GB/s": moved / ms / 1e6,
        "of the copy bandwidth": moved / ms * 1e3 / limits.copy, "bf16 ms": bf16_ms, "over bf16": bf16_ms / ms,
        "best tile": best, "same bits": found.check(right)})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    words = lambda text: text.split(",")  # noqa: E731
    numbers = lambda text: [int(n) for n in words(text)]  # noqa: E731
    parser.add_argument("--rows", type=numbers, default=ROWS)
    parser.add_argument("--shapes", type=words, default=list(SHAPES))
    parser.add_argument("--formats", type=words, default=[form[0] for form in FORMATS.values()])
    parser.add_argument("--quantised-rows", type=numbers, default=QUANT_ROWS)
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
    for form in [form for form, (name, *_) in FORMATS.items() if name in args.formats]:
        for shape in [shape for shape in args.shapes if shape in QUANT_SHAPES]:
            for m in args.quantised_rows:
                if results.is_over():
                    found.note(f"cut after {results.spent():.0f} s: {form} {shape} {m} and later are missing")
                    sys.exit(not found.is_right)
                measure_quantised(torch, kernels, found, limits, form, shape, m)
    sys.exit(not found.is_right)


if __name__ == "__main__":
    main()
