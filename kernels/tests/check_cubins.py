"""Reads compiled kernels back: spills, registers and instructions against a budget.

Usage: check_cubins.py budget.txt file.sm_90a.cubin…; cuobjdump is on PATH. Prints what is wrong, or one line.
"""
import fnmatch
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor


def read_budget(path):
    """Lines of: name pattern, most registers, instructions. A kernel has the first line that its name matches."""
    with open(path) as lines:
        words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return [(pattern, int(registers), wanted) for pattern, registers, *wanted in words]


def dump(option, cubin):
    return subprocess.run(["cuobjdump", option, cubin], check=True, capture_output=True, text=True).stdout


def resources(cubin):
    """Per kernel: registers, bytes of stack, bytes of local memory."""
    found = {}
    for name, text in re.findall(r"Function (\w+):\s*\n(.*)", dump("--dump-resource-usage", cubin)):
        value = dict(re.findall(r"(\w+):(\d+)", text))
        found[name] = int(value["REG"]), int(value["STACK"]), int(value["LOCAL"])
    return found


def instructions(cubin):
    """Per kernel: the opcodes with their modifiers."""
    found, name = defaultdict(set), None
    for line in dump("--dump-sass", cubin).splitlines():
        if start := re.search(r"Function : (\w+)", line):
            name = start.group(1)
        elif opcode := re.search(r"\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9_.]+)", line):
            found[name].add(opcode.group(1))
    return found


def check(budget, cubin):
    wrong, opcodes = [], instructions(cubin)
    for name, (registers, stack, local) in resources(cubin).items():
        line = next((line for line in budget if fnmatch.fnmatch(name, line[0])), None)
        if line is None:
            wrong.append(f"{cubin}: {name} has no budget")
            continue
        if stack or local:
            wrong.append(f"{cubin}: {name} spills: {stack} bytes of stack, {local} of local memory")
        if registers > line[1]:
            wrong.append(f"{cubin}: {name} takes {registers} registers of {line[1]}")
        for wanted in line[2]:
            if not any(opcode.startswith(wanted) for opcode in opcodes[name]):
                wrong.append(f"{cubin}: {name} has no {wanted}")
    return len(opcodes), wrong


def main():
    budget = read_budget(sys.argv[1])
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda cubin: check(budget, cubin), sys.argv[2:]))
    wrong = [line for _, lines in results for line in lines]
    print(*wrong, sep="\n")
    if wrong:
        sys.exit(1)
    print(f"{sum(count for count, _ in results)} kernels in {len(results)} files are within their budget")


main()
