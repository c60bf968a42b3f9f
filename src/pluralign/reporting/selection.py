"""Who is on the page, where there are too many for all to be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from pluralign.reporting.gather import Run
from pluralign.reporting.measures import ACCURACY, KEPT


def fixed_sample(users: Iterable[str], size: int) -> list[str]:
    """Some people, chosen by a hash of their ids: the same ones in every run that has them."""
    return sorted(users, key=_place)[:size]


def front(run: Run, across: str = KEPT, up: str = ACCURACY) -> list[str]:
    """People of the Pareto front, one for each of its points: nobody has more of one measure without less of the other.

    Args:
        run: whose people.
        across: measure, more is better; who has no value is on no front.
        up: measure, more is better.
    """
    both = [
        (user, person.values) for user, person in run.people.items() if across in person.values and up in person.values
    ]
    found, highest = [], float("-inf")
    for user, values in sorted(both, key=lambda item: (-item[1][across], -item[1][up])):
        if values[up] > highest:
            found.append(user)
            highest = values[up]
    return found


def selected(runs: Sequence[Run], most: int) -> set[str]:
    """People for the page: everybody, or so many that the runs together have at most `most` rows.

    Those are the people of each run's Pareto front, the worst of every run, and for the other half a fixed sample.
    The same people stand in every run.

    Args:
        runs: with their people, worst first.
        most: rows, a row a person and run.
    """
    everybody = dict.fromkeys(user for run in runs for user in run.people)
    if sum(len(run.people) for run in runs) <= most:
        return set(everybody)
    room = most // len(runs)
    worst = (user for users in zip_longest(*(run.people for run in runs)) for user in users if user is not None)
    fronts = (user for run in runs for user in front(run))
    chosen = _first((*fronts, *worst), room // 2)
    return set(_first((*chosen, *fixed_sample(everybody, room)), room))


def _first(users: Iterable[str], count: int) -> list[str]:
    return list(dict.fromkeys(users))[:count]


def _place(user: str) -> bytes:
    return hashlib.sha256(user.encode("utf-8", "surrogatepass")).digest()
