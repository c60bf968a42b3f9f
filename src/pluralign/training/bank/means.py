"""Losses and metrics of many people, and of their groups, kept apart on the device until somebody's line is due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pluralign.objectives import Losses
from pluralign.training.metrics import add_rows, group_columns, group_metrics


class SlotMeans:
    """Per slot: the sum of losses, running means of named values, and losses and accuracies by group.

    A NaN is a row that lacks what the value speaks of, and is left out of its mean.

    Args:
        slots: number of slots.
        device: where losses are computed.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.losses = torch.zeros(slots, device=device)
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        # [slots, K + 1, 4] with the most groups that anybody has had; the last place is of rows without a group.
        self._groups: Tensor | None = None
        self._slots = slots

    def add(self, terms: Mapping[str, Tensor], shares: Tensor, slots: Tensor) -> None:
        """Add a forward.

        Args:
            terms: name -> [B], the same names every time.
            shares: [B] of the losses.
            slots: [B] int64.
        """
        add_rows(self.losses, slots, shares.to(self.losses.dtype))
        if not terms:
            return
        values = torch.stack([value.detach() for value in terms.values()], dim=1)
        present = ~values.isnan()
        both = torch.stack([values.masked_fill(~present, 0), present.to(values.dtype)], dim=1)
        if self._sums is None:
            self._names = tuple(terms)
            self._sums = torch.zeros(self._slots, 2, len(self._names), dtype=values.dtype, device=values.device)
        add_rows(self._sums, slots, both)

    def add_groups(self, losses: Losses, weight: Tensor, slots: Tensor, groups: Tensor, *, count: int) -> None:
        """Add a forward to the groups' sums.

        Args:
            losses: of B examples.
            weight: [B].
            slots: [B] int64.
            groups: [B] int64, number among the slot's own groups; a row of none is -1.
            count: the most groups that anybody has.
        """
        columns = group_columns(losses, weight)
        sums = self._with_groups(count, columns)
        add_rows(sums.view(-1, 4), slots * sums.shape[1] + groups % sums.shape[1], columns)

    def take(self, slot: int, groups: Sequence[str] = ()) -> dict[str, float]:
        """A slot's means since the last call; a name that concerned no row is not there.

        Args:
            slot: whose.
            groups: names of the slot's groups.
        """
        found: dict[str, float] = {}
        if self._sums is not None:
            totals, rows = self._sums[slot].tolist()
            self._sums[slot].zero_()
            found = {name: total / n for name, total, n in zip(self._names, totals, rows, strict=True) if n}
        if groups and self._groups is not None:
            found |= group_metrics(groups, self._groups[slot, : len(groups)])
            self._groups[slot].zero_()
        return found

    def take_loss(self, slot: int) -> float:
        """A slot's sum of losses since the last call."""
        loss = float(self.losses[slot])
        self.losses[slot] = 0.0
        return loss

    def clear(self, slot: int) -> None:
        """Forget a slot's sums: another person moves in."""
        self.losses[slot] = 0.0
        for sums in (self._sums, self._groups):
            if sums is not None:
                sums[slot].zero_()

    def slot_state(self, slot: int) -> dict[str, Any]:
        """A slot's sums, for a snapshot."""
        sums = None if self._sums is None else self._sums[slot].clone()
        groups = None if self._groups is None else self._groups[slot, :-1].clone()
        return {"loss": self.losses[slot].clone(), "names": list(self._names), "sums": sums, "groups": groups}

    def load_slot_state(self, slot: int, kept: dict[str, Any]) -> None:
        """Go on from a `slot_state`."""
        self.losses[slot] = kept["loss"]
        # Snapshots of earlier versions have no groups.
        if (groups := kept.get("groups")) is not None:
            self._with_groups(len(groups), groups)[slot, : len(groups)] = groups.to(self.losses.device)
        if kept["sums"] is None:
            return
        if self._sums is None:
            self._names = tuple(kept["names"])
            self._sums = kept["sums"].new_zeros(self._slots, *kept["sums"].shape).to(self.losses.device)
        self._sums[slot] = kept["sums"].to(self.losses.device)

    def _with_groups(self, count: int, like: Tensor) -> Tensor:
        """The groups' sums, with room for at least so many groups."""
        old = self._groups
        if old is None or old.shape[1] < count + 1:
            self._groups = torch.zeros(self._slots, count + 1, 4, dtype=like.dtype, device=self.losses.device)
            if old is not None:
                self._groups[:, : old.shape[1] - 1] = old[:, :-1]
        assert self._groups is not None
        return self._groups
