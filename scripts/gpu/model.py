"""`garrick bench` on a random checkpoint of a real size: decode against the time of reading weights and K and V once,
prefill against the time of its multiplications, both at the rates measured just before. By cuBLASLt where there is one, and
with engine.batch_invariant, by own kernels: what that costs. Decode steps are launched as graphs, and once kernel by kernel.
Then with weights in FP8, whose bytes are half of bf16's but for the head's.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import checkpoint
import results
from limits import Limits

WAYS = {
    "default": [],
    "fp8": ["engine.weights=fp8"],
    "batch invariant": ["engine.batch_invariant=true"],
    "without graphs": ["engine.cuda_graphs=false"],
    "steps of 4096": ["scheduler.max_batch_tokens=4096"],
    "steps of 4096, batch invariant": ["scheduler.max_batch_tokens=4096", "engine.batch_invariant=true"],
}
GARRICK = os.environ.get("GARRICK") or "target/release/garrick"


def add_rows(found, shape, limits, report, way):
    """A row for each batch of a report of `garrick bench --json`."""
    _, multiplied = checkpoint.num_params(shape)
    context = report["prompt_tokens"] + report["output_tokens"] / 2
    for result in report["results"]:
        batch = result["batch"]
        bytes_read = bytes_of_weights(shape, multiplied, way) + batch * context * checkpoint.kv_bytes_per_token(shape)
        floor = max(bytes_read / limits.bandwidth, 2 * multiplied * batch / limits.product) * 1e3
        reachable = limits.product / (2 * multiplied)
        found.add("model", way=way, batch=batch, **{
            "decode ms": result["decode_step_ms"], "decode tokens/s": result["decode_tokens_per_s"], "floor ms": floor,
            "of the floor": floor / result["decode_step_ms"], "prefill tokens/s": result["prefill_tokens_per_s"],
            "of the product rate": result["prefill_tokens_per_s"] / reachable})


def bytes_of_weights(shape, multiplied, way):
    """What a step reads of them: in FP8 all but the head, which stays bf16."""
    if way != "fp8":
        return 2 * multiplied
    head = checkpoint.head_params(shape)
    return multiplied - head + 2 * head


def bench(folder, batches, args, *options):
    """The report of one run, None where it fails; what the program says goes to the screen."""
    command = [GARRICK, "bench", "--model", str(folder), "--batch", ",".join(map(str, batches)), "--json"]
    command += ["--prompt-tokens", str(args.prompt_tokens), "--output-tokens", str(args.output_tokens), "--repeat", str(args.repeat)]
    command += ["--set", f"engine.device={args.device}", "--max-model-len", "8192", *options]
    print(" ".join(command), flush=True)
    limit = max(30, results.LIMIT_S - results.spent() - 5)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=limit, text=True)
    except subprocess.TimeoutExpired:
        print(f"cut after {limit:.0f} s", flush=True)
        return None
    return json.loads(done.stdout) if done.returncode == 0 else None


def numbers(text):
    return [int(n) for n in text.split(",")]


def options(description):
    """What every stage takes that runs the program on a checkpoint."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", choices=checkpoint.SHAPES, default="8b")
    parser.add_argument("--scratch", default=os.environ.get("SCRATCH", "/tmp/gpu-check"))
    parser.add_argument("--device", default="cuda")
    return parser


def ready():
    """torch, where there are a GPU and the program; ends the stage otherwise."""
    torch, _ = results.torch_on_gpu()
    if not pathlib.Path(GARRICK).exists():
        sys.exit(f"{GARRICK} is missing: build it elsewhere, or name another in GARRICK")
    return torch


def main():
    parser = options(__doc__)
    parser.add_argument("--batches", type=numbers, default=[1, 4, 16, 64])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    args = parser.parse_args()
    if unknown := set(args.ways) - set(WAYS):
        parser.error(f"no way is called {', '.join(sorted(unknown))}: {', '.join(WAYS)}")
    torch = ready()
    found = results.Results("model")
    limits = Limits(torch)
    limits.add_to(found)
    folder = checkpoint.make(args.shape, args.scratch)
    torch.cuda.empty_cache()
    billions = checkpoint.num_params(args.shape)[0] / 1e9
    found.note(f"checkpoint after {results.spent():.0f} s: {folder}, {billions:.3f} billion parameters; prompts of "
               f"{args.prompt_tokens} tokens, {args.output_tokens} generated")
    failures = 0
    for way in args.ways:
        settings = [word for setting in WAYS[way] for word in ("--set", setting)]
        report = bench(folder, args.batches, args, *settings)
        if report is None:
            failures += 1
            found.note(f"garrick bench ({way}) failed")
        else:
            found.note(f"{way}: {report['device']}")
            add_rows(found, args.shape, limits, report, way)
        found.note(f"after {results.spent():.0f} s")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
