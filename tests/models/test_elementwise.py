"""Norms and rotary embeddings against the models' own code: the same numbers, and other models left as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pluralign.models import elementwise
from pluralign.models.elementwise import quicken, rms_norm, turn

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NORMS_AND_TURNS = {
    "llama": (5, 1),
    "qwen3": (9, 1),
    "gemma2": (9, 1),
    "olmo2": (9, 1),
    "gpt2": (0, 0),
    "cohere": (0, 0),
}
"""How many norms of a family are RMS norms, and how many rotary embeddings pair halves (Cohere pairs neighbours)."""


def tiny(family: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZES), attn_implementation="eager")
    for parameter in model.parameters():
        # Norms that are not all ones.
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def run(model: Any, *, bf16: bool = False) -> list[Tensor]:
    """Logits, and the gradient by every weight."""
    ids = torch.arange(2, 26).view(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = model(input_ids=ids).logits
    return [logits, *torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))]


@pytest.mark.parametrize("family", NORMS_AND_TURNS)
def test_a_quickened_model_gives_the_same(family: str) -> None:
    model = tiny(family)
    want, loose = run(model), run(model, bf16=True)
    quicken(model)
    norms = [module for module in model.modules() if "forward" in vars(module)]
    turning = [module for module in model.modules() if module._forward_hooks]
    assert (len(norms), len(turning)) == NORMS_AND_TURNS[family]
    for have, one in zip(run(model), want, strict=True):
        torch.testing.assert_close(have, one, rtol=1e-4, atol=1e-5 * one.abs().max().item())
    for have, one in zip(run(model, bf16=True), loose, strict=True):
        assert (have - one).norm() <= 0.03 * one.norm()


def test_other_dtypes_and_other_models_of_the_class_keep_their_own_code() -> None:
    plain, model = tiny("llama"), tiny("llama")
    want, wide = run(plain), run(copy.deepcopy(plain).double())
    quicken(model)
    assert all(map(torch.equal, run(plain), want))
    assert all(map(torch.equal, run(model.double()), wide))


def test_a_copy_has_norms_of_its_own() -> None:
    model = tiny("llama")
    quicken(model)
    other = copy.deepcopy(model)
    before = run(model)[0]
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    assert torch.equal(run(model)[0], before)
    torch.testing.assert_close(run(other)[0], 2 * before)


def test_generation_goes_on_from_turned_keys() -> None:
    model = tiny("llama")
    ids = torch.arange(2, 26).view(2, 12)
    want = model.generate(ids, max_new_tokens=8, do_sample=False)
    quicken(model)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), want)


def test_what_is_no_rms_norm_is_left_alone() -> None:
    class Odd(nn.Module):
        """Looks like one."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, hidden: Tensor) -> Tensor:
            return self.weight * hidden / (hidden.abs().mean(-1, keepdim=True) + self.variance_epsilon)

    model = nn.Sequential(Odd(), nn.LayerNorm(8), nn.Linear(8, 8), nn.RMSNorm(8, eps=1e-5))
    quicken(model)
    assert ["forward" in vars(module) for module in model] == [False, False, False, True]


@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 5),
    width=st.integers(1, 9),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    trained=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_norm_and_its_gradients(rows: int, length: int, width: int, scale: float, trained: bool) -> None:
    generator = torch.Generator().manual_seed(rows + 10 * length + 100 * width)
    hidden = (scale * torch.randn(rows, length, width, generator=generator)).requires_grad_()
    weight = torch.randn(width, generator=generator).requires_grad_(trained)
    grad = torch.randn(rows, length, width, generator=generator)
    by = [hidden, weight] if trained else [hidden]
    have = rms_norm(hidden, weight, 1e-6)
    found = torch.autograd.grad(have, by, grad)

    exact = [one.detach().double().requires_grad_() for one in by]
    wide = exact[0] * (exact[0].square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    want = wide * (exact[1] if trained else weight.double())
    torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, torch.autograd.grad(want, exact, grad.double()), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-12)


@pytest.mark.parametrize("chunk", [1, elementwise.CHUNK_ELEMENTS])
@pytest.mark.parametrize("shared", [True, False], ids=["one cosine", "a cosine a row"])
def test_a_turn_and_its_gradient(chunk: int, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 5, 2, 6, generator=generator).transpose(1, 2).requires_grad_()
    cos, sin = torch.randn(2, 1 if shared else 3, 1, 5, 6, generator=generator)
    first, second = states.chunk(2, dim=-1)
    want = states * cos + torch.cat((-second, first), dim=-1) * sin
    have = turn(states, cos, sin * torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]), torch.float32)
    torch.testing.assert_close(have, want)
    grad = torch.randn(have.shape, generator=generator)
    torch.testing.assert_close(torch.autograd.grad(have, states, grad), torch.autograd.grad(want, states, grad))
