"""Weights over groups that follow the worst of them, from one optimiser step of a policy to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pluralign.config import GroupWeightingConfig
from pluralign.objectives import group_coefficients, group_scales, update_group_weights
from pluralign.storage import read_json, write_json
from pluralign.training.metrics import group_sums

STATE_FILE = "group_weights.json"


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
        write_json(checkpoint / STATE_FILE, self.named)

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint's weights: the same numbers to the last bit."""
        self.restore(read_json(checkpoint / STATE_FILE))

    @property
    def named(self) -> dict[str, float]:
        """Group -> its weight."""
        return dict(zip(self.names, self.weights.tolist(), strict=True))

    def restore(self, named: Mapping[str, float]) -> None:
        """Go on from these weights, to the last bit."""
        self.weights = torch.tensor([named[name] for name in self.names], dtype=torch.float64)

    @property
    def logged(self) -> dict[str, float]:
        """The weights as a line of metrics names them."""
        return {f"group/{name}/weight": value for name, value in self.named.items()}


class AscentStep:
    """One optimiser step of a policy whose rows count as their groups' losses say.

    With `update: step` the weights that were there hold for the whole step, and move at its `end`; with `batch` they
    move by the losses of every batch before that batch counts.

    Args:
        ascent: the weights.
        totals: [K], sums of the weights of the step's rows by group, over all processes, on the device of the losses.
        rate: learning rate of the step as a share of its peak, in [0, 1].
        over_processes: sums a tensor over all processes.
    """

    def __init__(
        self,
        ascent: GroupAscent,
        totals: Tensor,
        *,
        rate: float,
        over_processes: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self.ascent, self.totals, self.rate, self.over_processes = ascent, totals, rate, over_processes
        self.by_batch = ascent.settings.update == "batch"
        self._sums = torch.zeros_like(totals)
        self._factors = totals.new_ones(len(totals) + 1) if self.by_batch else self._factors_of(totals)

    def factors(self, losses: Tensor, weight: Tensor, groups: Tensor) -> Tensor:
        """What the rows' weights are multiplied by: after the mean over the step's rows, the robust loss is left.

        Rows without a group keep their share of the step; those with one share the rest as their groups' weights say.

        Args:
            losses: [B], without a graph.
            weight: [B].
            groups: [B] int64, -1 for a row of none.

        Returns:
            [B] in the dtype of the weights.
        """
        sums = group_sums(weight * losses, groups, len(self.totals))
        if self.by_batch:
            totals = self.over_processes(group_sums(weight, groups, len(self.totals)))
            self._move(self.over_processes(sums), totals)
            return self._factors_of(totals).to(weight)[groups]
        self._sums = self._sums + sums
        return self._factors.to(weight)[groups]

    def factor(self, group: int) -> float:
        """What the weight of a row of this group (-1: of none) is multiplied by, where that is known before its loss.

        Who takes factors from here gives the sums of losses to `end`.
        """
        return float(self._factors[group])

    def end(self, sums: Tensor | None = None) -> None:
        """Move the weights, where that is done once a step.

        Args:
            sums: [K], of the rows' weighted losses, where `factors` was not asked.
        """
        if not self.by_batch:
            self._move(self.over_processes(self._sums if sums is None else sums), self.totals)

    def _move(self, sums: Tensor, totals: Tensor) -> None:
        # A loss that is no number is found before the step is made, and ends the training with its reason.
        if bool(sums.isfinite().all()):
            self.ascent.move(sums.cpu(), totals.cpu(), rate=self.rate)

    def _factors_of(self, totals: Tensor) -> Tensor:
        """[K + 1]: the last one is that of rows without a group."""
        factors = self.ascent.row_factors(totals.cpu()) * float(totals.sum())
        return torch.cat([factors, factors.new_ones(1)])


def _followed(rate: float, factor: float) -> float:
    """Factor for every tenfold drop of the learning rate."""
    if factor == 1.0:
        return 1.0
    return 0.0 if rate <= 0 else float(factor ** -math.log10(rate))
