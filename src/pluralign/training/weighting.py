"""The weighting seat on the rows of one policy: what each row counts."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import torch

from pluralign.config import GroupWeightingConfig, TrainConfig, WeightingConfig
from pluralign.errors import InputError
from pluralign.objectives import importance_weights
from pluralign.preferences.schema import Preference
from pluralign.training.ascent import GroupAscent

NO_GROUP = -1
"""Group of rows without a response of the pair: they are there for an anchor, and belong to nobody."""


class Weighting:
    """What the rows of one policy count.

    A row weighs what its column says; with `groups.by: importance` that is multiplied by N / (K N_g), so that every
    group of the data weighs the same; with `sampling`, rows of every group are drawn as often.

    Args:
        config: the seat.
        train: rows to learn from.
        counts: says of a row's responses whether it has a loss of its own, to be divided by (`Objective.counts`).
        among: what earlier rows of the same policy counted: the groups are those, with their numbers, and the weights
            that follow their losses go on.

    Attributes:
        names: the groups, in order of first appearance; none where groups do not count.
        ascent: weights over the groups that follow their losses, or None.

    Raises:
        InputError: a row has no such column, or a weight that is no finite number >= 0.
    """

    def __init__(
        self,
        config: WeightingConfig,
        train: Sequence[Preference],
        *,
        counts: Callable[[Collection[str]], bool] = lambda responses: True,
        among: Weighting | None = None,
    ) -> None:
        self.config, self._counts = config, counts
        groups = config.groups
        rows = [row for row in train if _has_side(row)] if groups.by != "rows" else []
        # N_g is of rows that have a loss; a group without any (now, or in a phase of an online run) is still one.
        known = [_group(row, groups.column) for row in rows] if among is None else among.names
        sizes = Counter(dict.fromkeys(known, 0))
        own = Counter(_group(row, groups.column) for row in rows if counts(row.responses))
        sizes.update({name: size for name, size in own.items() if name in sizes})
        self.names: list[str] = list(sizes)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        counted = torch.tensor(list(sizes.values()), dtype=torch.float64)
        self._sizes = counted.clamp(min=1)
        self._mean_chance = float((counted > 0).sum() / counted.sum()) if counted.sum() > 0 else 1.0
        self._factors = [1.0] * len(self.names)
        if groups.by == "importance" and counted.sum() > 0:
            shares = importance_weights(self._sizes)
            self._factors = (shares * counted.sum() / (shares * counted).sum()).tolist()
        self.ascent: GroupAscent | None = None
        if among is not None:
            self.ascent = among.ascent
        elif groups.by == "worst" and self.names:
            self.ascent = GroupAscent(groups, self.names, self._sizes)

    def weight(self, row: Preference) -> float:
        """What a row counts, >= 0."""
        if not self._counts(row.responses):
            return 0.0
        number = self.group(row)
        factor = self._factors[number] if number != NO_GROUP else 1.0
        return row_weight(row, self.config.column) * factor

    def group(self, row: Preference) -> int:
        """The number of a row's group; `NO_GROUP` where groups do not count, or nobody learns from the row's."""
        if not self.names or not _has_side(row):
            return NO_GROUP
        return self._numbers.get(_group(row, self.config.groups.column), NO_GROUP)

    def chances(self, rows: Sequence[Preference]) -> list[float] | None:
        """What each row is drawn in proportion to, or None where every row comes once an epoch."""
        if self.config.groups.by != "sampling":
            return None
        numbers = [self.group(row) for row in rows]
        return [self._mean_chance if number == NO_GROUP else 1 / float(self._sizes[number]) for number in numbers]


def check_weighting(config: TrainConfig) -> None:
    """Raise where a setting of the seat is out of its range, or would be without effect.

    Raises:
        InputError: names the key.
    """
    groups, usual = config.weighting.groups, GroupWeightingConfig()
    for name, value, fits, expected in (
        ("step_size", groups.step_size, 0 <= groups.step_size < math.inf, "a number of 0 or more"),
        ("step_factor", groups.step_factor, 0 < groups.step_factor <= 1, "in (0, 1]"),
        ("trade_off", groups.trade_off, 0 <= groups.trade_off <= 1, "in [0, 1]"),
        ("adjustment", groups.adjustment, 0 <= groups.adjustment < math.inf, "a number of 0 or more"),
    ):
        if not fits:
            raise InputError(f"weighting.groups.{name} is {value}", fix=f"It must be {expected}.")
    for name in ("step_size", "step_factor", "trade_off", "adjustment", "scale", "update"):
        if groups.by != "worst" and getattr(groups, name) != getattr(usual, name):
            raise InputError(
                f"weighting.groups.{name} is {getattr(groups, name)}, and by is {groups.by}",
                fix=f"It is a setting of by worst; for {groups.by} leave it as it is.",
            )
    order = config.training.extra_arguments.get("train_sampling_strategy")
    if groups.by == "sampling" and order == "sequential":
        raise InputError(
            "weighting.groups.by is sampling and training.extra_arguments.train_sampling_strategy is sequential",
            fix="Rows are drawn, or come in their order: leave one of the two out.",
        )


def check_best_metric(config: TrainConfig) -> None:
    """Raise now, and not at everybody's first validation, where the best checkpoint is to be a group's and cannot be.

    Raises:
        InputError: nobody would measure the metric.
    """
    metric, training = config.training.metric_for_best_model.removeprefix("eval_"), config.training
    chosen = training.load_best_model_at_end or training.early_stopping_patience is not None
    if not chosen or not metric.startswith(("group/", "worst_group/")):
        return
    if config.weighting.groups.by == "rows":
        raise InputError(
            f"training.metric_for_best_model is {metric}, and weighting.groups.by is rows, which measures no groups",
            fix="Make another choice of weighting.groups.by, or take another metric.",
        )


def row_fault(row: Preference, config: WeightingConfig) -> str | None:
    """Why a row cannot be weighed, with its place, or None."""
    try:
        row_weight(row, config.column)
        if config.groups.by != "rows" and _has_side(row):
            _group(row, config.groups.column)
    except InputError as error:
        return str(error)
    return None


def warn_of_unknown_groups(
    config: WeightingConfig, train: Sequence[Preference], held_out: Sequence[Preference]
) -> None:
    """Warn of groups that are held out and have no row to learn from: they have no weight and no metrics."""
    column = config.groups.column
    if config.groups.by == "rows":
        return
    known = {_group(row, column) for row in train if _has_side(row)}
    unknown = sorted({_group(row, column) for row in held_out if _has_side(row)} - known)
    if unknown:
        named = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        warnings.warn(
            f"group {named} is held out and nobody learns from it: its rows count in the loss, in no group's metrics",
            stacklevel=3,
        )


def row_weight(row: Preference, column: str | None) -> float:
    """The weight of a row by its column; 1 without one.

    Raises:
        InputError: the row has no such column, or no finite number >= 0 in it.
    """
    if column is None:
        return 1.0
    place = f"{row.place}, column {column!r}"
    if column not in row.columns:
        raise InputError("there is no such column", where=place, fix="weighting.column names a column of the table.")
    value = row.columns[column]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InputError(f"holds {value!r}", where=place, fix="A weight is a finite number of 0 or more.")
    return float(value)


def _group(row: Preference, column: str) -> str:
    value = {"user": row.user, "group": row.group, **row.columns}.get(column)
    if value is None or value == "":
        raise InputError(
            "the row names no group",
            where=f"{row.place}, column {column!r}",
            fix="weighting.groups.column names a column of the table; every row has a value there.",
        )
    return str(value)


def _has_side(row: Preference) -> bool:
    return row.chosen is not None or row.rejected is not None
