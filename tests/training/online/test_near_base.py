"""Near the base: the divergence's own gradient, its effect on a run, and what a phase says of its responses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pluralign.errors import InputError
from pluralign.objectives import Objective
from pluralign.seats import LossConfig
from pluralign.training.online.near_base import NearBase
from pluralign.training.online.run import online
from pluralign.training.online.watching import repetition

Make = Callable[..., Any]


def test_the_gradient_over_what_a_policy_samples_is_that_of_the_divergence() -> None:
    """Every two responses of a policy over five, weighed by how often it draws them."""
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(5, generator=draw, dtype=torch.float64, requires_grad=True)
    base = torch.randn(5, generator=draw, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    first, second = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
    often = (policy[first] + policy[second]).detach().exp()
    logps = {"chosen": policy[first], "rejected": policy[second]}
    columns = {"base_chosen_logps": base[first].tolist(), "base_rejected_logps": base[second].tolist()}
    own = {name: value.detach() for name, value in logps.items()}
    given = (logps, own, {name: torch.ones(25) for name in logps}, columns)
    near = NearBase(Objective(LossConfig()), 0.7)(*given).per_example
    plain = Objective(LossConfig())(*given).per_example
    (found,) = torch.autograd.grad((often * (near - plain)).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(0.7 * (policy.exp() * (policy - base)).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_row_that_nobody_sampled_costs_nothing() -> None:
    logps = {"chosen": torch.tensor([-1.0, -2.0]), "rejected": torch.tensor([-3.0, -4.0])}
    lengths = {name: torch.ones(2) for name in logps}
    columns = {"base_chosen_logps": [None, -2.5], "base_rejected_logps": [None, -4.5]}
    near, plain = (
        one(logps, logps, lengths, columns) for one in (NearBase(Objective(LossConfig()), 2.0), Objective(LossConfig()))
    )
    assert (near.per_example - plain.per_example).tolist() == pytest.approx([0.0, 0.25])


def test_the_divergence_is_held_and_told(make_rows: Make, make_online: Make, counting: Any, metrics: Make) -> None:
    rows, last = make_rows("ab", pairs=16), {}
    more = {"pairs": {"phases": "every_step"}, "training": {"num_train_epochs": 1, "learning_rate": 3e-2}}
    for weight in (0.0, 3.0):
        config = make_online(rows, f"kl-{weight}", reference={"kl_to_base": weight}, **more)
        config.pairs.generation.temperature = 1.0
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            online(config, counting())
        # Nothing but the learning rate holds a policy whose reference is inert, unless this does.
        assert any("reference.kl_to_base" in str(one.message) for one in said) == (weight == 0)
        told = [row for row in metrics(config.output_dir) if "sampled/tokens" in row]
        assert [(row["user"], row["phase"]) for row in told] == [(u, n) for n in range(3) for u in "ab"]
        assert all(row["sampled/kl_per_token"] == pytest.approx(0, abs=1e-5) for row in told[:2])
        assert all(0 <= row["sampled/repetition"] < 1 and 0 < row["sampled/paired"] <= 1 for row in told)
        last[weight] = sum(row["sampled/kl_per_token"] for row in told[-2:])
    assert last[3.0] < last[0.0]


def test_a_weight_below_nothing_is_refused(make_rows: Make, make_online: Make, counting: Any) -> None:
    with pytest.raises(InputError, match=r"reference\.kl_to_base is -1"):
        online(make_online(make_rows("a"), reference={"kl_to_base": -1.0}), counting())


def test_a_phrase_that_comes_again_is_a_repetition() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5) and repetition("a b c") == 0
