"""How often the intervals of `pluralign compare` hold the truth, on made-up people whose truth is known.

    python benchmarks/compare/coverage.py            # all numbers of people; some minutes of one core
    python benchmarks/compare/coverage.py --table    # the committed results

A comparison is of two runs over the same people, each with 40 held-out pairs in either run. A person's accuracy in the
first run is drawn from Beta(8, 3); in the second it is higher by a normal change of mean 0.03 and standard deviation
0.08, cut at 0 and 1. What is measured are the shares right of 40 pairs. The truth of a statistic for so many people is
its expected difference, from 20,000 comparisons of their own draws. What is finished is kept: the same call goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from pluralign.evaluation.over_people import Array
from pluralign.evaluation.paired import paired_differences
from pluralign.evaluation.statistics import wilson_interval
from pluralign.progress import progress_bar
from pluralign.storage import read_json, write_json
from pluralign.versions import versions

RESULTS = Path(__file__).parent / "coverage.json"
COMPARISONS = {10: (2000, 10_000), 20: (2000, 10_000), 50: (2000, 2000), 200: (1000, 2000)}
"""People -> comparisons, and resamples of each: of more people fewer than `compare` draws, which changes an end of an
interval by about a sixtieth of its length."""
TRUTHS = 20_000
PAIRS, ABILITY, CHANGE = 40, (8, 3), (0.03, 0.08)
SEED = 0


def drawn(people: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Shares right of the same people in two runs."""
    ability = generator.beta(*ABILITY, people)
    better = np.clip(ability + generator.normal(*CHANGE, people), 0, 1)
    first, second = (generator.binomial(PAIRS, one, people) / PAIRS for one in (ability, better))
    return first, second


def truths(people: int) -> dict[str, float]:
    """Statistic -> expected difference."""
    generator = np.random.default_rng([SEED, people, 0])
    sums: dict[str, float] = {}
    for _ in range(TRUTHS):
        first, second = drawn(people, generator)
        # One resample, and not thousands: only the differences are wanted.
        for name, one in paired_differences(first, second, draws=1).items():
            sums[name] = sums.get(name, 0.0) + float(one.difference or 0.0)
    return {name: total / TRUTHS for name, total in sums.items()}


def coverage(people: int, comparisons: int, draws: int) -> dict[str, Any]:
    """Of each statistic: the truth, the share of intervals that hold it, and the interval of that share."""
    truth, generator = truths(people), np.random.default_rng([SEED, people, 1])
    held = dict.fromkeys(truth, 0)
    with progress_bar() as bar:
        for seed in bar.track(range(comparisons), description=f"{people} people"):
            for name, one in paired_differences(*drawn(people, generator), draws=draws, seed=seed).items():
                low, high = one.interval or (0.0, 0.0)
                held[name] += low <= truth[name] <= high
    return {
        "comparisons": comparisons,
        "draws": draws,
        "statistics": {
            name: {
                "difference": round(truth[name], 5),
                "coverage": count / comparisons,
                "coverage_interval": wilson_interval(count, comparisons),
            }
            for name, count in held.items()
        },
    }


def main() -> None:
    """Everything that is not there yet, or the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="print the committed results")
    found = read_json(RESULTS) if RESULTS.exists() else {}
    if not parser.parse_args().table:
        found |= {"schema_version": 1, "seed": SEED, "truths": TRUTHS, "made_with": versions()}
        found |= {"pairs": PAIRS, "ability": ABILITY, "change": CHANGE}
        for people, size in COMPARISONS.items():
            if str(people) not in found.setdefault("people", {}):
                found["people"][str(people)] = coverage(people, *size)
                write_json(RESULTS, found)
    for people, row in found["people"].items():
        print(people, {name: round(one["coverage"], 2) for name, one in row["statistics"].items()})


if __name__ == "__main__":
    main()
