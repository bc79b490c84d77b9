"""Trains the demo model on generated chats and writes models/demo.

    python train.py                              # from nothing
    python train.py --resume ../../models/demo --words-from 0   # go on from committed weights
    python train.py --resume /tmp/demo.pt        # go on from a checkpoint, optimizer included

The rate is constant after a warm-up and falls to zero over the last --decay steps, so a run
can be prolonged by resuming from a checkpoint with a larger --steps.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import folder
import optimizer
from generate import held_out_items
from model import Config, Llama


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=folder.DEMO)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="also keep the full state here")
    parser.add_argument("--steps", type=int, default=10000, help="in all, those before a resume included")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--decay", type=int, default=3000)
    parser.add_argument(
        "--words-from", type=int, default=4000, help="step at which the mixture turns from numbers to words"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="per step")
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies both learning rates")
    parser.add_argument("--every", type=int, default=250, help="steps between measurements")
    parser.add_argument("--items", type=int, default=60, help="held-out items per skill")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; about 20 %% faster")
    return parser.parse_args()


def start(args, encoder):
    """The model, its optimizers and the number of steps already done."""
    if args.resume is None:
        torch.manual_seed(args.seed)
        model = Llama(Config(vocab_size=encoder.tokenizer.get_vocab_size()))
        return model, optimizer.make(model), 0
    if args.resume.is_dir():  # weights alone: the schedule begins anew
        model = folder.load(args.resume)
        return model, optimizer.make(model), 0
    state = torch.load(args.resume, weights_only=True)
    model = Llama(Config.from_dict(state["config"]))
    model.load_state_dict(state["model"])
    optimizers = optimizer.make(model)
    for each, saved in zip(optimizers, state["optimizers"]):
        each.load_state_dict(saved)
    return model, optimizers, state["step"]


def keep(args, model, encoder, optimizers, step):
    folder.save(model, encoder, args.out)
    if args.checkpoint:
        state = {
            "config": model.config.to_dict(),
            "model": model.state_dict(),
            "optimizers": [each.state_dict() for each in optimizers],
            "step": step,
        }
        folder.replace(args.checkpoint, lambda at: torch.save(state, at))


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    encoder = folder.load_encoder()
    model, optimizers, done = start(args, encoder)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    items = held_out_items(args.items, seed=7)
    context = model.config.max_position_embeddings
    supply = {
        (long, mixture): data.Rows(
            encoder, f"{args.seed}:{done}:{long}:{mixture}", context if long else 256, long, mixture
        )
        for long in (False, True)
        for mixture in ("numbers", "words")
    }
    hidden = torch.compile(model.hidden, dynamic=False) if args.compile else model.hidden
    began, total = time.time(), []

    for step in range(done, args.steps):
        factor = args.rate * min(1, (step + 1 - done) / args.warmup, (args.steps - step) / args.decay)
        for each in optimizers:
            for group in each.param_groups:
                group["lr"] = group["rate"] * factor
        # One batch in five is of long chats, for positions up to the whole context.
        rows = supply[step % 5 == 4, "numbers" if step < args.words_from else "words"]
        ids, labels, weights, positions, mask = rows.batch(args.tokens // rows.length)
        due = labels != data.IGNORE
        with torch.autocast("cpu", torch.bfloat16):
            logits = model.logits(hidden(ids, positions, mask)[due])
        losses, weights = F.cross_entropy(logits.float(), labels[due], reduction="none"), weights[due]
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in optimizers:
            each.step()
        model.zero_grad(set_to_none=True)
        total.append(loss.detach())

        count = step + 1
        if count % 50 == 0:
            spent = time.time() - began
            left = spent / (count - done) * (args.steps - count)
            mean = torch.stack(total).mean().item()
            total = []
            print(f"step {count} loss {mean:.4f} {spent:.0f} s, {left:.0f} s left", flush=True)
        if count % args.every == 0 or count == args.steps:
            scores = data.accuracy(model, encoder, items)
            print("  " + " ".join(f"{k} {100 * v:.0f}" for k, v in scores.items()), flush=True)
            keep(args, model, encoder, optimizers, count)


if __name__ == "__main__":
    main()
