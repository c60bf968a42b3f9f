"""Per-example losses and gradients against the figures of the peers' own code (tests/golden/dpo_losses.json)."""

import json
from pathlib import Path

import pytest
import torch

from pluralign.config import LossConfig
from pluralign.objectives import Objective, hinge_loss, ipo_loss, robust_loss, sigmoid_loss, sppo_hard_loss

FAMILY = json.loads((Path(__file__).parents[1] / "golden" / "dpo_losses.json").read_text())
CASES = {case["name"]: case for case in FAMILY["cases"]}
KINDS = ("sigmoid", "sigmoid_label_smoothing", "ipo_sum", "ipo_length_average", "hinge", "robust", "sppo_hard")
RUNS = [(name, kind) for name in CASES for kind in KINDS if kind in CASES[name]["expected"]["losses"]]


def loss_of(kind, chosen, rejected, inputs):
    """The library's loss of log-ratios `chosen` and `rejected` [B] under the golden file's name."""
    beta, smoothing = inputs["beta"], inputs["label_smoothing"]
    if kind == "ipo_length_average":
        chosen = chosen / torch.tensor(inputs["chosen_lengths"])
        rejected = rejected / torch.tensor(inputs["rejected_lengths"])
    margin = chosen - rejected
    return {
        "sigmoid": lambda: sigmoid_loss(margin, beta=beta),
        "sigmoid_label_smoothing": lambda: sigmoid_loss(margin, beta=beta, label_smoothing=smoothing),
        "ipo_sum": lambda: ipo_loss(margin, beta=beta),
        "ipo_length_average": lambda: ipo_loss(margin, beta=beta),
        "hinge": lambda: hinge_loss(margin, beta=beta),
        "robust": lambda: robust_loss(margin, beta=beta, label_smoothing=smoothing),
        "sppo_hard": lambda: sppo_hard_loss(chosen, rejected, beta=beta),
    }[kind]()


def tensors(inputs):
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    return [torch.tensor(inputs[name], dtype=torch.float64) for name in names]


def expected(values):
    return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float64)


def assert_equal_where_finite(found, wanted):
    finite = torch.isfinite(wanted)
    torch.testing.assert_close(found[finite], wanted[finite], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_losses_and_gradients(name, kind):
    inputs, wanted = CASES[name]["inputs"], CASES[name]["expected"]
    chosen, rejected, reference_chosen, reference_rejected = tensors(inputs)
    chosen.requires_grad_(), rejected.requires_grad_()
    losses = loss_of(kind, chosen - reference_chosen, rejected - reference_rejected, inputs)
    assert_equal_where_finite(losses.detach(), expected(wanted["losses"][kind]))
    losses.sum().backward()
    gradients = wanted["gradients"][kind]
    assert_equal_where_finite(chosen.grad, expected(gradients["d_policy_chosen"]))
    assert_equal_where_finite(rejected.grad, expected(gradients["d_policy_rejected"]))


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_the_composed_objective_says_the_same(name, kind):
    inputs, wanted = CASES[name]["inputs"], CASES[name]["expected"]["losses"]
    chosen, rejected, reference_chosen, reference_rejected = tensors(inputs)
    plain = {"sigmoid_label_smoothing": "sigmoid", "ipo_sum": "ipo", "ipo_length_average": "ipo"}.get(kind, kind)
    smoothing = inputs["label_smoothing"] if kind in ("sigmoid_label_smoothing", "robust") else 0.0
    objective = Objective(
        LossConfig(
            type=plain,
            beta=inputs["beta"],
            label_smoothing=smoothing,
            length_average=kind == "ipo_length_average",
        )
    )
    lengths = {name: torch.tensor(inputs[f"{name}_lengths"]) for name in ("chosen", "rejected")}
    losses = objective(
        {"chosen": chosen, "rejected": rejected},
        {"chosen": reference_chosen, "rejected": reference_rejected},
        lengths,
    )
    assert_equal_where_finite(losses.per_example, expected(wanted[kind]))
    for term, key in (("chosen", "chosen_rewards"), ("rejected", "rejected_rewards"), ("margins", "reward_margins")):
        assert_equal_where_finite(losses.terms[f"rewards/{term}"], expected(wanted[key]))
