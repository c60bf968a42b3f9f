"""How a measure falls on people: the worst one, the worst tenth, the gap, the Gini coefficient; also of resamples.

Every statistic is computed of counts, how often each person is drawn. With a count of one for everybody it is the
statistic of the people themselves; with those of resamples it is its bootstrap distribution, by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralign.evaluation.results import measures_of, path_of

Array = NDArray[np.float64]

GINI = (
    "pairs.accuracy",
    "pairs.ranking_accuracy",
    "retention.kept",
    "retention.kept_own",
    "retention.accuracy",
    "behaviour.person.style",
    "behaviour.person.right",
    "behaviour.person.degenerate",
    "behaviour.person.repetition",
    "win_rate.raw",
    "win_rate.length_controlled",
)
"""Measures that are shares: of these there is a Gini coefficient, which takes values that cannot be negative."""
ADDED = ("worst_decile", "gap_90_10", "gini")
"""Statistics beside those that the summary of an evaluation has."""
DRAWS = 10_000
"""Resamples of a bootstrap, of up to 1000 people."""
FEWEST_DRAWS, MOST_DRAWN = 1000, 10**7
"""Resamples of however many people, and people drawn in all resamples together: of more people there are fewer."""
_COUNTED = ("pairs", "base_responses")
"""Parts of a person's results that always have a value where something (`n`) was measured: a null is then no number."""
_MORE = 50
"""People beyond twice the worst tenth who are looked at first."""
_BLOCK = 2**18
"""Counts that are worked on at a time: in a processor's cache that is several times quicker than outside of it."""


@dataclass(frozen=True)
class Measured:
    """One measure of some people.

    Attributes:
        values: person -> value, finite.
        missing: people without one, as nothing was measured.
        undefined: people whose value is no number (NaN or infinite, which a file has as null beside what was measured).
    """

    values: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    undefined: list[str] = field(default_factory=list)


def measured(people: Mapping[str, Any], measure: str) -> Measured:
    """Everybody's value of a measure, and who has none.

    Args:
        people: id -> results, as in `evaluation.json`.
        measure: dotted key below a person, such as `pairs.accuracy`.
    """
    found = Measured()
    for person, results in people.items():
        first, *between, key = path_of(results, measure)
        whole: Any = results.get(first)
        part = whole
        for name in between:
            part = part.get(name) if isinstance(part, Mapping) else None
        part = part if isinstance(part, Mapping) else {}
        value = part.get(key)
        number = finite_number(value)
        if number is not None:
            found.values[person] = number
        elif value is None and not _was_measured(whole, key, counted=first in _COUNTED):
            found.missing.append(person)
        else:
            found.undefined.append(person)
    return found


def _was_measured(part: Any, key: str, *, counted: bool) -> bool:
    """Whether a part of a person's results that has a null was measured: the null is then no number."""
    if not isinstance(part, Mapping):
        return False
    return bool(part.get("undefined")) or (counted and key in part and bool(part.get("n")))


def finite_number(value: Any) -> float | None:
    """A value of JSON as a number; None for what is none, or none that is finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        # JSON takes whole numbers of any length.
        return None
    return number if math.isfinite(number) else None


def over_people(people: Mapping[str, Any]) -> dict[str, float | None]:
    """`<measure>.worst_decile`, `.gap_90_10` and, of shares, `.gini`, for every measure whose worst the summary has.

    None where nobody has a value; people without one are left out, see `measured`.

    Args:
        people: id -> results, as in `evaluation.json`.
    """
    flat: dict[str, float | None] = {}
    for measure, higher in measures_of(people).items():
        values = list(measured(people, measure).values.values())
        found = describe(values, higher=higher, gini=measure in GINI and min(values, default=0.0) >= 0)
        flat |= {f"{measure}.{name}": found.get(name) for name in ADDED if name != "gini" or measure in GINI}
    return flat


def describe(values: Sequence[float], *, higher: bool = True, gini: bool = True) -> dict[str, float]:
    """All statistics of some values; empty without any.

    Args:
        values: finite; at least 0 for `gini`.
        higher: whether higher is better; else the worst is the highest.
        gini: whether the Gini coefficient is wanted.

    Returns:
        `mean`, `worst`, `worst_decile` (mean of the worst tenth, rounded up to whole people), `best`, `gap` (best to
        worst), `gap_90_10` (between the 90th and the 10th percentile), all as distances >= 0, and `gini`, in [0, 1).

    Raises:
        ValueError: a value is no number, or is negative and `gini` is asked for.
    """
    if not values:
        return {}
    ones = np.ones((1, len(values)))
    samples = describe_samples(np.asarray(values, dtype=np.float64), ones, higher=higher, gini=gini)
    return {name: float(found[0]) for name, found in samples.items()}


def describe_samples(values: Array, counts: Array, *, higher: bool = True, gini: bool = True) -> dict[str, Array]:
    """`describe` for many samples of the same people at once.

    Args:
        values: [n] of each person.
        counts: [D, n] how often each is in each sample; every sample has n people.
        higher: as in `describe`.
        gini: as in `describe`.

    Returns:
        Name -> [D].

    Raises:
        ValueError: as in `describe`.
    """
    if not np.isfinite(values).all():
        raise ValueError("a value is no number")
    people, size = len(values), tenth(len(values))
    order = np.argsort(values if higher else -values, kind="stable")
    values, counts = values[order], counts[:, order]
    places = (1, people, size, *(place for share in (0.1, 0.9) for place in _around(share, people)))
    # Every sample has as many people: counted through from one to the next, each begins where the last one ends.
    through = counts.ravel().cumsum()
    starts = np.arange(len(counts), dtype=np.float64)[:, None] * people
    at = through.searchsorted(starts + places) - starts.astype(np.intp)
    found_at = values[at]
    worst, best = found_at[:, 0], found_at[:, 1]
    low, high = (_between(found_at[:, place : place + 2], share, people) for place, share in ((3, 0.1), (5, 0.9)))
    lowest = slice(0, int(at[:, 2].max()) + 1)
    upto = through.reshape(counts.shape)[:, lowest] - starts
    found = {
        "mean": counts @ values / people,
        "worst": worst,
        "worst_decile": _first(size, counts[:, lowest], upto) @ values[lowest] / size,
        "best": best,
        "gap": abs(best - worst),
        "gap_90_10": abs(high - low),
    }
    return found | {"gini": _gini(values, counts, through)} if gini else found


def of_the_worst_in(first: Array, second: Array, counts: Array, *, higher: bool = True) -> Array:
    """Mean of the second values over the people who are the worst tenth by the first ones.

    Where people tie at the edge of that tenth, all of them share its last places: the order of a file puts nobody in.

    Args:
        first: [n] of each person.
        second: [n] of the same people.
        counts: [D, n] how often each is in each sample.
        higher: whether higher first values are better.

    Returns:
        [D].
    """
    size = tenth(len(first))
    order = np.argsort(first if higher else -first, kind="stable")
    first, second = first[order], second[order]
    # A sample's worst tenth hardly ever reaches beyond the first fifth of the people.
    rising = first if higher else -first
    enough = int(np.searchsorted(rising, rising[min(2 * size + _MORE, len(first) - 1)], "right"))
    if (counts[:, order[:enough]].sum(axis=1) < size).any():
        enough = len(first)
    first, second, counts = first[:enough], second[:enough], counts[:, order[:enough]]
    starts = np.flatnonzero(np.concatenate([[True], first[1:] != first[:-1]]))
    tied = np.add.reduceat(counts, starts, axis=1)
    means = np.add.reduceat(counts * second, starts, axis=1) / np.maximum(tied, 1)
    return (_first(size, tied, tied.cumsum(axis=1)) * means).sum(axis=1) / size


def draws_of(people: int) -> int:
    """Resamples of so many people: 10,000, and of more than 1000 people fewer, down to 1000."""
    return max(FEWEST_DRAWS, min(DRAWS, MOST_DRAWN // max(people, 1)))


def resamples(people: int, *, draws: int | None = None, seed: int = 0) -> Iterator[Array]:
    """How often each of so many people is drawn when as many are drawn with replacement, the same for the same seed.

    Args:
        people: how many there are, at least 1.
        draws: resamples in all; by default `draws_of` the people.
        seed: of the draw.

    Yields:
        [D, people], a block of the resamples.
    """
    generator, draws = np.random.default_rng(seed), draws_of(people) if draws is None else draws
    block = max(1, _BLOCK // people)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = generator.integers(0, people, (size, people)) + np.arange(size)[:, None] * people
        yield np.bincount(drawn.ravel(), minlength=size * people).reshape(size, people).astype(np.float64)


def tenth(people: int) -> int:
    """A tenth of so many people, rounded up: at least one."""
    return -(-people // 10)


def _first(places: int, counts: Array, upto: Array) -> Array:
    """[D, n]: how much of each count is in the first places, counted through from the left."""
    return np.clip(places - (upto - counts), 0, counts)


def _around(share: float, people: int) -> tuple[int, int]:
    """The places from 1, of people in order, that a quantile lies between."""
    below = math.floor(share * (people - 1))
    return below + 1, min(below + 2, people)


def _between(around: Array, share: float, people: int) -> Array:
    """[D]: a quantile from the values [D, 2] that it lies between, linear between them as numpy's own."""
    place = share * (people - 1)
    return around[:, 0] + (place - math.floor(place)) * (around[:, 1] - around[:, 0])


def _gini(values: Array, counts: Array, through: Array) -> Array:
    """[D]: half the mean distance of two people over the mean; 0 where all have 0.

    Args:
        values: [n], sorted.
        counts: [D, n] of them.
        through: [D * n], counts added up from one sample to the next.
    """
    if (values < 0).any():
        raise ValueError("the Gini coefficient takes no negative value")
    people = len(values)
    # Of sorted values x_1 <= ... <= x_n it is sum((2i - n - 1) x_i) / (n sum(x)); a person drawn w times has the places
    # up to u, the last of their w, whose factors add up to w (2u - w - n). Sorted the other way, the sign changes.
    weighted = counts * values
    total = weighted.sum(axis=1)
    ranks = np.einsum("dn,dn->d", weighted, through.reshape(counts.shape))
    sums = 2 * ranks - np.einsum("dn,dn->d", weighted, counts) - people * (1 + 2 * np.arange(len(counts))) * total
    whole = total * people
    return np.clip(np.divide(abs(sums), whole, out=np.zeros_like(whole), where=whole > 0), 0, 1)
