"""Peak memory of a run of many people beside one of few: people stream through the slots.

    python benchmarks/speed/stream.py

Each size is a process of its own: a table of made-up words, the nano model, 64 slots, one step a person, no validation.
The highest resident size of the process goes to `results/stream.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCHEMA_VERSION = 1
RESULTS = Path(__file__).parent / "results" / "stream.json"
WORDS = [
    "the",
    "river",
    "is",
    "bright",
    "and",
    "waits",
    "for",
    "spring",
    "curious",
    "rests",
    "at",
    "night",
    "under",
    "old",
    "stone",
    "bridges",
    "far",
    "away",
]
SLOTS, PAIRS = 64, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[500, 10_000])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one)))
        return
    found = []
    for people in arguments.people:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--one", str(people)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    first, last = found[0], found[-1]
    result = {
        "schema_version": SCHEMA_VERSION,
        "command": "python benchmarks/speed/stream.py",
        "model": "nano",
        "slots": SLOTS,
        "pairs_a_person": PAIRS,
        "runs": found,
        "ratio": round(last["peak_bytes"] / first["peak_bytes"], 3),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{last['people']} people take {result['ratio']} times the memory of {first['people']}")


def one(people: int) -> dict[str, float]:
    """Train so many people in this process."""
    import torch

    import pluralign

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.jsonl"
        draw = random.Random(0)
        with open(table, "w", encoding="utf-8") as file:
            for person in range(people):
                for _ in range(PAIRS):
                    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(3)]
                    row = {"user": f"person-{person}", "prompt": texts[0], "chosen": texts[1], "rejected": texts[2]}
                    file.write(json.dumps(row) + "\n")
        began = time.perf_counter()
        result = pluralign.train(
            {
                "method": "dpo",
                "data": {"path": str(table), "validation": 0.0},
                "output_dir": f"{folder}/run",
                "cache_dir": f"{folder}/cache",
                "parameters": {"rank": 4},
                "bank": {"slots": SLOTS},
                "training": {"num_train_epochs": 1, "logging_steps": 100},
            }
        )
        seconds = time.perf_counter() - began
        assert len(result.adapters) == people, result.skipped
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"people": people, "peak_bytes": peak, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
