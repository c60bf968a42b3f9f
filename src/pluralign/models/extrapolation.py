"""Extrapolated adapters: exact on what adapters add to the weights, and cut to a rank with the error of the cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NOTHING = 1e-7
"""Share of the largest singular value below which a direction adds nothing."""


@dataclass(frozen=True, slots=True)
class Factors:
    """What a layer's adapter adds to its weights, up @ down.

    Attributes:
        down: [r, in] the A factor.
        up: [out, r] the B factor.
    """

    down: Tensor
    up: Tensor

    @property
    def delta(self) -> Tensor:
        """[out, in]."""
        return self.up @ self.down


def extrapolated(new: Factors, old: Factors, *, alpha: float) -> Factors:
    """A step of `alpha` beyond `new` along what it has learned since `old`: new + alpha (new - old), exactly.

    The factors stand side by side, of the sum of both ranks: a mean of A factors times a mean of B factors is no mean
    of their products.

    Args:
        new: what was learned.
        old: of the same layer and scale; its rank may be another.
        alpha: >= 0.
    """
    down = torch.cat([new.down, old.down])
    return Factors(down, torch.cat([(1 + alpha) * new.up, -alpha * old.up], dim=1))


def cut(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The nearest factors of a rank, and how much of the product they lack.

    Nearest by the Frobenius norm (Eckart and Young 1936). What is left of the rank keeps a direction in the A factor,
    so that there is something to learn in.

    Args:
        factors: of any rank.
        rank: at least 1.

    Returns:
        Factors of that rank, both of the same size in every direction, and the norm of the difference as a share of the
        product's, in [0, 1].
    """
    left, right = torch.linalg.qr(factors.up.double()), torch.linalg.qr(factors.down.double().T)
    outer, values, inner = torch.linalg.svd(left.R @ right.R.T)
    rows = (inner @ right.Q.T)[:rank]
    there = values[:rank] > _NOTHING * values[0].clamp(min=torch.finfo(torch.float64).tiny)
    size = torch.where(there, values[:rank].sqrt(), 0.0)
    up = (left.Q @ outer)[:, :rank] * size
    down = rows * torch.where(there, size, 1.0)[:, None]
    missing = rank - len(down)
    if missing > 0:
        up = torch.cat([up, up.new_zeros(len(up), missing)], dim=1)
        down = torch.cat([down, _directions(down, missing)])
    lost, whole = values[rank:].square().sum().sqrt(), values.square().sum().sqrt()
    error = float(lost / whole) if whole > 0 else 0.0
    return Factors(down.to(factors.down), up.to(factors.up)), error


def _directions(down: Tensor, count: int) -> Tensor:
    """Rows beside those that are there."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, down.shape[1], generator=generator, dtype=down.dtype).to(down.device)
    return drawn / drawn.norm(dim=1, keepdim=True)
