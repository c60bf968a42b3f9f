"""Extrapolated adapters are extrapolated weights, and a cut says what it cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralign.models.extrapolation import Factors, cut, extrapolated


def factors(seed: int, rank: int, inner: int = 12, outer: int = 9) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rank, inner, generator=draw), torch.randn(outer, rank, generator=draw))


@given(st.integers(0, 2**20), st.integers(1, 4), st.integers(1, 4), st.floats(0, 2))
def test_extrapolating_an_adapter_is_extrapolating_its_weights(seed: int, one: int, other: int, alpha: float) -> None:
    """To 1e-6 of the weights' norm in float32, without a cut and in factors of that rank."""
    new, old = factors(seed, one), factors(seed + 1, other)
    expected = new.delta.double() + alpha * (new.delta.double() - old.delta.double())
    found = extrapolated(new, old, alpha=alpha)
    assert (found.delta - expected).norm() < 1e-6 * (new.delta.norm() + old.delta.norm()) * (1 + alpha)
    whole, error = cut(found, one + other)
    assert (whole.delta - expected).norm() < 1e-6 * (new.delta.norm() + old.delta.norm()) * (1 + alpha)
    assert error < 1e-6


@given(st.integers(0, 2**20), st.integers(1, 6))
def test_a_cut_is_the_nearest_of_its_rank_and_says_how_near(seed: int, rank: int) -> None:
    whole = extrapolated(factors(seed, 3), factors(seed + 1, 3), alpha=0.3)
    found, error = cut(whole, rank)
    assert found.down.shape == (rank, 12) and found.up.shape == (9, rank)
    values = torch.linalg.svdvals(whole.delta.double())
    assert error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-6)
    lost = (found.delta - whole.delta).norm() / whole.delta.norm()
    assert float(lost) == pytest.approx(error, abs=1e-5)


def test_what_a_rank_has_left_can_still_be_learned_in() -> None:
    zero = Factors(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)), torch.zeros(9, 2))
    found, error = cut(extrapolated(zero, zero, alpha=0.5), 6)
    assert error == 0 and not found.up.any() and found.down.norm(dim=1).min() > 0.1
