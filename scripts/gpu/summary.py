"""Tables for docs/benchmarks.md from one or more results.jsonl: summary.py FILE… > summary.md"""

import json
import sys


def table(rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in rows:
        cells = (shown(row.get(column)) for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(value):
    return "" if value is None else str(value).replace("|", "/")


def main():
    stages, machine = {}, {}
    for path in sys.argv[1:]:
        for line in open(path):
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a stage that was cut
                continue
            tables, notes = stages.setdefault(entry["stage"], ({}, []))
            if "note" in entry:
                notes.append(entry["note"])
                continue
            tables.setdefault(entry["table"], []).append(entry["row"])
            if entry["table"] == "machine":
                machine = entry["row"]
    print(f"### On a GPU: {machine.get('device', 'unknown device')}, {machine.get('date', 'unknown date')}\n")
    for stage, (tables, notes) in stages.items():
        for name, rows in tables.items():
            print(f"{stage}, {name}:\n\n{table(rows)}\n")
        for note in notes:
            print(f"- {note}")
        if notes:
            print()


if __name__ == "__main__":
    main()
