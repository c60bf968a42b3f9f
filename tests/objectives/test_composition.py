"""The loss and anchor seats composed: what holds for any log-probs."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralign.config import AnchorConfig, BaseAnchorConfig, ChosenAnchorConfig, LossConfig, NllAnchorConfig
from pluralign.errors import InputError
from pluralign.objectives import Objective, base_anchor, chosen_anchor, sigmoid_loss

FORMS = ("hinge", "absolute", "squared", "nll")
# Equal, or further apart than rounding.
log_probs = st.floats(-300, 0).map(lambda value: torch.tensor([round(value, 2)], dtype=torch.float64))
betas = st.floats(0.01, 2)


def branches(chosen, rejected, base):
    return {"chosen": chosen, "rejected": rejected, "base": base}


def tokens(chosen=5, rejected=7, base=3):
    return {name: torch.tensor([n]) for name, n in branches(chosen, rejected, base).items()}


@pytest.mark.parametrize("form", ["hinge", "absolute", "squared"])
@given(log_probs, log_probs, log_probs, betas, st.floats(0, 0.4))
def test_where_policy_is_reference_the_loss_is_ln_2_whatever_the_anchor(form, chosen, rejected, base, beta, weight):
    objective = Objective(LossConfig(beta=beta), AnchorConfig(base=BaseAnchorConfig(weight=weight, form=form)))
    same = branches(chosen, rejected, base)
    assert objective(same, same, tokens()).per_example.item() == math.log(2)


@given(log_probs, log_probs)
def test_the_hinge_has_no_gradient_where_the_base_response_lost_nothing(policy, reference):
    policy = torch.maximum(policy, reference).requires_grad_()
    base_anchor(policy, reference).sum().backward()
    assert policy.grad.item() == 0


@given(log_probs, log_probs)
def test_anchor_forms_agree_with_their_definitions(policy, reference):
    rho = (policy - reference).item()
    values = {form: base_anchor(policy, reference, form=form).item() for form in FORMS}
    assert values == {
        "hinge": max(0.0, -rho),
        "absolute": abs(rho),
        "squared": pytest.approx(rho**2, rel=1e-12),
        "nll": -policy.item(),
    }
    per_token = base_anchor(policy, reference, form="absolute", lengths=torch.tensor([4])).item()
    assert per_token == pytest.approx(abs(rho) / 4, rel=1e-9, abs=1e-12)


@given(log_probs, log_probs, log_probs, log_probs, betas)
def test_dpop_is_the_chosen_anchor_inside_the_sigmoid(chosen, rejected, ref_chosen, ref_rejected, beta):
    objective = Objective(LossConfig(beta=beta), AnchorConfig(chosen=ChosenAnchorConfig(weight=5.0)))
    zero = torch.zeros(1, dtype=torch.float64)
    loss = objective(branches(chosen, rejected, zero), branches(ref_chosen, ref_rejected, zero), tokens()).per_example
    margin = (chosen - rejected) - (ref_chosen - ref_rejected)
    penalty = chosen_anchor(chosen, ref_chosen)
    torch.testing.assert_close(loss, sigmoid_loss(margin - 5 * penalty, beta=beta))


@pytest.mark.parametrize(
    "anchor",
    [
        *(AnchorConfig(base=BaseAnchorConfig(weight=0.4, form=form)) for form in ("hinge", "absolute", "squared")),
        AnchorConfig(base=BaseAnchorConfig(weight=0.4, placement="inside")),
        AnchorConfig(chosen=ChosenAnchorConfig(weight=5.0)),
    ],
)
@pytest.mark.parametrize("rounding", [-2e-5, 2e-5])
def test_rounding_of_a_reference_does_not_decide_whether_a_fresh_policy_is_anchored(anchor, rounding):
    gradients = []
    for difference in (0.0, rounding):
        policy = {name: torch.tensor([-40.0], requires_grad=True) for name in ("chosen", "rejected", "base")}
        reference = {name: value.detach() + difference for name, value in policy.items()}
        Objective(LossConfig(), anchor)(policy, reference, tokens()).per_example.sum().backward()
        gradients.append([0.0 if value.grad is None else value.grad.item() for value in policy.values()])
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


@given(log_probs, log_probs, log_probs, log_probs, betas, st.floats(0.01, 0.4))
def test_an_anchor_outside_adds_its_multiple_of_beta(policy, reference, base, base_reference, beta, weight):
    plain, anchored = (
        Objective(LossConfig(beta=beta), AnchorConfig(base=BaseAnchorConfig(weight=w)))(
            branches(policy, reference, base), branches(reference, policy, base_reference), tokens()
        ).per_example
        for w in (0.0, weight)
    )
    torch.testing.assert_close(
        anchored - plain, weight * beta * base_anchor(base, base_reference), atol=1e-9, rtol=1e-9
    )


def test_rows_without_a_branch_get_only_the_terms_they_have():
    objective = Objective(
        LossConfig(), AnchorConfig(base=BaseAnchorConfig(weight=0.4), nll=NllAnchorConfig(weight=1.0))
    )
    policy = {name: torch.tensor([-4.0, 0.0, -4.0]) for name in ("chosen", "rejected")} | {
        "base": torch.tensor([-9.0, -9.0, 0.0])
    }
    reference = {name: torch.zeros(3) - 4 for name in ("chosen", "rejected")} | {
        "base": torch.tensor([-4.0, -4.0, 0.0])
    }
    lengths = {"chosen": torch.tensor([2, 0, 2]), "rejected": torch.tensor([3, 0, 3]), "base": torch.tensor([4, 4, 0])}
    losses = objective(policy, reference, lengths)
    anchor = 0.4 * 0.1 * 5.0
    nll = 2.0
    expected = torch.tensor([math.log(2) + anchor + nll, anchor, math.log(2) + nll])
    torch.testing.assert_close(losses.per_example, expected)
    assert torch.isnan(losses.terms["rewards/margins"]).tolist() == [False, True, False]
    assert torch.isnan(losses.terms["anchor/loss"]).tolist() == [False, False, True]


def test_nll_needs_no_reference_and_averages_per_token():
    objective = Objective(LossConfig(type="nll", length_average=True))
    assert not objective.needs_reference
    assert objective.branches == ("chosen",)
    losses = objective({"chosen": torch.tensor([-6.0])}, {}, {"chosen": torch.tensor([3])})
    assert losses.per_example.tolist() == [2.0]


def half_hinge(margin, *, beta, columns, **_):
    return torch.relu(1 - beta * margin) * columns["strength"]


def test_a_loss_of_the_users_own_sees_the_other_columns():
    objective = Objective(LossConfig(type=f"{__name__}:half_hinge", beta=1.0))
    policy = {"chosen": torch.tensor([0.0, 0.0]), "rejected": torch.tensor([0.0, 0.5])}
    lengths = {name: torch.ones(2, dtype=torch.long) for name in policy}
    reference = {name: torch.zeros(2) for name in policy}
    losses = objective(policy, reference, lengths, {"strength": torch.tensor([1.0, 2.0])})
    assert losses.per_example.tolist() == [1.0, 3.0]


def mean_of_all(margin, **_):
    return margin.mean()


def numbers(margin, **_):
    return margin.tolist()


@pytest.mark.parametrize(("name", "found"), [("mean_of_all", r"a tensor \[\] for 2"), ("numbers", "a list for 2")])
def test_a_loss_of_the_users_own_that_is_not_per_example_is_refused(name, found):
    objective = Objective(LossConfig(type=f"{__name__}:{name}"))
    values = {side: torch.zeros(2) for side in ("chosen", "rejected")}
    lengths = {side: torch.ones(2, dtype=torch.long) for side in values}
    with pytest.raises(InputError, match=found):
        objective(values, values, lengths)


@pytest.mark.parametrize(
    ("loss", "anchor", "named"),
    [
        (LossConfig(beta=0.0), AnchorConfig(), "loss.beta is 0.0"),
        (LossConfig(label_smoothing=0.5), AnchorConfig(), "loss.label_smoothing"),
        (LossConfig(type="ipo", label_smoothing=0.1), AnchorConfig(), "label_smoothing has no meaning"),
        (LossConfig(type="sigmod"), AnchorConfig(), "loss.type is 'sigmod'"),
        (LossConfig(type="no_such_package:loss"), AnchorConfig(), "cannot be imported"),
        (LossConfig(type="math:pi"), AnchorConfig(), "not a function"),
        (LossConfig(), AnchorConfig(base=BaseAnchorConfig(weight=-1.0)), "anchor.base.weight is -1.0"),
        (LossConfig(type="nll"), AnchorConfig(chosen=ChosenAnchorConfig(weight=1.0)), "inside the margin"),
    ],
)
def test_values_out_of_range_are_named(loss, anchor, named):
    with pytest.raises(InputError, match=named):
        Objective(loss, anchor)


def test_an_anchor_that_may_forbid_the_style_is_warned_of():
    with pytest.warns(UserWarning, match="forbid"):
        Objective(LossConfig(), AnchorConfig(base=BaseAnchorConfig(weight=0.5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Objective(LossConfig(), AnchorConfig(base=BaseAnchorConfig(weight=0.49)))
