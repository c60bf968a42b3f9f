"""Group weights: the official trainers' figures, and what holds for any losses."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pluralign.objectives import (
    example_weights,
    group_coefficients,
    group_losses,
    importance_weights,
    ipo_loss,
    sigmoid_loss,
    update_group_weights,
)

GOLDEN = Path(__file__).parents[1] / "golden"
BATCHES = {case["name"]: case for case in json.loads((GOLDEN / "group_robust.json").read_text())["cases"]}
BANDITS = {case["name"]: case for case in json.loads((GOLDEN / "bandit_updates.json").read_text())["cases"]}
SCALES = ("mean", "unbiased", "sum")
IDS = torch.tensor([0, 1, 1, 2, 2, 2])
LOSSES = torch.tensor([4.0, 1.0, 3.0, 0.5, 1.5, 1.0], dtype=torch.float64)
SIZES = torch.tensor([100, 40, 60])
EVEN = torch.full((3,), 1 / 3, dtype=torch.float64)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def loss_of_batch(inputs, batch):
    chosen, rejected = (
        f64(batch[f"policy_{side}_logps"]) - f64(batch[f"reference_{side}_logps"]) for side in ("chosen", "rejected")
    )
    if inputs["loss"] == "gr_ipo":
        return ipo_loss(chosen - rejected, beta=inputs["beta"])
    return sigmoid_loss(chosen - rejected, beta=inputs["beta"], label_smoothing=inputs["label_smoothing"])


@pytest.mark.parametrize("name", BATCHES)
def test_the_language_model_trainer_step_by_step(name):
    inputs, wanted = BATCHES[name]["inputs"], BATCHES[name]["expected"]
    sizes = f64(inputs["group_sizes"])
    how = {"sizes": sizes, "scale": "sum" if inputs["divide_by_totalcount"] else "mean"}
    if inputs["fixed_weights"] is not None:
        weights = f64(inputs["fixed_weights"])
    else:
        weights = importance_weights(sizes) if inputs["importance_sampling"] else torch.full_like(sizes, 1 / len(sizes))
    same(weights, f64(wanted["initial_group_weights"]))
    assert len(inputs["micro_batches"]) == len(wanted["steps"]) > 0
    for batch, step in zip(inputs["micro_batches"], wanted["steps"], strict=True):
        groups, losses = torch.tensor(batch["group"]), loss_of_batch(inputs, batch).requires_grad_()
        same(losses.detach(), f64(step["losses"]))
        if not inputs["importance_sampling"]:
            weights = update_group_weights(
                weights, losses, groups, step_size=inputs["step_size"], adjustment=inputs["adjustment_C"], **how
            )
        same(weights, f64(step["group_weights"]))
        found = group_losses(losses, groups, groups_count=len(sizes), **how)
        same(found.detach(), f64(step["group_loss"]))
        counts = example_weights(weights, groups, **how)
        same(counts, f64(step["per_example_weight"]))
        robust = (counts * losses).sum()
        same(robust.detach(), f64(step["robust_loss"]))
        same(torch.autograd.grad((weights * found).sum(), losses)[0], f64(step["per_example_weight"]))


@pytest.mark.parametrize("name", BANDITS)
def test_the_bandit_trainer_update_by_update(name):
    inputs, wanted = BANDITS[name]["inputs"], BANDITS[name]["expected"]
    features, groups = f64(inputs["feature_difference"]), torch.tensor(inputs["group"])
    theta = f64(inputs["theta_init"]).requires_grad_()
    weights = f64(inputs["fixed_weights"] or [0.5, 0.5])
    loss_of = {"dpo": sigmoid_loss, "ipo": ipo_loss}[inputs["loss"]]

    def losses():
        return loss_of(features @ theta, beta=inputs["beta"])

    def means():
        return group_losses(losses().detach(), groups, groups_count=2)

    assert inputs["l2"] == 0
    same(means(), f64(wanted["initial_group_mean_losses"]))
    for step in wanted["steps"]:
        if inputs["method"] == "group_robust":
            how = {"step_size": inputs["weight_step_size"], "trade_off": inputs["chi"]}
            weights = update_group_weights(weights, losses(), groups, **how)
            counts = example_weights(weights, groups, trade_off=inputs["chi"])
        else:
            plain = inputs["method"] == "plain"
            counts = (torch.ones(len(groups)) if plain else weights[groups]) / len(groups)
        (gradient,) = torch.autograd.grad((counts * losses()).sum(), theta)
        theta = (theta - inputs["theta_step_size"] * gradient).detach().requires_grad_()
        same(theta.detach(), f64(step["theta"]))
        same(means(), f64(step["group_mean_losses_after"]))
        if step["group_weights"] is not None:
            same(weights, f64(step["group_weights"]))


@st.composite
def situations(draw, largest=1e6):
    """Weights on the simplex (zeros among them), losses and groups of a call, sizes."""
    count = draw(st.integers(1, 5))
    parts = f64(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)))
    assume(parts.sum() > 0)
    rows = draw(st.integers(0, 8))
    losses = draw(st.lists(st.floats(0, largest), min_size=rows, max_size=rows))
    groups = draw(st.lists(st.integers(0, count - 1), min_size=rows, max_size=rows))
    sizes = draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count))
    return parts / parts.sum(), f64(losses), torch.tensor(groups, dtype=torch.int64), torch.tensor(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", SCALES)
@given(situations(), st.floats(0, 1e3), st.floats(0, 1), st.floats(0, 10))
def test_weights_stay_on_the_simplex_whatever_the_losses(scale, dtype, situation, step_size, chi, adjustment):
    weights, losses, groups, sizes = situation
    how = {"step_size": step_size, "sizes": sizes, "trade_off": chi, "adjustment": adjustment, "scale": scale}
    new = update_group_weights(weights.to(dtype), losses, groups, **how)
    assert new.dtype == dtype
    assert torch.isfinite(new).all()
    assert new.sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(new > 0, weights > 0)


@pytest.mark.parametrize("scale", SCALES)
@given(situations(), st.floats(1e-6, 10))
def test_the_group_with_the_largest_loss_never_loses_weight_relative_to_others(scale, situation, step_size):
    weights, losses, groups, sizes = situation
    found = group_losses(losses, groups, groups_count=len(weights), sizes=sizes, scale=scale)
    worst = int(found.argmax())
    assume(weights[worst] > 0)
    new = update_group_weights(weights, losses, groups, step_size=step_size, sizes=sizes, scale=scale)
    for other in range(len(weights)):
        # Products and not quotients: others may have no weight.
        assert new[worst] * weights[other] >= new[other] * weights[worst] * (1 - 1e-9)


def test_a_worse_group_gains_by_exactly_the_exponent():
    new = update_group_weights(EVEN, LOSSES, IDS, step_size=0.5, trade_off=0.4)
    assert math.log(new[0] / new[1]) == pytest.approx(0.5 * 0.4 * (4 - 2), rel=1e-9)
    assert math.log(new[1] / new[2]) == pytest.approx(0.5 * 0.4 * (2 - 1), rel=1e-9)


@pytest.mark.parametrize("scale", SCALES)
@given(situations())
def test_without_a_step_the_weights_stay(scale, situation):
    weights, losses, groups, sizes = situation
    same(update_group_weights(weights, losses, groups, step_size=0.0, sizes=sizes, scale=scale), weights)


@given(situations(largest=100.0))
def test_without_a_step_even_weights_give_the_mean_over_groups(situation):
    _, losses, groups, sizes = situation
    even = torch.full((len(sizes),), 1 / len(sizes), dtype=torch.float64)
    kept = update_group_weights(even, losses, groups, step_size=0.0)
    means = [losses[groups == group].mean().item() for group in set(groups.tolist())]
    robust = (example_weights(kept, groups) * losses).sum().item()
    assert robust == pytest.approx(sum(means) / len(sizes), rel=1e-9, abs=1e-12)


@given(situations(largest=100.0), st.floats(0, 1))
def test_trade_off_0_is_the_balanced_loss_whatever_the_weights(situation, chi):
    weights, losses, groups, _ = situation
    even = torch.full_like(weights, 1 / len(weights))
    same(example_weights(weights, groups, trade_off=0.0), example_weights(even, groups))
    same(update_group_weights(weights, losses, groups, step_size=5.0, trade_off=0.0), weights)
    found = group_coefficients(weights, trade_off=chi)
    same(found, (1 - chi) * even + chi * weights)
    same(group_coefficients(weights), weights)


@pytest.mark.parametrize("scale", SCALES)
@given(situations(largest=100.0), st.floats(0, 1))
def test_example_weights_and_group_losses_say_the_same_robust_loss(scale, situation, chi):
    weights, losses, groups, sizes = situation
    per_group = group_losses(losses, groups, groups_count=len(weights), sizes=sizes, scale=scale)
    per_row = example_weights(weights, groups, sizes=sizes, trade_off=chi, scale=scale)
    same((per_row * losses).sum(), (group_coefficients(weights, trade_off=chi) * per_group).sum())


@pytest.mark.parametrize(
    ("scale", "wanted"), [("mean", [4, 2, 1]), ("sum", [8, 20, 10]), ("unbiased", [8 / 6, 20 / 6, 10 / 6])]
)
def test_the_three_scales(scale, wanted):
    same(group_losses(LOSSES, IDS, groups_count=3, sizes=SIZES, scale=scale), f64(wanted))


def test_the_unbiased_scale_is_right_in_the_mean_over_all_batches():
    """Every ordered batch of two rows out of all six, each row as likely as any other."""
    sizes = torch.bincount(IDS)
    batches = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    found = [group_losses(LOSSES[b], IDS[b], groups_count=3, sizes=sizes, scale="unbiased") for b in batches]
    same(torch.stack(found).mean(dim=0), group_losses(LOSSES, IDS, groups_count=3))


def test_a_group_without_rows_has_loss_0_and_its_adjustment():
    assert group_losses(LOSSES[1:], IDS[1:], groups_count=4).tolist() == [0, 2, 1, 0]
    alone = update_group_weights(EVEN, LOSSES[:1], IDS[:1], step_size=1.0)
    assert alone[1] == alone[2] < alone[0]
    pushed = update_group_weights(EVEN, LOSSES[:0], IDS[:0], step_size=1.0, sizes=f64([1, 4, 4]), adjustment=2.0)
    assert math.log(pushed[0] / pushed[1]) == pytest.approx(2 - 1, rel=1e-9)


def test_a_group_comes_back_after_a_loss_that_left_it_nothing():
    weights = torch.full((2,), 0.5)
    weights = update_group_weights(weights, torch.tensor([1e6]), torch.tensor([0]), step_size=1.0)
    assert weights[1] > 0
    assert weights[1] < 1e-30
    weights = update_group_weights(weights, torch.tensor([200.0]), torch.tensor([1]), step_size=1.0)
    assert weights[1] > 0.99


def test_old_weights_keep_their_digits_beside_huge_losses():
    """In float32, 1e9 added to a logarithm before the maximum is taken away leaves nothing of it."""
    old = torch.tensor([0.1, 0.2, 0.7])
    same(update_group_weights(old, torch.full((3,), 1e9), torch.arange(3), step_size=1.0), old)


def test_weights_are_new_and_have_no_graph():
    weights, losses = EVEN.clone().requires_grad_(), LOSSES.clone().requires_grad_()
    new = update_group_weights(weights, losses, IDS, step_size=0.5)
    assert not new.requires_grad
    assert torch.equal(weights.detach(), EVEN)
    group_losses(losses, IDS, groups_count=3).sum().backward()
    same(losses.grad, f64([1, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]))


def test_importance_weights_are_inverse_sizes():
    found = importance_weights(torch.tensor([20, 80]))
    assert found.dtype == torch.get_default_dtype()
    assert found.tolist() == pytest.approx([0.8, 0.2])
    assert importance_weights(f64([1, 2, 4])).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7], rel=1e-12)


def update(weights=EVEN, losses=LOSSES, groups=IDS, **how):
    return update_group_weights(weights, losses, groups, **{"step_size": 0.1, **how})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda: update(step_size=-0.1), r"step_size is -0\.1.*>= 0", id="step-negative"),
        pytest.param(lambda: update(step_size=math.nan), "step_size is nan", id="step-nan"),
        pytest.param(lambda: update(adjustment=-1.0, sizes=SIZES), r"adjustment is -1\.0", id="adjustment-negative"),
        pytest.param(lambda: update(adjustment=1.0), "sizes is None; adjustment needs", id="adjustment-without-sizes"),
        pytest.param(lambda: update(trade_off=1.1), r"trade_off is 1\.1.*\[0, 1\]", id="trade-off-above"),
        pytest.param(lambda: update(trade_off=-0.1), "trade_off is", id="trade-off-below"),
        pytest.param(lambda: update(f64([0.5, 0.4, 0.2])), r"weights is \[0\.5, 0\.4, 0\.2\] with sum 1\.1", id="off"),
        pytest.param(lambda: update(f64([1.5, -0.5, 0])), r"weights is \[1\.5, -0\.5, 0\]", id="weight-negative"),
        pytest.param(lambda: update(f64([0.0, 0.0, 0.0])), "weights is .* with sum 0;", id="weights-zero"),
        pytest.param(lambda: update(EVEN[None]), r"weights is torch\.float64 \[1, 3\]", id="weights-matrix"),
        pytest.param(lambda: update(torch.tensor([1, 0, 0])), r"weights is torch\.int64", id="weights-int"),
        pytest.param(lambda: update(groups=IDS + 1), r"groups holds 3; .* \[0, 2\]", id="group-above"),
        pytest.param(lambda: update(groups=IDS - 1), "groups holds -1", id="group-below"),
        pytest.param(lambda: update(groups=IDS.double()), r"groups is torch\.float64", id="groups-float"),
        pytest.param(lambda: update(groups=IDS[:5]), r"losses is \[6\] and groups \[5\]", id="rows-differ"),
        pytest.param(lambda: update(scale="total"), "scale is 'total'; .* mean, unbiased, sum", id="scale-unknown"),
        pytest.param(lambda: update(scale="sum"), "sizes is None; scale 'sum' needs", id="sum-without-sizes"),
        pytest.param(lambda: update(scale="unbiased"), "sizes is None", id="unbiased-without-sizes"),
        pytest.param(lambda: update(scale="sum", sizes=SIZES[:2]), r"sizes is \[2\]; .* \[3\]", id="sizes-short"),
        pytest.param(lambda: update(scale="sum", sizes=SIZES * 0), r"sizes holds \[0, 0, 0\]", id="sizes-zero"),
        pytest.param(lambda: update(losses=LOSSES * math.nan), "losses give the groups", id="losses-nan"),
        pytest.param(lambda: group_losses(LOSSES, IDS, groups_count=0), "groups_count is 0", id="no-groups"),
        pytest.param(lambda: group_coefficients(EVEN, trade_off=2), "trade_off is 2", id="coefficients-trade-off"),
        pytest.param(lambda: example_weights(EVEN * 2, IDS), "weights is", id="example-weights-off"),
        pytest.param(lambda: example_weights(EVEN, IDS + 5), "groups holds", id="example-weights-group"),
        pytest.param(lambda: importance_weights(f64([3, 0])), r"sizes holds \[3, 0\]", id="importance-zero"),
        pytest.param(lambda: importance_weights(f64([])), r"sizes is \[0\]", id="importance-empty"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
