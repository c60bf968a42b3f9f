"""Losses without a reference, of unpaired rows and over a batch: their formulas, and what holds for any log-probs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralign.config import AnchorConfig, BaseAnchorConfig, ContrastConfig, LossConfig
from pluralign.errors import InputError
from pluralign.objectives import (
    Objective,
    contrast_loss,
    diagonal_contrast_loss,
    kto_loss,
    mismatched_kl,
    odds_ratio_loss,
    semantic_weights,
    simpo_loss,
)

log_probs = st.floats(-300, 0).map(lambda value: torch.tensor([round(value, 2)], dtype=torch.float64))
per_token = st.floats(-20, -1e-3)


def of(*values):
    return torch.tensor(values, dtype=torch.float64)


def batch(**branches):
    """Policy, reference and lengths from branch -> (policy, reference) pairs; None where a row lacks the branch."""
    policy = {name: of(*(0.0 if one is None else one[0] for one in rows)) for name, rows in branches.items()}
    reference = {name: of(*(0.0 if one is None else one[1] for one in rows)) for name, rows in branches.items()}
    lengths = {name: torch.tensor([0 if one is None else 4 for one in rows]) for name, rows in branches.items()}
    return policy, reference, lengths


# ---- without a reference ----


@given(per_token, per_token, st.floats(0.1, 10), st.floats(0, 3))
def test_simpo_is_its_formula(chosen, rejected, beta, gamma):
    value = simpo_loss(of(chosen - rejected), beta=beta, target_margin=gamma).item()
    assert value == pytest.approx(math.log1p(math.exp(-(beta * (chosen - rejected) - gamma))), rel=1e-9, abs=1e-12)


@given(per_token, per_token, st.floats(0.1, 2))
def test_the_odds_ratio_is_its_formula(chosen, rejected, beta):
    odds = [math.exp(one) / -math.expm1(one) for one in (chosen, rejected)]
    expected = beta * math.log1p(odds[1] / odds[0])
    assert odds_ratio_loss(of(chosen), of(rejected), beta=beta).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_response_leaves_loss_and_gradient_finite(dtype):
    chosen = torch.zeros(1, dtype=dtype, requires_grad=True)
    rejected = torch.full((1,), -200.0, dtype=dtype, requires_grad=True)
    for sides in ((chosen, rejected), (rejected, chosen)):
        loss = odds_ratio_loss(*sides, beta=0.1).sum()
        grads = torch.autograd.grad(loss, (chosen, rejected))
        assert all(value.isfinite().all() for value in (loss, *grads))


@pytest.mark.parametrize("kind", ["simpo", "orpo"])
def test_losses_without_a_reference_take_log_probs_per_token(kind):
    margin = {"target_margin": 0.3} if kind == "simpo" else {}
    objective = Objective(LossConfig(type=kind, beta=2.0, **margin))
    assert not objective.needs_reference
    policy, _, lengths = batch(chosen=[(-6.0, 0)], rejected=[(-10.0, 0)])
    losses = objective(policy, {}, lengths)
    expected = {
        "simpo": simpo_loss(of(1.0), beta=2.0, target_margin=0.3),
        "orpo": odds_ratio_loss(of(-1.5), of(-2.5), beta=2.0),
    }
    torch.testing.assert_close(losses.per_example, expected[kind])
    assert losses.terms["rewards/margins"].item() == pytest.approx(2.0)


# ---- unpaired ----


def test_kto_of_good_and_bad_completions():
    objective = Objective(LossConfig(type="kto", beta=0.5, desirable_weight=2.0))
    policy, reference, lengths = batch(
        chosen=[(-3.0, -5.0), None, (-3.0, -5.0)],
        rejected=[None, (-4.0, -3.0), (-4.0, -3.0)],
        mismatched=[(-9.0, -10.0), (-9.0, -12.0), None],
    )
    losses = objective(policy, reference, lengths)
    kl = 2.0  # of +1 and +3
    good, bad = 2 * (1 - 1 / (1 + math.exp(-0.5 * (2 - kl)))), 1 - 1 / (1 + math.exp(-0.5 * (kl + 1)))
    assert losses.per_example.tolist() == pytest.approx([good, bad, (good + bad) / 2])
    assert losses.terms["kl"].nanmean().item() == kl


def test_kto_per_token_measures_its_divergence_per_token():
    """Where a response has moved as far as the others, its loss is a half, whatever is summed."""
    for length_average in (False, True):
        objective = Objective(LossConfig(type="kto", beta=0.5, length_average=length_average))
        policy, reference, lengths = batch(chosen=[(-3.0, -5.0)], rejected=[None], mismatched=[(-8.0, -10.0)])
        assert objective(policy, reference, lengths).per_example.item() == pytest.approx(0.5)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=6))
def test_the_divergence_is_a_mean_that_is_never_negative(ratios):
    ratio = of(*ratios).requires_grad_()
    kl = mismatched_kl(ratio, torch.ones(len(ratios), dtype=torch.bool))
    assert not kl.requires_grad
    assert kl.item() == pytest.approx(max(0.0, sum(ratios) / len(ratios)), abs=1e-9)
    assert mismatched_kl(ratio, torch.zeros(len(ratios), dtype=torch.bool)).item() == 0


@given(st.floats(-20, 20), st.floats(0, 5), st.floats(0.05, 2))
def test_good_and_bad_mirror_each_other(ratio, kl, beta):
    good, bad = (kto_loss(of(ratio), kl=kl, beta=beta, desirable=side) for side in (True, False))
    assert (good + bad).item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["kto", "contrast"])
def test_what_a_row_must_have(kind):
    objective = Objective(LossConfig(type=kind))
    assert [objective.lacks(row) for row in (["chosen"], ["rejected"], ["chosen", "rejected"])] == [[], [], []]
    assert objective.lacks([]) == ["chosen or rejected"]
    anchored = Objective(LossConfig(type=kind), AnchorConfig(base=BaseAnchorConfig(weight=0.1)))
    assert anchored.lacks([]) == []
    assert Objective(LossConfig()).lacks(["chosen"]) == ["rejected"]
    diagonal = Objective(LossConfig(type="contrast", contrast=ContrastConfig(weights="diagonal")))
    assert diagonal.lacks(["chosen"]) == ["rejected"]


# ---- contrast ----


def contrast(**settings):
    return Objective(LossConfig(type="contrast", beta=0.3, contrast=ContrastConfig(**settings)))


ROWS = {
    "chosen": [(-3.0, -5.0), None, (-2.0, -1.0), (-7.0, -6.5)],
    "rejected": [None, (-4.0, -3.0), (-8.0, -3.0), (-1.0, -3.0)],
}
VECTORS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("weights", ["semantic", "one", "share"])
def test_every_chosen_response_meets_every_rejected_one(weights):
    policy, reference, lengths = batch(**ROWS)
    losses = contrast(weights=weights)(policy, reference, lengths, embeddings=VECTORS)
    chosen, rejected = of(2.0, -1.0, -0.5), of(-1.0, -5.0, 2.0)
    given = weights
    if weights == "semantic":
        given = semantic_weights(VECTORS[[0, 2, 3]], VECTORS[[1, 2, 3]], temperature=0.5)
    expected = contrast_loss(chosen, rejected, beta=0.3, weights=given)
    torch.testing.assert_close(losses.per_example, torch.stack([expected[0], of(0.0)[0], *expected[1:]]))


def test_the_diagonal_with_weight_1_is_dpo():
    policy, reference, lengths = batch(**{name: rows[2:] for name, rows in ROWS.items()})
    ours = contrast(weights="diagonal", diagonal_weight=1.0)(policy, reference, lengths)
    torch.testing.assert_close(
        ours.per_example, Objective(LossConfig(beta=0.3))(policy, reference, lengths).per_example
    )
    other = contrast(weights="diagonal", diagonal_weight=0.6)(policy, reference, lengths).per_example
    torch.testing.assert_close(other, diagonal_contrast_loss(of(-1, -0.5), of(-5, 2), beta=0.3, diagonal_weight=0.6))


@pytest.mark.parametrize("absent", ["chosen", "rejected"])
def test_a_batch_with_one_side_only_has_loss_0_and_gradient_0(absent):
    policy, reference, lengths = batch(**{**ROWS, absent: [None] * 4})
    policy = {name: value.requires_grad_() for name, value in policy.items()}
    losses = contrast()(policy, reference, lengths, embeddings=VECTORS)
    losses.per_example.sum().backward()
    assert losses.per_example.tolist() == [0.0] * 4
    assert all(value.grad is None or not value.grad.any() for value in policy.values())


@pytest.mark.parametrize("weights", ["semantic", "share", "diagonal"])
def test_two_halves_of_a_batch_are_the_whole_loss_and_gradient(weights):
    """As two processes compute it: each its own chosen responses, against the rejected ones of both."""
    rows = {name: [one or (-2.0, -2.5) for one in some] for name, some in ROWS.items()}
    whole, reference, lengths = batch(**rows)
    whole = {name: value.requires_grad_() for name, value in whole.items()}
    objective = contrast(weights=weights)
    expected = objective(whole, reference, lengths, embeddings=VECTORS).per_example
    grads = torch.autograd.grad(expected.sum(), list(whole.values()))
    everything = [lengths["rejected"] > 0, whole["rejected"] - reference["rejected"], VECTORS]
    halves = []
    for process in (0, 1):
        own = slice(2 * process, 2 * process + 2)

        def gather(rows, own=own):
            """What the processes send each other: both halves, in order."""
            return next(one for one in everything if one.dtype == rows.dtype and torch.equal(one[own], rows))

        part = [{name: value[own] for name, value in some.items()} for some in (whole, reference, lengths)]
        halves.append(objective(*part, embeddings=VECTORS[own], gather=gather, process=process).per_example)
    together = torch.cat(halves)
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(torch.autograd.grad(together.sum(), list(whole.values())), grads)


def test_a_rejected_completion_is_nothing_to_divide_by():
    assert not contrast().counts(["rejected"])
    assert contrast().counts(["chosen"])
    assert Objective(LossConfig(type="kto")).counts(["rejected"])


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"type": "simpo", "target_margin": -1.0}, r"loss\.target_margin is -1\.0"),
        ({"type": "kto", "desirable_weight": -1.0}, r"loss\.desirable_weight is -1\.0"),
        ({"type": "kto", "desirable_weight": 0.0, "undesirable_weight": 0.0}, r"loss\.undesirable_weight is 0\.0"),
        ({"type": "contrast", "contrast": ContrastConfig(temperature=0.0)}, r"temperature is 0\.0"),
        ({"type": "contrast", "contrast": ContrastConfig(diagonal_weight=1.5)}, r"diagonal_weight is 1\.5"),
        ({"type": "sigmoid", "target_margin": 1.0}, r"loss\.target_margin is set, and loss\.type is sigmoid"),
        ({"type": "kto", "contrast": ContrastConfig(temperature=0.3)}, r"loss\.contrast is set, and loss\.type is kto"),
        ({"type": "simp"}, "one of sigmoid, .*simpo, orpo"),
    ],
)
def test_settings_out_of_range_are_named(settings, found):
    with pytest.raises(InputError, match=found):
        Objective(LossConfig(**settings))


@pytest.mark.parametrize("kind", ["kto", "contrast"])
def test_nothing_is_inside_a_margin_that_is_not_there(kind):
    with pytest.raises(InputError, match="takes rows without a margin"):
        Objective(LossConfig(type=kind), AnchorConfig(base=BaseAnchorConfig(weight=0.1, placement="inside")))
