"""The weighting seat on the rows of one policy: what each row counts, and weights over groups that follow the worst."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pluralign.config import GroupWeightingConfig, TrainConfig, WeightingConfig
from pluralign.errors import InputError
from pluralign.objectives import group_coefficients, group_scales, importance_weights, update_group_weights
from pluralign.preferences.schema import Preference
from pluralign.storage import read_json, write_json

STATE_FILE = "group_weights.json"
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
    ) -> None:
        self.config, self._counts = config, counts
        groups = config.groups
        rows = [row for row in train if _has_side(row)] if groups.by != "rows" else []
        # N_g is of rows that have a loss; a group without any is still one, and weighs nothing.
        sizes = Counter({_group(row, groups.column): 0 for row in rows})
        sizes.update(_group(row, groups.column) for row in rows if counts(row.responses))
        self.names = list(sizes)
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self._sizes = torch.tensor([max(size, 1) for size in sizes.values()], dtype=torch.float64)
        self._factors = [1.0] * len(self.names)
        # Whoever has no rows yet (an online run samples them) has no groups.
        if groups.by == "importance" and self.names:
            shares = importance_weights(self._sizes)
            self._factors = (shares * self._sizes.sum() / (shares * self._sizes).sum()).tolist()
        self.ascent = GroupAscent(groups, self.names, self._sizes) if groups.by == "worst" else None

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
        mean = len(self.names) / float(self._sizes.sum())
        numbers = [self.group(row) for row in rows]
        return [mean if number == NO_GROUP else 1 / float(self._sizes[number]) for number in numbers]


class GroupAscent:
    """Group-robust weights alpha on the simplex, and what they make a row count (see `objectives/group_weights.py`).

    Args:
        settings: step size, trade-off, scale and so on.
        names: the K groups.
        sizes: [K] float64, rows to learn from in each.

    Attributes:
        weights: alpha, [K] float64.
    """

    def __init__(self, settings: GroupWeightingConfig, names: Sequence[str], sizes: Tensor) -> None:
        self.settings, self.names, self.sizes = settings, list(names), sizes
        self.weights = torch.full_like(sizes, 1 / max(len(names), 1))

    def row_factors(self, totals: Tensor) -> Tensor:
        """What a row's weight is multiplied by, by its group: then the sum over rows is the robust loss.

        Args:
            totals: [K], sums of the weights of the rows that the loss is of.

        Returns:
            [K] float64.
        """
        coefficients = group_coefficients(self.weights, trade_off=self.settings.trade_off)
        return coefficients * self._scales(totals)

    def move(self, sums: Tensor, totals: Tensor, *, rate: float = 1.0) -> None:
        """One step of the ascent.

        Args:
            sums: [K], of the rows' weighted losses.
            totals: [K], of their weights.
            rate: learning rate as a share of its peak, in (0, 1]: the step size may follow it.
        """
        settings = self.settings
        self.weights = update_group_weights(
            self.weights,
            self._scales(totals) * sums.to(self.weights),
            torch.arange(len(self.names)),
            step_size=settings.step_size * _followed(rate, settings.step_factor),
            sizes=self.sizes,
            trade_off=settings.trade_off,
            adjustment=settings.adjustment,
        )

    def _scales(self, totals: Tensor) -> Tensor:
        return group_scales(totals.to(self.weights), sizes=self.sizes, scale=self.settings.scale)

    def save(self, checkpoint: Path) -> None:
        """Write the weights into a checkpoint."""
        write_json(checkpoint / STATE_FILE, dict(zip(self.names, self.weights.tolist(), strict=True)))

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint's weights: the same numbers to the last bit."""
        kept = read_json(checkpoint / STATE_FILE)
        self.weights = torch.tensor([kept[name] for name in self.names], dtype=torch.float64)


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


def check_best_metric(config: TrainConfig, *, together: bool) -> None:
    """Raise now, and not at everybody's first validation, where the best checkpoint is to be a group's and cannot be.

    Args:
        config: of the run.
        together: whether people are trained in the bank, which has no metrics by group.

    Raises:
        InputError: nobody would measure the metric.
    """
    metric, training = config.training.metric_for_best_model.removeprefix("eval_"), config.training
    chosen = training.load_best_model_at_end or training.early_stopping_patience is not None
    if not chosen or not metric.startswith(("group/", "worst_group/")):
        return
    by = config.weighting.groups.by
    if together or by == "rows":
        why = "people are trained in the bank" if together else f"weighting.groups.by is {by}"
        raise InputError(
            f"training.metric_for_best_model is {metric}, and {why}, which measures no groups",
            fix="Take engine trainer and a choice of weighting.groups.by, or another metric.",
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


def _followed(rate: float, factor: float) -> float:
    """Factor for every tenfold drop of the learning rate."""
    if factor == 1.0:
        return 1.0
    return 0.0 if rate <= 0 else float(factor ** -math.log10(rate))
