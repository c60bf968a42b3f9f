"""What holds a policy near the base whatever its pairs are compared with: the divergence on what it sampled itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pluralign.objectives import Losses, Objective
from pluralign.training.online.files import SIDES


class NearBase(Objective):
    """An objective and, beside it, weight * KL(policy || base).

    Of a response y that the policy sampled, with rho = log policy(y) - log base(y), rho^2 / 2 is added, mean over the
    two of a pair. Its gradient rho * grad log policy(y) is that of the divergence, without bias, where both were drawn
    from the policy as it is, at temperature 1 and with nothing cut away (the estimator k2 of Schulman 2020). Behind the
    first update of a phase, or of the best and the worst of more than two, it is an approximation.

    Args:
        objective: of the configuration's loss and anchor.
        weight: > 0, a nat costs so much.
    """

    def __init__(self, objective: Objective, weight: float) -> None:
        # What it has checked and warned of is not checked again.
        self.__dict__.update(vars(objective))
        self.weight = weight

    def __call__(
        self,
        policy: Mapping[str, Tensor],
        reference: Any,
        lengths: Mapping[str, Tensor],
        columns: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Losses:
        """As `Objective`; the columns hold `base_chosen_logps` and `base_rejected_logps` of rows that were sampled."""
        found = super().__call__(dict(policy), reference, dict(lengths), columns, **more)
        if not isinstance(reference, Mapping):
            # The loss against each of several references has had its share already; their weights sum to 1.
            return found
        sides = [side for side in SIDES if side in policy]
        squares = [_square(policy[side], (columns or {}).get(f"base_{side}_logps")) for side in sides]
        value = torch.stack(squares).mean(0)
        found.terms["kl_to_base/loss"] = self.weight * value.detach()
        return Losses(found.per_example + self.weight * value, found.terms)


def _square(policy: Tensor, base: list[float | None] | None) -> Tensor:
    """[B] half the squared log-ratio; 0 for rows that nobody sampled."""
    values = [math.nan if one is None else one for one in base or [None] * len(policy)]
    fixed = torch.tensor(values, dtype=policy.dtype, device=policy.device)
    ratio = torch.where(fixed.isnan(), 0.0, policy - fixed.nan_to_num())
    return ratio.square() / 2
