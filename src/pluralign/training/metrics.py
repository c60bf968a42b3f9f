"""Means of what an objective reports, over the rows that it concerns, without a wait for the device in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


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
