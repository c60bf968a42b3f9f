"""Iterates of accelerated preference optimization on tables of policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pluralign.objectives import extrapolate_logps, theorem_coefficients

CASES = json.loads((Path(__file__).parents[1] / "golden" / "apo_tabular.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_iterates_are_those_of_the_golden_values(case: dict) -> None:
    given, expected = case["inputs"], case["expected"]
    alpha, beta = given["alpha"], given["beta"]
    reference = torch.tensor(given["log_pi_ref"], dtype=torch.float64)
    policy = old = reference
    rewards = torch.tensor(given.get("rewards") or expected["rewards_used"], dtype=torch.float64)
    for step, reward in enumerate(rewards):
        # The minimiser of the DPO loss with the policy that sampled as its reference.
        new = (policy + reward / beta).log_softmax(-1)
        torch.testing.assert_close(
            new, torch.tensor(expected["log_pi_hat"][step], dtype=torch.float64), atol=1e-8, rtol=0
        )
        counted = torch.tensor(theorem_coefficients(step + 1, alpha=alpha), dtype=torch.float64)
        assert counted.tolist() == pytest.approx(expected["theorem_coefficients"][step], abs=1e-12)
        direct = (reference + (counted[:, None, None] * rewards[: step + 1]).sum(0) / beta).log_softmax(-1)
        torch.testing.assert_close(new, direct, atol=1e-8, rtol=0)
        policy, old = extrapolate_logps(new, old, alpha=alpha), new
        torch.testing.assert_close(
            policy, torch.tensor(expected["log_pi"][step], dtype=torch.float64), atol=1e-8, rtol=0
        )


def test_settings_out_of_range_are_named() -> None:
    table = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="alpha is -1"):
        extrapolate_logps(table, table, alpha=-1)
    with pytest.raises(ValueError, match=r"new is \[2, 3\] and old is \[3\]"):
        extrapolate_logps(table, table[0], alpha=0.3)
    with pytest.raises(ValueError, match="iterations is 0"):
        theorem_coefficients(0, alpha=0.3)
