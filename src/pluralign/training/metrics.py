"""Means of what an objective reports, over the rows that it concerns, without a wait for the device in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pluralign.objectives import Losses


class MetricMeans:
    """Running means of named values; a NaN is a row that lacks what the value speaks of, and is left out.

    Every process adds the same names.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None

    def add(self, terms: Mapping[str, Tensor], counts: Tensor) -> None:
        """Add a batch.

        Args:
            terms: name -> [B].
            counts: [B] bool; rows where it is False are left out.
        """
        if not terms:
            return
        values = torch.stack([value.detach() for value in terms.values()])
        present = ~values.isnan() & counts
        sums = torch.stack([values.masked_fill(~present, 0).sum(dim=1), present.sum(dim=1).to(values.dtype)])
        self._names = tuple(terms)
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """The means since the last call; a name that concerned no row is not there.

        Args:
            reduce: sums a tensor over all processes.
        """
        if self._sums is None:
            return {}
        totals, rows = reduce(self._sums).tolist()
        self._sums = None
        return {name: total / n for name, total, n in zip(self._names, totals, rows, strict=True) if n}


class GroupSums:
    """Sums and metrics by group.

    Args:
        names: the K groups; none where groups do not count.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def sums(self, values: Tensor, groups: Tensor) -> Tensor:
        """[K] sums of values [B]; rows of no group (-1) are in none."""
        found = values.new_zeros(len(self.names) + 1).index_add(0, groups % (len(self.names) + 1), values)
        return found[: len(self.names)]

    def terms(self, losses: Losses, groups: Tensor) -> dict[str, Tensor]:
        """Loss and accuracy of every group as values [B], NaN in the rows of others."""
        values = {"loss": losses.per_example.detach()}
        if "rewards/accuracies" in losses.terms:
            values["accuracy"] = losses.terms["rewards/accuracies"]
        return {
            f"group/{name}/{kind}": torch.where(groups == number, value, torch.nan)
            for number, name in enumerate(self.names)
            for kind, value in values.items()
        }

    def with_worst(self, means: dict[str, float]) -> dict[str, float]:
        """The means, with the largest loss and the smallest accuracy of a group among those that have rows."""
        worst: dict[str, float] = {}
        for kind, choose in (("loss", max), ("accuracy", min)):
            found = [means[name] for group in self.names if (name := f"group/{group}/{kind}") in means]
            if found:
                worst[f"worst_group/{kind}"] = choose(found)
        return {**means, **worst}
