"""Several references as one: the official code's figures, and what holds for any log-probs."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pluralign.objectives import (
    clip_to_trust_region,
    combine_references,
    confidence_weights,
    sigmoid_loss,
    trust_region_widths,
)

FAMILY = json.loads((Path(__file__).parents[1] / "golden" / "mrpo.json").read_text())
CASES = {case["name"]: case for case in FAMILY["cases"]}
COMBINED = {
    "repository": {"combine": "harmonic", "swap": True},
    "formula_harmonic": {"combine": "harmonic"},
    "formula_geometric": {"combine": "geometric"},
}
SIDES = ("chosen", "rejected")


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def references_of(inputs):
    """Log-probs [2, B] of both sides under (external, initial)."""
    return [torch.stack([f64(inputs[f"{who}_{side}_logps"]) for who in ("external", "initial")]) for side in SIDES]


def weights_of(inputs, chosen, rejected):
    if inputs["alpha"] < 0:
        return confidence_weights(chosen, rejected)
    return f64([inputs["alpha"], 1 - inputs["alpha"]])[:, None].expand_as(chosen)


def clipped(inputs, chosen, rejected):
    """Both sides with the external reference clipped around the initial one, and the half-widths."""
    widths = [torch.full_like(chosen[0], -inputs["eta"])] * 2
    if inputs["eta"] >= 0:
        widths = trust_region_widths(chosen, rejected, epsilon=inputs["eta"])
    pairs = zip((chosen, rejected), widths, strict=True)
    return [torch.stack([clip_to_trust_region(side[0], side[1], w), side[1]]) for side, w in pairs], widths


@pytest.mark.parametrize("name", CASES)
def test_weights_and_clip(name):
    inputs, wanted = CASES[name]["inputs"], CASES[name]["expected"]
    chosen, rejected = references_of(inputs)
    weights = weights_of(inputs, chosen, rejected)
    same(weights[0], f64(wanted["alpha_external"]))
    same(weights.sum(dim=0), torch.ones_like(weights[0]))
    sides, widths = clipped(inputs, chosen, rejected)
    for side, found, width in zip(SIDES, sides, widths, strict=True):
        same(width, f64(wanted[f"epsilon_{side}"]))
        same(found[0], f64(wanted[f"clipped_external_{side}"]))


@pytest.mark.parametrize("variant", COMBINED)
@pytest.mark.parametrize("name", CASES)
def test_combined_references_and_losses(name, variant):
    inputs, wanted = CASES[name]["inputs"], CASES[name]["expected"][variant]
    chosen, rejected = references_of(inputs)
    weights = weights_of(inputs, chosen, rejected)
    policy = [f64(inputs[f"policy_{side}_logps"]).requires_grad_() for side in SIDES]
    ratios = []
    for side, logps, own in zip(SIDES, clipped(inputs, chosen, rejected)[0], policy, strict=True):
        combined = combine_references(logps, weights, **COMBINED[variant])
        same(combined, f64(wanted[f"combined_reference_{side}"]))
        ratios.append(own - combined)
        if f"{side}_rewards" in wanted:
            same(inputs["beta"] * ratios[-1].detach(), f64(wanted[f"{side}_rewards"]))
    losses = sigmoid_loss(ratios[0] - ratios[1], beta=inputs["beta"])
    same(losses.detach(), f64(wanted["losses"]))
    if "loss" in wanted:
        same(losses.mean().detach(), f64(wanted["loss"]))
        losses.mean().backward()
        for side, own in zip(SIDES, policy, strict=True):
            same(own.grad, f64(wanted[f"d_loss_d_policy_{side}"]))


@pytest.mark.parametrize("name", CASES)
def test_multi_dpo_is_a_weighted_sum_of_losses(name):
    inputs, wanted = CASES[name]["inputs"], CASES[name]["expected"]["multi_dpo"]
    chosen, rejected = references_of(inputs)
    weights = weights_of(inputs, chosen, rejected)
    (chosen, rejected), _ = clipped(inputs, chosen, rejected)
    policy = [f64(inputs[f"policy_{side}_logps"]) for side in SIDES]
    losses = (weights * sigmoid_loss((policy[0] - chosen) - (policy[1] - rejected), beta=inputs["beta"])).sum(dim=0)
    same(losses, f64(wanted["losses"]))
    same(losses.mean(), f64(wanted["loss"]))


@st.composite
def references(draw, least=1):
    """Log-probs [K, B] of K references, and weights [K, B] on the simplex with zeros among them."""
    k, b = draw(st.integers(least, 5)), draw(st.integers(1, 4))
    logps = st.floats(-1000, 0)
    parts = f64(draw(st.lists(st.lists(st.integers(0, 9), min_size=b, max_size=b), min_size=k, max_size=k)))
    assume((parts.sum(dim=0) > 0).all())
    values = draw(st.lists(st.lists(logps, min_size=b, max_size=b), min_size=k, max_size=k))
    return f64(values), parts / parts.sum(dim=0)


@pytest.mark.parametrize("combine", ["harmonic", "geometric"])
@given(references())
def test_identical_references_give_the_reference_back(combine, drawn):
    logps, weights = drawn
    alike = logps[:1].expand_as(logps)
    for how in (None, weights, weights[:, 0]):
        same(combine_references(alike, how, combine=combine), logps[0])
    same(combine_references(logps[:1], combine=combine), logps[0])


@given(references())
def test_harmonic_geometric_and_arithmetic_mean_stand_in_order(drawn):
    logps, _ = drawn
    harmonic, geometric = (combine_references(logps, combine=combine) for combine in ("harmonic", "geometric"))
    arithmetic = torch.logsumexp(logps - math.log(len(logps)), dim=0)
    assert (harmonic <= geometric + 1e-9).all()
    assert (geometric <= arithmetic + 1e-9).all()


@given(references(), st.sampled_from(["harmonic", "geometric"]))
def test_combined_lies_between_the_references_that_count(drawn, combine):
    logps, weights = drawn
    found = combine_references(logps, weights, combine=combine)
    lowest = torch.where(weights > 0, logps, math.inf).min(dim=0).values
    highest = torch.where(weights > 0, logps, -math.inf).max(dim=0).values
    assert (found >= lowest - 1e-9).all()
    assert (found <= highest + 1e-9).all()


@pytest.mark.parametrize("absent", [-math.inf, math.nan, -1e30], ids=["inf", "nan", "huge"])
@pytest.mark.parametrize("combine", ["harmonic", "geometric"])
def test_a_reference_of_weight_0_does_not_matter(combine, absent):
    logps = f64([[-3.0, -40.0], [absent, absent], [-5.0, -20.0]]).requires_grad_()
    weights = f64([0.25, 0.0, 0.75]).requires_grad_()
    found = combine_references(logps, weights, combine=combine)
    same(found, combine_references(logps[[0, 2]], weights[[0, 2]], combine=combine))
    found.sum().backward()
    assert torch.isfinite(weights.grad).all()
    assert logps.grad[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("combine", ["harmonic", "geometric"])
def test_weights_off_by_rounding_move_long_responses_by_rounding(combine):
    logps = torch.tensor([[-8192.0], [-8192.0]])
    assert combine_references(logps, torch.tensor([0.5, 0.500005]), combine=combine).item() == -8192


def test_combined_by_hand():
    logps = f64([[0.5, 0.2], [0.1, 0.4]]).log()
    weights = f64([0.3, 0.7])
    same(combine_references(logps, weights).exp(), f64([1 / (0.3 / 0.5 + 0.7 / 0.1), 1 / (0.3 / 0.2 + 0.7 / 0.4)]))
    swapped = combine_references(logps, weights, swap=True)
    same(swapped.exp(), f64([1 / (0.7 / 0.5 + 0.3 / 0.1), 1 / (0.7 / 0.2 + 0.3 / 0.4)]))
    geometric = combine_references(logps, weights, combine="geometric")
    same(geometric.exp(), f64([0.5**0.3 * 0.1**0.7, 0.2**0.3 * 0.4**0.7]))


@given(references(least=2))
def test_weights_per_example_are_each_example_by_itself(drawn):
    logps, weights = drawn
    found = combine_references(logps, weights)
    one_by_one = [combine_references(logps[:, [b]], weights[:, b]) for b in range(logps.shape[1])]
    same(found, torch.cat(one_by_one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("combine", ["harmonic", "geometric"])
def test_gradients_are_finite_for_log_probs_of_minus_1e4(combine, dtype):
    logps = torch.tensor([[-1e4, -1.0, -1e4], [-1.0, -1e4, -1e4], [-9e3, -1e3, 0.0]], dtype=dtype, requires_grad=True)
    found = combine_references(logps, combine=combine)
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert torch.isfinite(logps.grad).all()
    torch.testing.assert_close(logps.grad.sum(dim=0), torch.ones(3, dtype=dtype))


@given(references(), st.floats(0, 2))
def test_clipped_log_probs_are_in_the_region_and_those_inside_stay(drawn, epsilon):
    logps, anchor = drawn[0][0], drawn[0][-1]
    found = clip_to_trust_region(logps, anchor, epsilon)
    low, high = (1 + epsilon) * anchor, (1 - epsilon) * anchor
    slack = 1e-9 * (1 + anchor.abs())
    assert (found >= low - slack).all()
    assert (found <= high + slack).all()
    inside = (logps >= low) & (logps <= high)
    same(found[inside], logps[inside])
    same(clip_to_trust_region(logps, anchor, torch.full_like(anchor, epsilon)), found)


def test_clip_by_hand_with_a_width_per_example():
    logps, anchor = f64([-20.0, -5.0, -9.5, -12.0]), f64([-10.0, -10.0, -10.0, -10.0])
    found = clip_to_trust_region(logps, anchor, f64([0.1, 0.2, 0.1, 0.0]))
    assert found.tolist() == pytest.approx([-11, -8, -9.5, -10], rel=1e-12)


@given(references(), st.floats(0, 2))
def test_the_widths_share_epsilon_and_the_less_likely_side_has_more(drawn, epsilon):
    chosen, rejected = drawn[0], drawn[0].flip(1) * 0.5
    ours, theirs = trust_region_widths(chosen, rejected, epsilon=epsilon)
    same(ours + theirs, torch.full_like(ours, epsilon))
    assert ((ours >= theirs - 1e-12) | (chosen.mean(dim=0) >= rejected.mean(dim=0))).all()
    assert (ours >= 0).all()
    assert (theirs >= 0).all()


def test_widths_of_certain_responses_are_halves():
    ours, theirs = trust_region_widths(f64([[0.0, -3.0]]), f64([[0.0, -1.0]]), epsilon=0.2)
    assert ours.tolist() == pytest.approx([0.1, 0.15])
    assert theirs.tolist() == pytest.approx([0.1, 0.05])


@given(references())
def test_confidence_weights_are_shares_of_the_margins(drawn):
    chosen, rejected = drawn[0], drawn[0].flip(1) * 0.5
    found = confidence_weights(chosen, rejected)
    assert (found >= 0).all()
    same(found.sum(dim=0), torch.ones_like(found[0]))
    margins = (chosen - rejected).abs()
    published = margins / (margins.sum(dim=0) + 1e-6)
    assert torch.allclose(found[:-1], published[:-1], rtol=1e-12, atol=0)
    # What is missing to 1 goes to the last.
    assert torch.allclose(found[-1], 1 - published[:-1].sum(dim=0), rtol=0, atol=1e-9)
    same(confidence_weights(rejected, chosen), found)


def test_the_default_width_is_the_official_one():
    ours, theirs = trust_region_widths(f64([[-3.0]]), f64([[-1.0]]))
    assert (ours.item(), theirs.item()) == (pytest.approx(0.075), pytest.approx(0.025))


def test_where_no_reference_tells_the_sides_apart_the_last_alone_counts():
    logps = f64([[-3.0], [-4.0], [-5.0]])
    assert confidence_weights(logps, logps).tolist() == [[0.0], [0.0], [1.0]]
    same(combine_references(logps, confidence_weights(logps, logps)), f64([-5.0]))


L, W = torch.zeros(2, 3), torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda: combine_references(L[0]), r"logps is \[3\]; it must be \[K, B\]", id="logps-vector"),
        pytest.param(lambda: combine_references(L[:0]), r"logps is \[0, 3\].*K >= 1", id="no-reference"),
        pytest.param(lambda: combine_references(L, W * 0), "weights has values from 0 and sums from 0", id="zero"),
        pytest.param(lambda: combine_references(L, W * 1.1), r"sums from 1\.1 to 1\.1", id="off"),
        pytest.param(
            lambda: combine_references(L, torch.tensor([1.5, -0.5])), r"weights has values from -0\.5", id="negative"
        ),
        pytest.param(lambda: combine_references(L, W * math.nan), "weights has values from nan", id="nan"),
        pytest.param(
            lambda: combine_references(L, torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.4]])),
            r"sums from 0\.9 to 1;",
            id="one-example-off",
        ),
        pytest.param(
            lambda: combine_references(L, torch.full((3,), 1 / 3)), r"weights is \[3\]; .*\[2\] or \[2, 3\]", id="shape"
        ),
        pytest.param(
            lambda: combine_references(L, combine="arithmetic"), "combine is 'arithmetic'.*geometric", id="combine"
        ),
        pytest.param(
            lambda: combine_references(torch.zeros(3, 2), swap=True), "swap is True .* harmonic mean of 3", id="swap-3"
        ),
        pytest.param(
            lambda: combine_references(L, W, combine="geometric", swap=True), "swap is True", id="swap-geometric"
        ),
        pytest.param(
            lambda: clip_to_trust_region(L[0], L[0, :2], 0.1), r"logps is \[3\] and anchor \[2\]", id="clip-shapes"
        ),
        pytest.param(lambda: clip_to_trust_region(L[0], L[0], -0.1), r"epsilon is -0\.1", id="clip-negative"),
        pytest.param(lambda: clip_to_trust_region(L[0], L[0], L[0] - 1), "epsilon is .*-1", id="clip-negative-tensor"),
        pytest.param(
            lambda: clip_to_trust_region(L[0], L[0], W), r"epsilon is \[2\]; .*\[3\]", id="clip-epsilon-shape"
        ),
        pytest.param(lambda: trust_region_widths(L, L, epsilon=-1.0), r"epsilon is -1\.0", id="widths-negative"),
        pytest.param(lambda: trust_region_widths(L, L[:1]), r"chosen is \[2, 3\] and rejected \[1, 3\]", id="widths"),
        pytest.param(lambda: confidence_weights(L, L[:, :2]), r"rejected \[2, 2\]", id="confidence-shapes"),
        pytest.param(lambda: confidence_weights(L[0], L[0]), r"chosen is \[3\]", id="confidence-vector"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
