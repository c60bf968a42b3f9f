"""Win rates without some people: they were removed from the run, or their policies are trained anew."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pluralign.evaluation.contest import person_digest
from pluralign.evaluation.kept_answers import without_people
from pluralign.evaluation.results import Evaluation, measure_of, read_evaluation, without
from pluralign.evaluation.statistics import mean
from pluralign.training.runs import WIN_RATES

_COUNTS = ("n", "abstained", "wins", "ties", "losses", "flipped")
_HEAD = ("run", "against", "annotator", "orders", "max_prompts", "generation", "different")


def forget_win_rates(run: Path, people: Collection[str]) -> int:
    """Take people out of everything below `winrate/` of a run.

    What is pooled over everybody is made anew from who is left as far as it can be: counts and means. The rest is left
    out until the next `pluralign winrate`.

    Args:
        run: its folder.
        people: ids.

    Returns:
        Entries and lines that went.
    """
    digests, gone = {person_digest(person) for person in people}, 0
    for path in sorted((run / WIN_RATES).glob("*.jsonl")):
        gone += without_people(path, digests)
    for path in sorted((run / WIN_RATES).glob("*.json")):
        before = read_evaluation(path)
        entries = len(before.people.keys() & set(people)) + len(before.skipped.keys() & set(people))
        if entries:
            left = without(before, people)
            left.win_rate = _pooled(before, left)
            left.write(path)
            gone += entries
    return gone


def _pooled(before: Evaluation, left: Evaluation) -> dict[str, Any]:
    of_all = before.win_rate or {}
    own = [results.get("win_rate") or {} for results in left.people.values()]
    found: dict[str, Any] = dict.fromkeys(of_all)
    found |= {name: of_all.get(name) for name in _HEAD}
    found |= {name: sum(int(one.get(name) or 0) for one in own) for name in _COUNTS}
    found |= {name: mean(measure_of(one, name) for one in own) for name in ("raw", "length_controlled")}
    return found
