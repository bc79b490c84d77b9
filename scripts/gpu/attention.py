"""Attention kernels: decode's bandwidth over K and V, and prefill's rate beside torch's scaled_dot_product_attention.

Decode is both kernels, splits and their merge, as src/exec/cuda/attention.rs launches them. Bytes are those of K and V (and
their scales) that the context has. Before anything is timed, each kernel's output is compared with float32 in torch.
"""

import argparse
import math
import sys
from functools import partial

import device
import results
from limits import Limits
from timing import median_ms, rounds

SPLIT, BLOCK = 512, 16
NUM_HEADS = 32
BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (512, 2048, 8192, 32768, 131072)
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
# (KV type, head_dim, group), what matters most first: where the stage is cut, that is there.
KINDS = [(kv, dim, group) for kv, dim in (("bf16", 128), ("int8", 128), ("bf16", 64), ("int8", 64)) for group in (4, 8, 1)]
POOL_BYTES = 48 << 30


def ring_bytes(kv, dim, buffers):
    """kernels/README.md has these."""
    row = 2 * (dim + 8)
    return buffers * 64 * row if kv == "bf16" else buffers * 64 * (dim + 4) + 2 * 64 * row + 512


def decode_bytes(kv, dim):
    buffers, weights = (4, 1) if kv == "bf16" else (3, 2)
    return ring_bytes(kv, dim, buffers) + 16 * 2 * (dim + 8) + 256 + weights * 2304


PREFILL_QUERIES = 128


def prefill_bytes(kv, dim):
    return ring_bytes(kv, dim, 3) + PREFILL_QUERIES * 2 * (dim + 8) + 4160


class Cache:
    """K and V of one layer: blocks of random values over one pool of memory."""

    def __init__(self, torch, pool, kind, kv_heads):
        self.kv, self.dim, self.kv_heads = *kind[:2], kv_heads
        self.element = 2 if self.kv == "bf16" else 1
        block = kv_heads * BLOCK * self.dim * self.element
        self.num_blocks = pool.nbytes // 2 // block
        half = self.num_blocks * block // 2
        shape = (self.num_blocks, kv_heads, BLOCK, self.dim)
        dtype = torch.bfloat16 if self.kv == "bf16" else torch.int8
        self.k, self.v = (pool[i * half : (i + 1) * half].view(dtype).view(shape) for i in range(2))
        self.scales = [None, None]
        if self.kv == "int8":
            self.scales = [torch.empty(shape[:3], device="cuda").uniform_(0.005, 0.01) for _ in range(2)]
        self.token_bytes = 2 * kv_heads * (self.dim * self.element + (4 if self.kv == "int8" else 0))

    def addresses(self):
        return [self.k.data_ptr(), self.v.data_ptr(), *(0 if s is None else s.data_ptr() for s in self.scales)]

    def values(self, blocks):
        """K and V of these blocks as float32 `[kv_heads, tokens, dim]`."""
        pair = []
        for values, scales in zip((self.k, self.v), self.scales):
            values = values[blocks].float()
            if scales is not None:
                values *= scales[blocks].unsqueeze(-1)
            pair.append(values.transpose(0, 1).reshape(self.kv_heads, -1, self.dim))
        return pair


class Step:
    """Spans of `rows` rows each that end at `context`, with blocks of their own, and what their launches need."""

    def __init__(self, torch, kernels, cache, batch, context, rows, blocks):
        self.torch, self.kernels, self.cache, self.rows, self.context = torch, kernels, cache, rows, context
        self.spans = batch
        per_span = -(-context // BLOCK)
        self.tables = blocks[: batch * per_span].to(torch.int32)
        first = context - rows
        words = [[i * rows, rows, first, i * per_span, per_span] for i in range(batch)]
        self.words = torch.tensor(words, dtype=torch.int32, device="cuda")
        width = (NUM_HEADS + 2 * cache.kv_heads) * cache.dim
        self.qkv = torch.randn(batch * rows, width, device="cuda", dtype=torch.bfloat16)
        self.out = torch.empty(batch * rows, NUM_HEADS * cache.dim, device="cuda", dtype=torch.bfloat16)
        self.totals = torch.empty(batch * rows if rows > 1 else 0, NUM_HEADS * cache.dim, device="cuda")
        self.max_splits = (context - 1) // SPLIT + 1

    def attend(self):
        cache = self.cache
        return [self.qkv.data_ptr(), *cache.addresses(), self.words.data_ptr(), self.tables.data_ptr(),
                1 / math.sqrt(cache.dim), 0.0, 0, NUM_HEADS, cache.kv_heads]

    def decode(self, records):
        values, sums = records
        dim, kv_heads = self.cache.dim, self.cache.kv_heads
        tiles = -(-self.rows * (NUM_HEADS // kv_heads) // 16)
        stream = self.torch.cuda.current_stream().cuda_stream
        self.kernels.launch(stream, f"attention_decode_{self.cache.kv}_d{dim}",
                            (self.max_splits * tiles, kv_heads, self.spans), 128, decode_bytes(self.cache.kv, dim),
                            self.out.data_ptr(), values.data_ptr(), sums.data_ptr(), *self.attend(), self.rows, self.max_splits)
        if self.max_splits == 1:
            return
        self.kernels.launch(stream, "attention_merge", (NUM_HEADS, self.rows, self.spans), 128, 0, self.out.data_ptr(),
                            values.data_ptr(), sums.data_ptr(), self.words.data_ptr(), 0, NUM_HEADS, dim, self.rows,
                            self.max_splits)

    def records(self):
        count = self.spans * self.rows * NUM_HEADS * self.max_splits
        return [self.torch.empty(count * n, device="cuda") for n in (self.cache.dim, 2)]

    def prefill(self):
        dim, kv_heads = self.cache.dim, self.cache.kv_heads
        tiles = -(-self.rows * (NUM_HEADS // kv_heads) // PREFILL_QUERIES)
        stream = self.torch.cuda.current_stream().cuda_stream
        self.kernels.launch(stream, f"attention_prefill_{self.cache.kv}_d{dim}", (tiles, kv_heads, self.spans), 128,
                            prefill_bytes(self.cache.kv, dim), self.out.data_ptr(), self.totals.data_ptr(), *self.attend())

    def queries(self, span):
        rows = self.qkv[span * self.rows : (span + 1) * self.rows, : NUM_HEADS * self.cache.dim]
        return rows.view(self.rows, NUM_HEADS, self.cache.dim).transpose(0, 1)

    def answers(self, span):
        """As `queries`: `[heads, rows, dim]`."""
        return self.out[span * self.rows : (span + 1) * self.rows].view(self.rows, NUM_HEADS, -1).transpose(0, 1)

    def error(self):
        """The largest difference of any span from float32 attention, over the largest value."""
        torch, group = self.torch, NUM_HEADS // self.cache.kv_heads
        per_span, worst = -(-self.context // BLOCK), 0.0
        for span in range(self.spans):
            blocks = self.tables[span * per_span : (span + 1) * per_span].long()
            k, v = (x[:, : self.context].repeat_interleave(group, 0) for x in self.cache.values(blocks))
            scores = self.queries(span).float() @ k.transpose(1, 2) / math.sqrt(self.cache.dim)
            positions = torch.arange(self.context, device="cuda")
            seen = positions <= positions[self.context - self.rows :, None]
            want = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
            difference = (self.answers(span).float() - want).abs().max() / want.abs().max()
            worst = max(worst, difference.item()) if difference == difference else math.inf
        return worst


def check(torch, kernels, found, pool, kinds):
    """Every kernel that is timed gives what float32 gives, but for rounding to bf16."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for kind in kinds:
        cache = Cache(torch, pool, kind, NUM_HEADS // kind[2])
        blocks = torch.randperm(min(cache.num_blocks, 4096), device="cuda")
        for name, rows, context in (("decode", 1, 1300), ("prefill", 333, 700)):
            step = Step(torch, kernels, cache, 3, context, rows, blocks)
            step.out.fill_(torch.nan)
            step.decode(step.records()) if name == "decode" else step.prefill()
            error = step.error()
            found.add("checked", kernel=f"{name} {kind[0]} d{kind[1]} group {kind[2]}", **{"largest error": error},
                      right=found.check(error < 0.02))


def decode(torch, kernels, found, pool, limits, kind, args):
    kv, dim, group = kind
    cache = Cache(torch, pool, kind, NUM_HEADS // group)
    order = torch.randperm(cache.num_blocks, device="cuda")
    for context in args.contexts:
        for batch in args.batches:
            if results.is_over():
                return
            blocks, bytes_read = batch * -(-context // BLOCK), batch * context * cache.token_bytes
            sets = min(rounds(torch, bytes_read), cache.num_blocks // max(blocks, 1))
            if sets == 0:
                continue
            steps = [Step(torch, kernels, cache, batch, context, 1, order[i * blocks :]) for i in range(sets)]
            records = steps[0].records()
            ms = median_ms(torch, [partial(step.decode, records) for step in steps])
            rate = bytes_read / ms * 1e3
            found.add("decode", **{
                "KV": kv, "head_dim": dim, "heads": f"{NUM_HEADS}/{cache.kv_heads}", "context": context, "batch": batch,
                "ms": ms, "GB/s": rate / 1e9, "of the bandwidth": rate / limits.bandwidth})


def prefill(torch, kernels, found, pool, limits, length):
    kind = ("bf16", 128, 4)
    cache = Cache(torch, pool, kind, NUM_HEADS // 4)
    blocks = torch.randperm(cache.num_blocks, device="cuda")[: length // BLOCK]
    step = Step(torch, kernels, cache, 1, length, length, blocks)
    ours = median_ms(torch, [step.prefill] * 2)
    k, v = (x.to(torch.bfloat16).unsqueeze(0).contiguous() for x in cache.values(blocks))
    q = step.queries(0).unsqueeze(0).contiguous()
    attend = torch.nn.functional.scaled_dot_product_attention
    theirs = median_ms(torch, [lambda: attend(q, k, v, is_causal=True, enable_gqa=True)] * 2)
    difference = (attend(q, k, v, is_causal=True, enable_gqa=True)[0] - step.answers(0)).abs().max().item()
    rate = 4 * NUM_HEADS * 128 * length * (length + 1) / 2 / 1e9
    found.add("prefill", tokens=length, **{
        "ms": ours, "TFLOP/s": rate / ours, "SDPA TFLOP/s": rate / theirs, "over SDPA": theirs / ours,
        "of the product rate": rate / ours * 1e12 / limits.product, "largest difference": difference})


def main():
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=numbers, default=BATCHES)
    parser.add_argument("--contexts", type=numbers, default=CONTEXTS)
    parser.add_argument("--lengths", type=numbers, default=LENGTHS)
    args = parser.parse_args()
    torch, capability = results.torch_on_gpu()
    found = results.Results("attention")
    kernels = device.Kernels(capability, device.CUBINS)
    found.note(f"kernels: {kernels.origin}")
    limits = Limits(torch)
    limits.add_to(found)
    size = min(POOL_BYTES, int(torch.cuda.mem_get_info()[0] * 0.6)) // 2
    pool = torch.empty(size, device="cuda", dtype=torch.bfloat16)
    for part in pool.split(1 << 30):
        part.normal_()
    check(torch, kernels, found, pool, KINDS)
    decode(torch, kernels, found, pool, limits, KINDS[0], args)
    for length in args.lengths:
        prefill(torch, kernels, found, pool, limits, length)
    for kind in KINDS[1:]:
        decode(torch, kernels, found, pool, limits, kind, args)
    if results.is_over():
        found.note(f"cut after {results.spent():.0f} s: later kinds are missing")
    sys.exit(not found.is_right)


if __name__ == "__main__":
    main()
