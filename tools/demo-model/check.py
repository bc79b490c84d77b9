"""Checks models/demo against transformers, and that the tokenizer loses no text.

    pip install transformers==5.23.0 && python check.py
"""

import argparse
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import folder
from generate import held_out_items, render


def same_answers(path, number):
    """Greedy answers, prompts and logits of transformers and of model.py."""
    encoder, ours = folder.load_encoder(path), folder.load(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    wrong, widest = 0, 0.0
    for item in held_out_items(number, seed=3):
        prompt = tokenizer.apply_chat_template(
            item["messages"], add_generation_prompt=True, tokenize=False
        )
        assert prompt == render(item["messages"], prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids == encoder.prompt(item["messages"])
        out = theirs.generate(torch.tensor([ids]), max_new_tokens=64)[0, len(ids) :].tolist()
        stop = {encoder.end, encoder.pad}
        out = out[:-1] if out[-1] in stop else out
        wrong += out != ours.generate(ids, stop, 64)
        with torch.no_grad():
            mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
            mine = ours.logits(ours.hidden(torch.tensor([ids]), torch.arange(len(ids))[None], mask))
            widest = max(widest, (mine - theirs(torch.tensor([ids])).logits).abs().max().item())
    print(f"answers that differ from transformers: {wrong}; widest logit difference {widest:.2g}")
    return wrong == 0 and widest < 1e-2


def lossless(path, number):
    tokenizer = folder.load_encoder(path).tokenizer
    rng = random.Random(5)
    ranges = [(32, 126), (0, 31), (0xA0, 0x24F), (0x400, 0x4FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)]
    bad = 0
    for _ in range(number):
        text = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 40)))
        bad += tokenizer.decode(tokenizer.encode(text).ids) != text
    print(f"texts that do not round-trip: {bad} of {number}")
    return bad == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=folder.DEMO)
    parser.add_argument("--n", type=int, default=5, help="items per skill")
    args = parser.parse_args()
    torch.set_num_threads(1)
    good = [same_answers(args.folder, args.n), lossless(args.folder, 5000)]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
