"""Training curves of a population from `metrics.jsonl`, read once: quantile bands, and some curves as they are."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pluralign.errors import InputError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
METRICS = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/base",
    "anchor/loss",
)
MOST_GROUPS = 12
"""Lines that one chart of group weights tells apart."""
_VALIDATION = "eval_"


@dataclass
class Curve:
    """One metric over the positions of `Curves`.

    Attributes:
        bands: a list of values a quantile of `QUANTILES`, over people; None at a position without anybody.
        count: people at each position.
        singles: id -> their own values.
        validation: median of the same metric on held-out rows; empty where there was none.
    """

    bands: list[list[float | None]]
    count: list[int]
    singles: dict[str, list[float | None]]
    validation: list[float | None] = field(default_factory=list)


@dataclass
class Curves:
    """What a run logged.

    Attributes:
        steps: the positions: the optimiser step at the end of each.
        people: how many have lines.
        metrics: metric -> its curve; those that nobody logged are not there.
        groups: group -> median over people of its weight in the loss, the heaviest first at the end.
        groups_left_out: groups that are too many for a chart.
    """

    steps: list[int]
    people: int
    metrics: dict[str, Curve]
    groups: dict[str, list[float | None]]
    groups_left_out: int


@dataclass
class _Lines:
    """The values of one metric, in the order of the lines."""

    users: array[int] = field(default_factory=lambda: array("l"))
    steps: array[int] = field(default_factory=lambda: array("l"))
    values: array[float] = field(default_factory=lambda: array("d"))


class Log:
    """The metrics of a run, read once.

    Args:
        path: `metrics.jsonl`; where it is missing, nothing was logged.

    Raises:
        InputError: a line is no object with a person and a step; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.users: dict[str, int] = {}
        self._metrics: dict[str, _Lines] = {}
        self._last = 0
        self._gaps: Counter[int] = Counter()
        before: dict[int, int] = {}
        for line in _lines(path):
            user = self.users.setdefault(line["user"], len(self.users))
            self._last = max(self._last, line["step"])
            if (gap := line["step"] - before.get(user, 0)) > 0:
                self._gaps[gap] += 1
                before[user] = line["step"]
            for name, value in line.items():
                plain = name.removeprefix(_VALIDATION)
                if not (plain in METRICS or _group_of(name)) or isinstance(value, bool):
                    continue
                if isinstance(value, int | float) and math.isfinite(value):
                    found = self._metrics.setdefault(name, _Lines())
                    found.users.append(user)
                    found.steps.append(line["step"])
                    found.values.append(value)

    def curves(self, singles: Collection[str], *, every: float, positions: int = 60) -> Curves | None:
        """Curves over at most `positions` positions; None where nothing was logged.

        A person's values between two positions are averaged: people log at steps of their own (their last one, and at
        checkpoints), and a quantile over the few who share such a step would jump.

        Args:
            singles: whose curves are kept as they are.
            every: steps between two lines, as the run was configured.
            positions: at most so many.
        """
        if not self._metrics or not self._last:
            return None
        width = max(math.ceil(every), 1) if every >= 1 else 1
        # An online run logs each step of a phase, whatever it was configured to.
        (usual, times), *_ = self._gaps.most_common(1)
        if times > self._gaps.total() / 2:
            width = min(width, usual)
        width *= math.ceil(math.ceil(self._last / width) / positions)
        count = math.ceil(self._last / width)
        kept = [user for user in singles if user in self.users]
        found: dict[str, Curve] = {}
        for name in METRICS:
            if name in self._metrics:
                found[name] = _curve(self._table(name, width, count), {user: self.users[user] for user in kept})
                if f"{_VALIDATION}{name}" in self._metrics:
                    found[name].validation = _medians(self._table(f"{_VALIDATION}{name}", width, count))
        groups = {
            group: _medians(self._table(name, width, count)) for name in self._metrics if (group := _group_of(name))
        }
        heavy = sorted(groups, key=lambda group: -(_last_of(groups[group]) or 0.0))
        return Curves(
            steps=[min((place + 1) * width, self._last) for place in range(count)],
            people=len(self.users),
            metrics=found,
            groups={group: groups[group] for group in heavy[:MOST_GROUPS]},
            groups_left_out=len(heavy[MOST_GROUPS:]),
        )

    def _table(self, name: str, width: int, count: int) -> NDArray[np.float64]:
        """[people, positions] means; NaN where a person has no line."""
        lines = self._metrics[name]
        places = np.maximum(np.asarray(lines.steps) - 1, 0) // width
        cells = np.asarray(lines.users) * count + places
        size = len(self.users) * count
        sums = np.bincount(cells, weights=np.asarray(lines.values), minlength=size)
        with np.errstate(invalid="ignore"):
            return (sums / np.bincount(cells, minlength=size)).reshape(len(self.users), count)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of metrics; the torn end that a kill may leave is passed over."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not _is_line(line):
                found = "not an object with the text `user` and the number `step`"
                raise InputError(found, where=f"{path}, line {number}", fix="Remove the line.")
            yield line


def _is_line(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get("user"), str) and isinstance(line.get("step"), int)


def _group_of(name: str) -> str:
    """The group whose weight a metric is; empty for others."""
    is_weight = name.startswith("group/") and name.endswith("/weight")
    return name[len("group/") : -len("/weight")] if is_weight else ""


def _curve(table: NDArray[np.float64], singles: dict[str, int]) -> Curve:
    columns = [column[~np.isnan(column)] for column in table.T]
    quantiles = [np.quantile(column, QUANTILES) if len(column) else [None] * len(QUANTILES) for column in columns]
    return Curve(
        bands=[[_rounded(at[place], 4) for at in quantiles] for place in range(len(QUANTILES))],
        count=[len(column) for column in columns],
        singles={user: [_rounded(value, 3) for value in table[row]] for user, row in singles.items()},
    )


def _medians(table: NDArray[np.float64]) -> list[float | None]:
    columns = [column[~np.isnan(column)] for column in table.T]
    return [_rounded(np.median(column), 4) if len(column) else None for column in columns]


def _rounded(value: Any, digits: int) -> float | None:
    """A number with as many digits as a chart can show."""
    return None if value is None or math.isnan(value) else float(f"{value:.{digits}g}")


def _last_of(values: list[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
