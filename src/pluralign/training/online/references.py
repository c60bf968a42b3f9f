"""What a phase's pairs are compared with, where that is a policy of the person's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pluralign.online_config import OnlineConfig
from pluralign.training.online.plan import PersonPlan


def is_own_past(online: OnlineConfig) -> bool:
    """Whether the policy is compared with an adapter of its own, and not with the base or a given model."""
    fixed = online.reference.policy == "fixed" and online.parameters.start is not None
    return fixed or online.reference.policy in ("behavior", "periodic", "ema")


def warn_of_inert_reference(online: OnlineConfig, plans: Sequence[PersonPlan]) -> None:
    """Warn where every batch has one update and the reference is its sampler: it then has no effect at all."""
    held = online.reference.kl_to_base > 0 or online.anchor.base.weight > 0
    if held or online.reference.policy != "behavior" or online.pairs.ensemble:
        return
    if all(phase.steps <= 1 for plan in plans for phase in plan.phases):
        warnings.warn(
            "every phase has one optimiser step, and the reference is the policy that samples for it: all margins are "
            "0 when they are compared, and nothing but the learning rate holds the policy near the base. "
            "reference.kl_to_base, an anchor (anchor.base), a fixed reference (reference.policy) or fewer phases "
            "(pairs.phases) do",
            stacklevel=2,
        )


@contextmanager
def in_place(matrix: Tensor, values: Mapping[int, Tensor]) -> Iterator[None]:
    """Other adapters in the slots, for the time of a block.

    Args:
        matrix: [slots + 1, P] of a bank.
        values: slot -> [P].
    """
    kept = {slot: matrix[slot].clone() for slot in values}
    _put(matrix, values)
    try:
        yield
    finally:
        _put(matrix, kept)


@torch.no_grad()
def _put(matrix: Tensor, values: Mapping[int, Tensor]) -> None:
    for slot, value in values.items():
        matrix[slot].copy_(value)
