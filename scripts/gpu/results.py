"""Figures as they come: one JSON object a line in $OUT/results.jsonl, and the same on the screen.

A line is {"stage", "table", "row"}; a row's keys are the table's columns, in order. What a stage that was cut has written
is whole. summary.py makes tables of it.

    results.py STAGE TABLE COLUMN VALUE…   adds a row, for stages that are shell
"""

import datetime
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import device  # noqa: E402

OUT = pathlib.Path(os.environ.get("OUT") or device.ROOT / "target/gpu-check")
BEGAN = time.monotonic()
LIMIT_S = float(os.environ.get("LIMIT_S", 450))


def spent():
    """Seconds since the stage's start."""
    return time.monotonic() - BEGAN


def is_over(share=0.9):
    """Whether so much of the stage's time has gone that nothing new should begin."""
    return spent() > LIMIT_S * share


class Results:
    def __init__(self, stage):
        self.stage, self.is_right = stage, True
        OUT.mkdir(parents=True, exist_ok=True)
        self.file = open(OUT / "results.jsonl", "a", buffering=1)

    def add(self, table, **row):
        row = {key: rounded(value) for key, value in row.items()}
        self.file.write(json.dumps({"stage": self.stage, "table": table, "row": row}) + "\n")
        print(f"{table}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def check(self, is_right):
        """`yes` or `NO`, for a row; `is_right` tells afterwards whether all was."""
        self.is_right &= is_right
        return "yes" if is_right else "NO"

    def note(self, text):
        """What a reader of the figures must know."""
        self.file.write(json.dumps({"stage": self.stage, "note": text}) + "\n")
        print(text, flush=True)


def rounded(value):
    """Four digits that count."""
    if not isinstance(value, float):
        return value
    short = float(f"{value:.4g}")
    return int(short) if 1000 <= abs(short) < 1e15 else short


def today():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def torch_on_gpu():
    """torch, with a GPU in use and random numbers from a fixed seed; ends the program with 69 where that cannot be."""
    _, capability = device.Driver().first()
    try:
        import torch
    except ImportError as error:
        device.unavailable(f"this stage needs PyTorch: {error}")
    if not torch.cuda.is_available():
        device.unavailable("PyTorch finds none")
    torch.manual_seed(1)
    torch.zeros(1, device="cuda")
    return torch, capability


if __name__ == "__main__":
    stage, table, *rest = sys.argv[1:]
    Results(stage).add(table, **dict(zip(rest[::2], rest[1::2])))
