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


class GroupMeans:
    """Loss and accuracy of every group, and the worst of them.

    The loss is the weighted mean over a group's rows; a row that weighs nothing is in none.

    Args:
        names: the K groups; none where groups do not count.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._sums: Tensor | None = None

    def add(self, losses: Losses, weight: Tensor, groups: Tensor) -> None:
        """Add a batch: losses of an objective, weights [B] and numbers of groups [B]."""
        if not self.names:
            return
        sums = group_sums(group_columns(losses, weight), groups, len(self.names))
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """The means since the last call; a group that had no row is not there.

        Args:
            reduce: sums a tensor over all processes.
        """
        if self._sums is None:
            return {}
        sums, self._sums = reduce(self._sums), None
        return group_metrics(self.names, sums)


def group_columns(losses: Losses, weight: Tensor) -> Tensor:
    """What is summed by group, [B, 4]: weighted loss, weight, hits, and rows that a hit was asked of."""
    values = losses.per_example.detach()
    hits = losses.terms.get("rewards/accuracies", torch.full_like(values, torch.nan))
    judged = ~hits.isnan() & (weight > 0)
    columns = (weight * values, weight, torch.where(judged, hits, 0), judged)
    return torch.stack([column.to(values.dtype) for column in columns], dim=1)


def group_metrics(names: Sequence[str], sums: Tensor) -> dict[str, float]:
    """The metrics that sums of `group_columns` make.

    Args:
        names: of the K groups.
        sums: [K, 4].

    Returns:
        `group/<name>/loss` and `accuracy`, and the worst of each; a group that had no row is not there.
    """
    found: dict[str, float] = {}
    loss, weight, hits, judged = sums.T.tolist()
    for kind, totals, counts, worst in (("loss", loss, weight, max), ("accuracy", hits, judged, min)):
        means = {name: total / count for name, total, count in zip(names, totals, counts, strict=True) if count}
        found |= {f"group/{name}/{kind}": value for name, value in means.items()}
        found |= {f"worst_group/{kind}": worst(means.values())} if means else {}
    return found


def group_sums(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums by group.

    Args:
        values: [B] or [B, C] float.
        groups: [B] int64, in [0, K); a row of no group (-1) is in no sum.
        count: K.

    Returns:
        [K] or [K, C] in the dtype of the values.
    """
    return add_rows(values.new_zeros(count + 1, *values.shape[1:]), groups % (count + 1), values)[:count]


def add_rows(to: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Add rows [B, ...] to those of a tensor at places [B], in place, in the same order every time."""
    if to.device.type == "cuda":
        # index_add_ would add in any order there.
        return to.index_put_((places,), rows, accumulate=True)
    return to.index_add_(0, places, rows)
