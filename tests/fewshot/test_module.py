"""The published module against the figures of its own code (tests/golden/gpo_module.json), and what must hold of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from pluralign.fewshot.module import (
    ModuleConfig,
    PreferenceModule,
    cross_entropy,
    gaussian_nll,
    softmax_by_question,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILY = json.loads((GOLDEN / "gpo_module.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in FAMILY["cases"]}


def published(dtype: torch.dtype = torch.float64) -> PreferenceModule:
    sizes = {key: FAMILY["config"][key] for key in ("dim_x", "d_model", "emb_depth", "dim_feedforward", "nhead")}
    module = PreferenceModule(ModuleConfig(**sizes, num_layers=FAMILY["config"]["num_layers"]))
    module.load_state_dict(load_file(GOLDEN / "gpo_module" / "weights.safetensors"))
    return module.to(dtype)


def padded(groups: list[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values padded with zeros at the end, and which are padding."""
    values = [torch.tensor(group, dtype=dtype) for group in groups]
    longest = max(map(len, values))
    padding = torch.tensor([[place >= len(value) for place in range(longest)] for value in values])
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True), padding


def numbered(sizes: list[list[int]]) -> Tensor:
    """Question numbers of the points, -1 for padding."""
    rows = [torch.tensor([n for n, size in enumerate(group) for _ in range(size)]) for group in sizes]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def real(values: Tensor, questions: Tensor) -> list[list[float]]:
    return [row[there].tolist() for row, there in zip(values, questions >= 0, strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", CASES)
def test_the_published_figures(name: str, dtype: torch.dtype, tolerance: float) -> None:
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    module = published(dtype)
    (x, padding), (y, _) = padded(inputs["context_x"], dtype), padded(inputs["context_y"], dtype)
    (targets, _), (shares, _) = padded(inputs["target_x"], dtype), padded(inputs["target_y"], dtype)
    questions = numbered(inputs["target_options_per_question"])
    means, log_stds = module(x, y, targets, padding)
    found = {
        "raw_means": means,
        "sigma": log_stds.exp(),
        "predicted_probabilities": softmax_by_question(means, questions),
    }
    for key, values in found.items():
        for mine, theirs in zip(real(values, questions), expected[key], strict=True):
            assert mine == pytest.approx(theirs, abs=tolerance, rel=tolerance)
    mean = gaussian_nll(means, log_stds, shares, questions)
    assert mean.item() == pytest.approx(expected["loss_mean_over_real_points"], rel=1e-4 if tolerance > 1e-6 else 1e-9)
    loss = gaussian_nll(means, log_stds, shares, questions, pad_counts=True)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4 if tolerance > 1e-6 else 1e-9)
    loss.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]))
    assert norm.item() == pytest.approx(expected["grad_norm_all_parameters"], rel=1e-3 if tolerance > 1e-6 else 1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6))
def test_context_is_a_set_and_targets_are_independent(seed: int, answered: int, asked: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = published()
    x, y = (
        torch.randn(2, answered, 16, generator=generator).double(),
        torch.rand(2, answered, generator=generator).double(),
    )
    targets = torch.randn(2, asked, 16, generator=generator).double()
    means, log_stds = module(x, y, targets)
    order = torch.randperm(answered, generator=generator)
    for one, other in zip(module(x[:, order], y[:, order], targets), (means, log_stds), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    context = module.encode(x, y)
    alone = torch.cat([module.predict(context, targets[:, [place]])[0] for place in range(asked)], 1)
    torch.testing.assert_close(alone, means, rtol=1e-9, atol=1e-9)
    longer = torch.cat([x, torch.zeros(2, 3, 16).double()], 1), torch.cat([y, torch.zeros(2, 3).double()], 1)
    padding = torch.arange(answered + 3).expand(2, -1) >= answered
    torch.testing.assert_close(module(*longer, targets, padding)[0], means, rtol=1e-9, atol=1e-9)


def test_dropout_is_of_training_only_and_of_every_part() -> None:
    torch.manual_seed(0)
    module = PreferenceModule(ModuleConfig(dim_x=3, d_model=8, dim_feedforward=8, nhead=2, num_layers=1, dropout=0.4))
    x, y, targets = torch.randn(1, 5, 3), torch.rand(1, 5), torch.randn(1, 4, 3)
    calm, _ = module.eval()(x, y, targets)
    assert torch.equal(calm, module(x, y, targets)[0])
    layer, attention = module.encoder.layers[0], module.encoder.layers[0].self_attn
    parts = [(layer.dropout, "p"), (layer.dropout1, "p"), (layer.dropout2, "p"), (attention, "dropout")]
    module.train()
    for part, name in parts:
        for other, key in parts:
            setattr(other, key, 0.4 if other is part else 0.0)
        assert not torch.equal(module(x, y, targets)[0], calm), name
        assert torch.isfinite(torch.autograd.grad(module(x, y, targets)[0].sum(), module.parameters())[0]).all()
    setattr(*parts[-1], 0.0)
    torch.testing.assert_close(module(x, y, targets)[0], calm)


def test_the_softmax_is_of_a_questions_options() -> None:
    raw = torch.tensor([[1000.0, 1000.0, -5.0, 7.0], [0.0, 0.0, 0.0, 9.0]])
    questions = torch.tensor([[0, 0, 1, 1], [0, 0, 0, -1]])
    found = softmax_by_question(raw, questions)
    assert found[0].tolist() == pytest.approx([0.5, 0.5, 6.144e-6, 1], rel=1e-3)
    assert found[1].tolist() == pytest.approx([1 / 3] * 3 + [0])


def test_cross_entropy_is_least_for_the_shares_themselves() -> None:
    shares = torch.tensor([[0.2, 0.8, 0.5, 0.5]], dtype=torch.float64)
    questions = torch.tensor([[0, 0, 1, 1]])
    entropy = -(0.2 * torch.tensor(0.2).log() + 0.8 * torch.tensor(0.8).log() + torch.tensor(0.5).log()) / 2
    assert cross_entropy(shares.log(), shares, questions).item() == pytest.approx(entropy.item(), rel=1e-5)
    assert cross_entropy(torch.zeros(1, 4).double(), shares, questions) > entropy
