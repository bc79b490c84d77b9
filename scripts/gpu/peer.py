"""transformers on the same GPU with a model of the same shape, weights random: what model.py measures of Garrick.

Eager with a growing cache first, which always runs, then `generate` with a static cache, which compiles the step. What
transformers cannot do here is said and left out.
"""

import argparse
import statistics
import sys
import time

import checkpoint
import results


def load(torch, transformers, shape):
    described = {k: v for k, v in checkpoint.config(shape).items() if k not in ("architectures", "torch_dtype")}
    config = transformers.LlamaConfig(**described)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config)
    return model.eval()


def timed(torch, work):
    """(what it gives, milliseconds)"""
    torch.cuda.synchronize()
    began = time.perf_counter()
    value = work()
    torch.cuda.synchronize()
    return value, (time.perf_counter() - began) * 1e3


def eager(torch, model, prompts, output_tokens):
    """(prefill ms, decode ms): medians, the latter of single steps."""
    prefills, steps = [], []
    for _ in range(4):
        done, ms = timed(torch, lambda: model(prompts, use_cache=True, logits_to_keep=1))
        prefills.append(ms)
        for _ in range(output_tokens - 1):
            token, cache = done.logits[:, -1:].argmax(-1), done.past_key_values
            done, ms = timed(torch, lambda t=token, c=cache: model(t, past_key_values=c, use_cache=True))
            steps.append(ms)
    # The first of both warm up.
    return statistics.median(prefills[1:]), statistics.median(steps[output_tokens:])


def static(torch, model, prompts, output_tokens):
    """(prefill ms, decode ms) of `generate`: two lengths of output, whose difference is that of decode steps alone."""
    def run(count):
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "cache_implementation": "static"}
        return timed(torch, lambda: model.generate(prompts, attention_mask=torch.ones_like(prompts), **options))[1]

    run(output_tokens), run(2)  # these compile
    pairs = [(run(2), run(output_tokens)) for _ in range(3)]
    steps = [(long - short) / (output_tokens - 2) for short, long in pairs]
    decode = statistics.median(steps)
    return statistics.median(short for short, _ in pairs) - decode, decode


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=checkpoint.SHAPES, default="8b")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=64)
    args = parser.parse_args()
    torch, _ = results.torch_on_gpu()
    found = results.Results("peer")
    try:
        import transformers
    except ImportError as error:
        return found.note(f"transformers is not here: {error}")
    with torch.inference_mode():
        model = load(torch, transformers, args.shape)
        for name, way in (("eager", eager), ("generate, static cache", static)):
            for batch in args.batches:
                if results.is_over(0.6):
                    return found.note(f"cut before {name}, batch {batch}, after {results.spent():.0f} s")
                prompts = torch.randint(0, 256, (batch, args.prompt_tokens), device="cuda")
                try:
                    prefill, decode = way(torch, model, prompts, args.output_tokens)
                except Exception as error:  # a peer that fails is a fact to report, not our failure
                    found.note(f"transformers, {name}, batch {batch}: {error!r:.300}")
                    continue
                found.add("model", way=f"transformers {transformers.__version__}, {name}", batch=batch, **{
                    "decode ms": decode, "decode tokens/s": batch / decode * 1e3,
                    "prefill tokens/s": batch * args.prompt_tokens / prefill * 1e3})


if __name__ == "__main__":
    sys.exit(main())
