"""The bandit experiment: its closed form, and its committed figures beside the independent ones."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "group_robust"
ROWS = json.loads((FOLDER / "results" / "bandit.json").read_text(encoding="utf-8"))["rows"]
REFERENCE = json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))["means"]


@pytest.fixture(scope="module")
def bandit() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("bandit")
    sys.path.remove(str(FOLDER))
    sys.modules.pop("bandit")


def test_the_closed_form_has_no_gradient(bandit: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    counts = torch.rand(40, generator=generator, dtype=torch.float64)
    theta = bandit.closed_form_ipo(differences, counts, beta=0.1, ridge=0.0).requires_grad_()
    loss = (counts * bandit.ipo_loss(differences @ theta, beta=0.1)).sum()
    (gradient,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_the_larger_reward_is_chosen_and_groups_have_their_shares(bandit: Any) -> None:
    for uneven in (False, True):
        differences, groups = bandit.pairs(300, 0.2, uneven, torch.Generator().manual_seed(1))
        assert ((differences * bandit.REWARDS[groups]).sum(dim=1) >= 0).all()
        assert torch.bincount(groups).tolist() == [60, 240]


def test_a_policy_of_the_true_rewards_misses_nothing(bandit: Any) -> None:
    errors = bandit.reward_errors(bandit.REWARDS[0], torch.Generator().manual_seed(2))
    assert errors[0] == 0
    assert errors[1] > 0


@pytest.mark.parametrize("method", ["plain", "importance", "group-robust"])
@pytest.mark.parametrize("setting", REFERENCE)
def test_the_committed_figures_are_the_reference_s(setting: str, method: str) -> None:
    """Losses within 10%, reward errors and weights within 0.02, as statistics over seeds."""
    found = [row for row in ROWS if (row["setting"], row["method"]) == (setting, method)]
    assert len({row["seed"] for row in found}) == 20
    for name, expected in REFERENCE[setting][method].items():
        value = statistics.mean(row[name] for row in found)
        tolerance = {"rel": 0.1} if name.endswith("loss") else {"abs": 0.02}
        assert value == pytest.approx(expected, **tolerance), name


@pytest.mark.parametrize("setting", REFERENCE)
def test_the_worst_group_is_best_served_by_the_robust_weights(setting: str) -> None:
    def worst(method: str) -> float:
        rows = [row for row in ROWS if (row["setting"], row["method"]) == (setting, method)]
        return statistics.mean(row["max_validation_loss"] for row in rows)

    assert worst("group-robust") < worst("importance") <= worst("plain") + 1e-6
