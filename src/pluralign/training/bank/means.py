"""Losses and metrics of many people, kept apart on the device until somebody's line is due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class SlotMeans:
    """Per slot: the sum of losses, and running means of named values.

    A NaN is a row that lacks what the value speaks of, and is left out of its mean.

    Args:
        slots: number of slots.
        device: where losses are computed.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.losses = torch.zeros(slots, device=device)
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._slots = slots

    def add(self, terms: Mapping[str, Tensor], shares: Tensor, slots: Tensor) -> None:
        """Add a forward.

        Args:
            terms: name -> [B], the same names every time.
            shares: [B] of the losses.
            slots: [B] int64.
        """
        _add(self.losses, slots, shares.to(self.losses.dtype))
        if not terms:
            return
        values = torch.stack([value.detach() for value in terms.values()], dim=1)
        present = ~values.isnan()
        both = torch.stack([values.masked_fill(~present, 0), present.to(values.dtype)], dim=1)
        if self._sums is None:
            self._names = tuple(terms)
            self._sums = torch.zeros(self._slots, 2, len(self._names), dtype=values.dtype, device=values.device)
        _add(self._sums, slots, both)

    def take(self, slot: int) -> dict[str, float]:
        """A slot's means since the last call; a name that concerned no row is not there."""
        if self._sums is None:
            return {}
        totals, rows = self._sums[slot].tolist()
        self._sums[slot].zero_()
        return {name: total / n for name, total, n in zip(self._names, totals, rows, strict=True) if n}

    def take_loss(self, slot: int) -> float:
        """A slot's sum of losses since the last call."""
        loss = float(self.losses[slot])
        self.losses[slot] = 0.0
        return loss

    def clear(self, slot: int) -> None:
        """Forget a slot's sums: another person moves in."""
        self.losses[slot] = 0.0
        if self._sums is not None:
            self._sums[slot].zero_()

    def slot_state(self, slot: int) -> dict[str, Any]:
        """A slot's sums, for a snapshot."""
        sums = None if self._sums is None else self._sums[slot].clone()
        return {"loss": self.losses[slot].clone(), "names": list(self._names), "sums": sums}

    def load_slot_state(self, slot: int, kept: dict[str, Any]) -> None:
        """Go on from a `slot_state`."""
        self.losses[slot] = kept["loss"]
        if kept["sums"] is None:
            return
        if self._sums is None:
            self._names = tuple(kept["names"])
            self._sums = kept["sums"].new_zeros(self._slots, *kept["sums"].shape).to(self.losses.device)
        self._sums[slot] = kept["sums"].to(self.losses.device)


def _add(to: Tensor, slots: Tensor, rows: Tensor) -> None:
    if to.device.type == "cuda":
        # index_add_ would add in any order there.
        to.index_put_((slots,), rows, accumulate=True)
    else:
        to.index_add_(0, slots, rows)
