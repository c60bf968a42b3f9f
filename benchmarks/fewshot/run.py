"""Few-shot prediction: every method on every table, active questions, and time.

    python benchmarks/fewshot/run.py compare --on countries --data DIR  # personas, raters, annotators, world, world120
    python benchmarks/fewshot/run.py intervals --on countries --data DIR   # on other splits
    python benchmarks/fewshot/run.py ideas --on countries --data DIR       # ours without one of its choices
    python benchmarks/fewshot/run.py active --on countries --data DIR
    python benchmarks/fewshot/run.py race --on countries --data DIR --seconds 3600
    python benchmarks/fewshot/run.py converge --seconds 600
    python benchmarks/fewshot/run.py speed
    python benchmarks/fewshot/run.py table --of compare-countries          # from the committed results
    python benchmarks/fewshot/run.py plot --of compare-countries           # likewise

DIR is the folder of the published data (docs/real-text.md); the world, `converge` and `speed` need none. `compare`,
`intervals` and `ideas` are grids of cells that go on where they were stopped; cells that are there, below `--work` or
in the results, are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import grid  # isort: skip  (before anything that imports numpy: it says how many threads there are)

import comparing
from active import active, active_table
from ideas import IDEAS
from printing import OURS, SPREAD, against_table, compare_table, plot_results, width_table
from racing import converge, race, race_table
from tables import TABLES
from timing import speed, speed_table

RESULTS = Path(__file__).parent / "results"
PLOTS = Path(__file__).parents[2] / "docs" / "methods"
GRIDS = {
    "compare": comparing.parts,
    "intervals": lambda table: comparing.parts(table, [OURS, SPREAD], comparing.FRESH),
    "ideas": lambda table: comparing.parts(table, [OURS, *IDEAS]),
}
"""Stage -> its cells on a table."""
TABLES_OF = {
    "compare": (compare_table, against_table),
    "intervals": (width_table,),
    "ideas": (compare_table,),
    "active": (active_table,),
    "race": (race_table,),
    "converge": (race_table,),
    "speed": (speed_table,),
}
"""Stage -> what `table` prints of its results."""


def main() -> int:
    arguments = _arguments()
    if arguments.stage in ("table", "plot"):
        found = json.loads((RESULTS / f"{arguments.of}.json").read_text(encoding="utf-8"))
        if arguments.stage == "plot":
            plot_results(found, PLOTS / f"gpo-{arguments.of.removeprefix('compare-')}.svg")
            return 0
        print("\n".join(show(found) for show in TABLES_OF[arguments.of.split("-")[0]]), end="")
        return 0
    from pluralign.storage import write_json

    command = f"python benchmarks/fewshot/run.py {arguments.stage}"
    if arguments.stage == "speed":
        path = RESULTS / "speed.json"
        for found in speed(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}):
            write_json(path, {**grid.head(command), **found})
        return 0
    if arguments.stage == "converge":
        command += f" --seconds {arguments.seconds:g}"
        for found in converge(arguments.seconds):
            write_json(RESULTS / "converge.json", {**grid.head(command), **found})
        return 0
    command += f" --on {arguments.on}" + ("" if arguments.on.startswith("world") else " --data DIR")
    if arguments.stage in GRIDS:
        compare(arguments, command)
        return 0
    path = RESULTS / f"{arguments.stage}-{arguments.on}.json"
    if arguments.stage == "race":
        command += f" --seconds {arguments.seconds:g}"
        for found in race(arguments.on, arguments.data, arguments.seconds):
            write_json(path, {**grid.head(command), **found})
    else:
        write_json(path, {**grid.head(command), **active(arguments.on, arguments.data)})
    return 0


def compare(arguments: argparse.Namespace, command: str) -> None:
    """Make the cells that are not there, and put together those that are."""
    results, cells = RESULTS / f"{arguments.stage}-{arguments.on}.json", GRIDS[arguments.stage](arguments.on)
    grid.unpack(results, cells, arguments.work)
    for cell in cells:
        if cell.method in (arguments.methods or [cell.method]) and not cell.kept(arguments.work).exists():
            made = comparing.result_of(cell, arguments.data, arguments.work)
            print(f"{cell.kept(arguments.work).stem}, {made['seconds']} s", flush=True)
    there = [
        comparing.result_of(cell, arguments.data, arguments.work)
        for cell in cells
        if cell.kept(arguments.work).exists()
    ]
    grid.pack(
        results, cells, arguments.work, command=command, module=comparing.MODULE, summaries=comparing.summaries(there)
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*GRIDS, "active", "race", "converge", "speed", "table", "plot"])
    parser.add_argument("--on", choices=list(TABLES), default="world", help="table of answers")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the published data")
    parser.add_argument("--methods", nargs="+", help="of a grid; all of them by default")
    parser.add_argument("--work", type=Path, default=Path("runs/fewshot"), help="folder of cells that are finished")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="of one core, for the module in `race` and `converge`"
    )
    parser.add_argument("--of", default="compare-world", help="results to print or draw")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
