"""The cross table as cells of a heat map: whose adapter, on whose pairs, how accurate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from pluralign.reporting.gather import Person, Run
from pluralign.reporting.names import Names

MOST_PEOPLE = 40
"""Rows and columns in which a name can still be read."""
MOST_GROUPS = 24
_SAMPLE = 4
"""People on whose pairs everybody's adapter was tried, where not all were tried on all."""


def cross_maps(run: Run, people: Names, groups: Names) -> list[dict[str, Any]]:
    """Heat maps of a run; none without a cross table.

    Each is `{title, rows, columns, cells, note}`: labels of rows (adapters) and columns (pairs), and cells
    `[row, column, accuracy in thousandths, pairs, person or -1]`; the person is whose pairs they are, by number.
    """
    if not any(person.cross for person in run.people.values()):
        return []
    maps = [_people_map(run, people) if len(run.people) <= MOST_PEOPLE else _sample_map(run, people)]
    known = _groups(run)
    if 1 < len(known) < len(run.people):
        maps.append(_group_map(run, groups, known))
    return maps


def _people_map(run: Run, people: Names) -> dict[str, Any]:
    """Everybody on everybody, worst first; people of one group stand together, so that what they share is a block."""
    places = {group: number for number, group in enumerate(_groups(run))}
    order = sorted(run.people, key=lambda user: places.get(run.people[user].group or "", len(places)))
    place = {user: number for number, user in enumerate(order)}
    cells = [
        _cell(place[user], place[other], accuracy, pairs, people.index(other))
        for user, person in run.people.items()
        for other, accuracy, pairs in _tried(person)
        if other in place
    ]
    labels = [people.label(user) for user in order]
    return {"title": "people", "rows": labels, "columns": labels, "cells": cells, "note": ""}


def _sample_map(run: Run, people: Names) -> dict[str, Any]:
    """The worst people's adapters on their own pairs, on those of the people all were tried on, and of near ones."""
    tried = Counter(other for user, person in run.people.items() for other in person.cross if other != user)
    sample = [other for other, times in tried.most_common(_SAMPLE) if times > len(run.people) / 2]
    rows = list(run.people)[:MOST_PEOPLE]
    cells, near = [], 0
    for row, user in enumerate(rows):
        column = len(sample) + 1
        for other, accuracy, pairs in _tried(run.people[user]):
            if other == user:
                at = 0
            elif other in sample:
                at = 1 + sample.index(other)
            else:
                at, column = column, column + 1
            near = max(near, at - len(sample))
            cells.append(_cell(row, at, accuracy, pairs, people.index(other)))
    return {
        "title": "people",
        "rows": [people.label(user) for user in rows],
        "columns": ["own", *map(people.label, sample), *(f"near {number}" for number in range(1, near + 1))],
        "cells": cells,
        "note": f"The {len(rows)} people who are served worst. Every adapter was tried on its own person's pairs, on "
        "those of a fixed sample of people, and on those of people whose preferences are near. No colour: not tried.",
    }


def _group_map(run: Run, groups: Names, known: list[str]) -> dict[str, Any]:
    """Means over people of one group on the pairs of people of another."""
    sizes = Counter(person.group for person in run.people.values())
    largest = sorted(known, key=lambda group: -sizes[group])[:MOST_GROUPS]
    order = [group for group in known if group in largest]
    place = {group: number for number, group in enumerate(order)}
    found: dict[tuple[int, int], list[float]] = {}
    for user, person in run.people.items():
        for other, accuracy, _ in _tried(person):
            theirs = run.people[other].group if other in run.people else None
            # A person's own pairs would make every group look alike in itself.
            if other != user and person.group in place and theirs in place:
                found.setdefault((place[person.group], place[theirs]), []).append(accuracy)
    labels = [groups.label(group) for group in order]
    left = len(known) - len(order)
    note = "Mean over people of the adapters of one group on the pairs of other people, of the same or another group."
    return {
        "title": "groups",
        "rows": labels,
        "columns": labels,
        "cells": [_cell(row, column, fmean(some), len(some), -1) for (row, column), some in found.items()],
        "note": f"{note} {left} smaller groups are left out." if left else note,
    }


def _groups(run: Run) -> list[str]:
    """Groups in the order of their worst people."""
    return list(dict.fromkeys(person.group for person in run.people.values() if person.group is not None))


def _tried(person: Person) -> Iterator[tuple[str, float, int]]:
    for other, cell in person.cross.items():
        accuracy = cell.get("accuracy") if isinstance(cell, dict) else None
        if isinstance(accuracy, int | float):
            yield other, accuracy, int(cell.get("n") or 0)


def _cell(row: int, column: int, accuracy: float, count: int, person: int) -> list[int]:
    return [row, column, round(1000 * accuracy), count, person]
