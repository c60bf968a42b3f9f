"""Contrasts across a batch: the official code's figures, and what holds for any log-ratios."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralign.objectives import contrast_loss, diagonal_contrast_loss, semantic_weights, sigmoid_loss

FAMILY = json.loads((Path(__file__).parents[1] / "golden" / "rpo.json").read_text())
CASES = {case["name"]: case for case in FAMILY["cases"]}
SEMANTIC = [name for name, case in CASES.items() if case["inputs"]["kind"] in ("paired", "unpaired")]
betas = st.floats(0.01, 2)
log_ratios = st.lists(st.floats(-300, 300), min_size=1, max_size=6)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def embeddings_of(inputs):
    both = "prompt_embeddings"
    return [f64(inputs.get(f"{side}_{both}", inputs.get(both))) for side in ("chosen", "rejected")]


def rows_of(inputs, chosen, rejected):
    """The library's loss per chosen response under the golden file's kind."""
    beta = inputs["beta"]
    if inputs["kind"] == "diagonal":
        return diagonal_contrast_loss(chosen, rejected, beta=beta, diagonal_weight=inputs["diagonal_weight"])
    if inputs["kind"] in ("uniform", "unpaired_uniform"):
        return contrast_loss(chosen, rejected, beta=beta, weights="one")
    weights = semantic_weights(*embeddings_of(inputs), temperature=inputs["tau"])
    return contrast_loss(chosen, rejected, beta=beta, weights=weights)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(name):
    inputs, wanted = CASES[name]["inputs"], CASES[name]["expected"]
    policy = [f64(inputs[f"policy_{side}_logps"]).requires_grad_() for side in ("chosen", "rejected")]
    reference = [f64(inputs[f"reference_{side}_logps"]) for side in ("chosen", "rejected")]
    rows = rows_of(inputs, policy[0] - reference[0], policy[1] - reference[1])
    same(rows.detach(), f64(wanted["row_losses"]))
    same(rows.mean().detach(), f64(wanted["loss"]))
    rows.mean().backward()
    same(policy[0].grad, f64(wanted["d_loss_d_policy_chosen"]))
    same(policy[1].grad, f64(wanted["d_loss_d_policy_rejected"]))


@pytest.mark.parametrize("name", SEMANTIC)
def test_semantic_weights_of_the_official_code(name):
    inputs, wanted = CASES[name]["inputs"], CASES[name]["expected"]
    same(semantic_weights(*embeddings_of(inputs), temperature=inputs["tau"]), f64(wanted["weights"]))


@st.composite
def two_sides(draw):
    """Embeddings of two sides of any number of rows."""
    width, numbers = draw(st.integers(1, 4)), st.floats(-5, 5)
    rows = st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=5)
    return f64(draw(rows)), f64(draw(rows))


@given(two_sides(), st.floats(0.01, 5))
def test_rows_of_semantic_weights_sum_to_1(sides, temperature):
    found = semantic_weights(*sides, temperature=temperature)
    assert found.shape == (len(sides[0]), len(sides[1]))
    assert (found >= 0).all()
    same(found.sum(dim=1), torch.ones(len(sides[0]), dtype=torch.float64))


@given(two_sides(), st.floats(0.05, 2), st.floats(0.1, 50))
def test_semantic_weights_know_no_norm_and_keep_order(sides, temperature, scale):
    found = semantic_weights(*sides, temperature=temperature)
    # Far from F.normalize's smallest norm, below which it does matter.
    if all((side.norm(dim=1) > 1e-6).all() for side in sides):
        same(semantic_weights(sides[0] * scale, sides[1], temperature=temperature), found)
    order = torch.arange(len(sides[1])).flip(0)
    same(semantic_weights(sides[0], sides[1][order], temperature=temperature), found[:, order])


def test_semantic_weights_by_hand():
    chosen, rejected = f64([[2.0, 0.0], [0.0, 0.0]]), f64([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    parts = [1, math.exp(-1 / 0.5), math.exp(-2 / 0.5)]
    wanted = [[part / sum(parts) for part in parts], [1 / 3] * 3]
    same(semantic_weights(chosen, rejected), f64(wanted))


@given(log_ratios, betas)
def test_the_diagonal_alone_is_dpo(values, beta):
    chosen, rejected = f64(values), f64(values[::-1]) - 0.5
    found = diagonal_contrast_loss(chosen, rejected, beta=beta, diagonal_weight=1.0)
    same(found, sigmoid_loss(chosen - rejected, beta=beta))


@given(log_ratios, log_ratios, betas)
def test_one_rejected_response_is_dpo_in_every_form(chosen, rejected, beta):
    chosen, rejected = f64(chosen), f64(rejected[:1])
    wanted = sigmoid_loss(chosen - rejected, beta=beta)
    for weights in ("one", "share", torch.ones(len(chosen), 1)):
        same(contrast_loss(chosen, rejected, beta=beta, weights=weights), wanted)


@given(log_ratios, log_ratios, betas)
def test_uniform_weights_are_the_tensor_of_1_or_of_1_over_n(chosen, rejected, beta):
    chosen, rejected = f64(chosen), f64(rejected)
    ones = torch.ones(len(chosen), len(rejected), dtype=torch.float64)
    for name, tensor in (("one", ones), ("share", ones / len(rejected))):
        by_name = contrast_loss(chosen, rejected, beta=beta, weights=name)
        same(by_name, contrast_loss(chosen, rejected, beta=beta, weights=tensor))
    same(contrast_loss(chosen, rejected, beta=beta), contrast_loss(chosen, rejected, beta=beta, weights=ones))


@given(log_ratios, betas, st.floats(0, 1))
def test_the_diagonal_weighs_the_others_by_their_mean(values, beta, share):
    chosen, rejected = f64(values), f64(values[::-1]) + 1
    pairs = [[-torch.nn.functional.logsigmoid(beta * (u - v)).item() for v in rejected] for u in chosen]
    wanted = []
    for i, row in enumerate(pairs):
        others = row[:i] + row[i + 1 :]
        wanted.append(share * row[i] + (1 - share) * sum(others) / len(others) if others else row[i])
    same(diagonal_contrast_loss(chosen, rejected, beta=beta, diagonal_weight=share), f64(wanted))


def test_the_default_diagonal_weight_is_the_official_one():
    chosen, rejected = f64([1.0, -2.0, 0.5]), f64([0.0, 3.0, -1.0])
    found = diagonal_contrast_loss(chosen, rejected, beta=0.5)
    same(found, diagonal_contrast_loss(chosen, rejected, beta=0.5, diagonal_weight=0.8))


def test_a_single_pair_has_its_own_loss_where_the_official_code_has_none():
    found = diagonal_contrast_loss(f64([1.0]), f64([-1.0]), beta=0.5)
    same(found, sigmoid_loss(f64([2.0]), beta=0.5))


@pytest.mark.parametrize("weights", ["one", "share", "tensor"])
@pytest.mark.parametrize(("m", "n"), [(3, 0), (0, 3), (0, 0)])
def test_an_empty_side_gives_zeros_that_carry_a_graph(m, n, weights):
    chosen, rejected = torch.full((m,), 2.0, requires_grad=True), torch.full((n,), 1.0, requires_grad=True)
    how = torch.ones(m, n) if weights == "tensor" else weights
    found = contrast_loss(chosen, rejected, beta=0.1, weights=how)
    assert found.tolist() == [0.0] * m
    found.sum().backward()
    assert chosen.grad.tolist() == [0.0] * m
    assert rejected.grad.tolist() == [0.0] * n


def test_an_empty_batch_has_a_diagonal_and_weights_of_no_size():
    nothing = torch.zeros(0, requires_grad=True)
    assert diagonal_contrast_loss(nothing, nothing, beta=0.1).requires_grad
    assert semantic_weights(torch.ones(2, 3), torch.ones(0, 3)).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("form", ["one", "share", "semantic", "diagonal"])
def test_gradients_are_finite_for_log_probs_of_minus_1e4(form, dtype):
    chosen = torch.tensor([-1e4, 0.0, 1e4], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
    if form == "diagonal":
        losses = diagonal_contrast_loss(chosen, rejected, beta=1.0)
    else:
        weights = semantic_weights(torch.eye(3, dtype=dtype), torch.eye(3, dtype=dtype))
        losses = contrast_loss(chosen, rejected, beta=1.0, weights=weights if form == "semantic" else form)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    for side in (chosen, rejected):
        assert torch.isfinite(side.grad).all()
        assert (side.grad != 0).any()


U, V, E = torch.zeros(2), torch.zeros(3), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda: contrast_loss(U, V, beta=0.0), r"beta is 0\.0; it must be > 0", id="beta-zero"),
        pytest.param(lambda: contrast_loss(U, V, beta=math.nan), "beta is nan", id="beta-nan"),
        pytest.param(lambda: contrast_loss(E, V, beta=1.0), r"chosen is \[2, 4\]", id="chosen-matrix"),
        pytest.param(
            lambda: contrast_loss(U, V, beta=1.0, weights=torch.ones(3, 2)),
            r"weights is \[3, 2\]; it must be \[2, 3\]",
            id="weights-transposed",
        ),
        pytest.param(
            lambda: contrast_loss(U, V, beta=1.0, weights=-torch.ones(2, 3)), "weights holds -1", id="weights-negative"
        ),
        pytest.param(
            lambda: contrast_loss(U, V, beta=1.0, weights="uniform"), "weights is 'uniform'.*one, share", id="name"
        ),
        pytest.param(lambda: diagonal_contrast_loss(U, U, beta=-1.0), r"beta is -1\.0", id="diagonal-beta"),
        pytest.param(
            lambda: diagonal_contrast_loss(U, V, beta=1.0), r"chosen is \[2\] and rejected \[3\]", id="no-pairs"
        ),
        pytest.param(
            lambda: diagonal_contrast_loss(U, U, beta=1.0, diagonal_weight=1.5),
            r"diagonal_weight is 1\.5.*\[0, 1\]",
            id="diagonal-weight",
        ),
        pytest.param(lambda: semantic_weights(E, E, temperature=0.0), r"temperature is 0\.0", id="temperature"),
        pytest.param(lambda: semantic_weights(E, E[:, :3]), r"\[2, 4\] and rejected_embeddings \[2, 3\]", id="widths"),
        pytest.param(lambda: semantic_weights(E[0], E), r"chosen_embeddings is \[4\]", id="embedding-vector"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
