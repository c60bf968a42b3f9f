"""From verdicts to win rates: each person's and everybody's, as they are and at equal length, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pluralign.evaluation.length_control import (
    NAME,
    OWN_SPREAD,
    SHARED_SPREADS,
    Array,
    Contests,
    LengthFit,
    fit_lengths,
    refitted,
)
from pluralign.evaluation.statistics import RESAMPLES, Interval, mean
from pluralign.progress import progress_bar

FEWEST_RESAMPLES, MOST_DRAWN = 200, 10**8
"""Resamples of however many comparisons, and comparisons drawn in all resamples together: of more there are fewer."""


@dataclass(frozen=True)
class Judged:
    """One prompt: an answer beside the one that it is compared with, and what was said of them.

    Attributes:
        verdicts: one each time it was asked: whether the answer stood first, and 1 where it won, 1/2 where neither did,
            0 where the other one did; None where the annotator abstained.
        characters: of the answer.
        against_characters: of the other one.
        same: whether the two are the same text, and nobody was asked.
    """

    verdicts: tuple[tuple[bool, float | None], ...]
    characters: int
    against_characters: int
    same: bool = False

    @property
    def score(self) -> float | None:
        """Mean over the times it was asked; None where the annotator abstained from one of them."""
        said = [verdict for _, verdict in self.verdicts if verdict is not None]
        return sum(said) / len(said) if said and len(said) == len(self.verdicts) else None

    @property
    def flipped(self) -> bool:
        """Whether the verdict followed the place: won in the one and lost in the other."""
        return {verdict for _, verdict in self.verdicts} == {0.0, 1.0}


@dataclass(frozen=True)
class WinRates:
    """What is made of everybody's comparisons.

    Attributes:
        people: id -> `win_rate`, as in the file.
        everybody: the pooled figures of the file's own `win_rate`.
    """

    people: dict[str, dict[str, Any]]
    everybody: dict[str, Any]


def win_rates(judged: Mapping[str, Sequence[Judged]], *, length_control: bool = True, seed: int = 0) -> WinRates:
    """Everybody's figures; docs/winrate.md has their keys.

    Args:
        judged: person -> comparisons.
        length_control: whether win rates at equal length are wanted.
        seed: of the resamples.
    """
    decided = {person: [one for one in some if one.score is not None] for person, some in judged.items()}
    having = {person: some for person, some in decided.items() if some}
    made = Contests.of(
        [[float(one.score or 0.0) for one in some] for some in having.values()],
        [[float(one.characters - one.against_characters) for one in some] for some in having.values()],
    )
    fit = fit_lengths(made) if length_control and having else None
    sampled = _Resampled.of(made, fit, seed=seed)
    places = {person: place for place, person in enumerate(having)}
    people = {
        person: {**_counts(some, decided[person]), **sampled.figures_of(places.get(person))}
        for person, some in judged.items()
    }
    pooled = [one for some in judged.values() for one in some]
    everybody = {
        **_counts(pooled, [one for some in decided.values() for one in some]),
        **sampled.figures_of_all(),
        "same": sum(one.same for one in pooled),
        "regression": _regression(made, fit) if fit else None,
        "bootstrap": {"draws": sampled.draws, "seed": seed},
    }
    return WinRates(people, everybody)


@dataclass
class _Resampled:
    """Rates of everybody, and in resamples of each person's prompts and of people.

    Attributes:
        made: the comparisons.
        rates: `raw` and `length_controlled` -> [people].
        by_prompts: the same -> [draws, people].
        by_people: the same -> [draws] of the mean over people.
        draws: how many.
    """

    made: Contests
    rates: dict[str, Array]
    by_prompts: dict[str, Array] = field(default_factory=dict)
    by_people: dict[str, Array] = field(default_factory=dict)
    draws: int = 0

    @classmethod
    def of(cls, made: Contests, fit: LengthFit | None, *, seed: int) -> _Resampled:
        people, rows = len(made.starts), len(made.person)
        found = cls(made, _rates(made, fit))
        if not rows:
            return found
        found.draws = max(FEWEST_RESAMPLES, min(RESAMPLES, MOST_DRAWN // rows))
        generator = np.random.default_rng(seed)
        by_prompts, by_people = [], []
        with progress_bar() as bar:
            for _ in bar.track(range(found.draws), description="resampling"):
                drawn = made.starts[made.person] + (generator.random(rows) * made.counts[made.person]).astype(np.intp)
                some = made.drawn(drawn)
                by_prompts.append(_rates(some, refitted(some, fit) if fit else None))
                each = np.bincount(generator.integers(0, people, people), minlength=people).astype(np.float64)
                rates = _rates(made, refitted(made, fit, each) if fit else None)
                by_people.append({name: float(each @ some) / people for name, some in rates.items()})
        found.by_prompts = {name: np.stack([one[name] for one in by_prompts]) for name in found.rates}
        found.by_people = {name: np.array([one[name] for one in by_people]) for name in found.rates}
        return found

    def figures_of(self, place: int | None) -> dict[str, Any]:
        """A person's rates and their intervals, over prompts; None without a verdict, no interval below two."""
        rows = 0 if place is None else int(self.made.counts[place])
        found: dict[str, Any] = {}
        for name in ("raw", "length_controlled"):
            there = place is not None and name in self.rates
            found[name] = float(self.rates[name][place]) if there else None
            found[f"{name}_interval"] = _interval(self.by_prompts[name][:, place]) if there and rows > 1 else None
        return found

    def figures_of_all(self) -> dict[str, Any]:
        """Means over people, each counting once, and their intervals, over people."""
        found: dict[str, Any] = {}
        for name in ("raw", "length_controlled"):
            there = name in self.rates and len(self.rates[name]) > 0
            found[name] = float(self.rates[name].mean()) if there else None
            several = there and len(self.rates[name]) > 1
            found[f"{name}_interval"] = _interval(self.by_people[name]) if several else None
        return found


def _rates(made: Contests, fit: LengthFit | None) -> dict[str, Array]:
    raw = made.by_person(made.score) / made.counts
    return {"raw": raw, **({} if fit is None else {"length_controlled": fit.rates})}


def _interval(values: Array) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _counts(judged: Sequence[Judged], decided: Sequence[Judged]) -> dict[str, Any]:
    scores = [float(one.score or 0.0) for one in decided]
    first = [verdict if stood_first else 1 - verdict for stood_first, verdict in _said(decided) if verdict != 1 / 2]
    return {
        "n": len(decided),
        "abstained": len(judged) - len(decided),
        "wins": sum(score > 1 / 2 for score in scores),
        "ties": sum(score == 1 / 2 for score in scores),
        "losses": sum(score < 1 / 2 for score in scores),
        "first_place": mean(first),
        "flipped": sum(one.flipped for one in decided),
        "characters": mean(float(one.characters) for one in decided),
        "against_characters": mean(float(one.against_characters) for one in decided),
    }


def _said(decided: Sequence[Judged]) -> Iterator[tuple[bool, float]]:
    return ((place, verdict) for one in decided for place, verdict in one.verdicts if verdict is not None)


def _regression(made: Contests, fit: LengthFit) -> dict[str, Any]:
    return {
        "name": NAME,
        "intercept": float(fit.shared[0]),
        "length": float(fit.shared[1]),
        "scale": made.scale,
        "spreads": dict(zip(("intercept", "length", "person"), (*SHARED_SPREADS.tolist(), OWN_SPREAD), strict=True)),
    }
