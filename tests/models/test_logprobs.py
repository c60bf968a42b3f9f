"""Log-probabilities of tokens against torch's own, and of responses against the golden model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pluralign.models import logprobs
from pluralign.models.encoding import Encoded
from pluralign.models.logprobs import branch_logps, response_logits, sum_by_branch, token_logps
from pluralign.models.masks import causal_lm
from pluralign.models.rows import collate

GOLDEN = Path(__file__).parent.parent / "golden"


def tiny_llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


EXAMPLES = [
    Encoded([3, 4, 5], {"chosen": [6, 7], "rejected": [8]}),
    Encoded([9], {"rejected": [10, 11, 12]}),
    Encoded([13, 14], {}),
]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-6), (torch.float16, 2e-6)],
)
@pytest.mark.parametrize("chunk", [1, 50, 10**6])
def test_token_logps_are_a_float32_log_softmax_whatever_the_chunks(
    dtype: torch.dtype, tolerance: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(13, 37, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(37, (13,), generator=generator)
    weights = torch.randn(13, generator=generator, dtype=torch.float64)
    oracle = logits.detach().double().requires_grad_()
    expected = oracle.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    (expected * weights).sum().backward()
    logps = token_logps(logits, labels)
    (logps * weights.to(logps.dtype)).sum().backward()
    assert logps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (logps.double() - expected).abs().max() < tolerance * 10
    assert logits.grad is not None and oracle.grad is not None and logits.grad.dtype == dtype
    # The gradient has the precision of the logits' dtype: half a unit in the last place, of values below 4.
    bound = max(tolerance, 4 * torch.finfo(dtype).eps) if dtype != torch.float64 else tolerance
    assert (logits.grad.double() - oracle.grad).abs().max() < bound


def test_token_logps_pass_gradcheck() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda values: token_logps(values, labels), logits)


@given(rows=st.integers(1, 40), vocabulary=st.integers(1, 30), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_token_logps_of_very_likely_and_unlikely_tokens_are_torchs(rows: int, vocabulary: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 1000 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64).float()
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    expected = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(token_logps(logits, labels), expected)


def test_the_backward_keeps_the_logits_as_they_are_and_no_copy_in_float32() -> None:
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    logits = torch.randn(32, 256, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logps(logits, torch.zeros(32, dtype=torch.long))
    large = [tensor for tensor in kept if tensor.numel() >= logits.numel()]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
    assert sum(tensor.numel() for tensor in kept if tensor.dtype == torch.float32) == 2 * 32


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_the_head_runs_at_predicting_positions_only(layout: Any) -> None:
    model = tiny_llama()
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    batch = collate(EXAMPLES, pad_id=0, branches=("chosen", "rejected"), layout=layout)
    logits = response_logits(model, batch)
    assert logits.shape == (6, 64) and shapes == [(1, 6, 64)]


def test_no_hook_stays_behind_even_when_the_forward_fails() -> None:
    model = tiny_llama()
    batch = collate(EXAMPLES, pad_id=0, branches=("chosen", "rejected"))
    response_logits(model, batch)
    batch.input_ids[0, 0] = 10_000
    with pytest.raises(IndexError):
        response_logits(model, batch)
    assert not model.lm_head._forward_pre_hooks
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 64)


def test_rows_without_any_response_have_zero_log_probs_that_a_backward_passes() -> None:
    model = tiny_llama()
    for layout in ("shared", "separate"):
        batch = collate(EXAMPLES[2:], pad_id=0, branches=("chosen", "rejected"), layout=layout)  # type: ignore[arg-type]
        logps = branch_logps(model, batch)
        assert logps["chosen"].tolist() == logps["rejected"].tolist() == [0.0]
        (logps["chosen"] + logps["rejected"]).sum().backward()


def test_sums_by_branch_are_differentiable_and_zero_where_there_is_none() -> None:
    batch = collate(EXAMPLES, pad_id=0, branches=("chosen", "rejected"))
    values = torch.arange(1.0, 7.0, dtype=torch.float64, requires_grad=True)
    sums = sum_by_branch(values, batch)
    assert {name: value.tolist() for name, value in sums.items()} == {"chosen": [3, 0, 0], "rejected": [3, 15, 0]}
    assert torch.autograd.gradcheck(lambda v: tuple(sum_by_branch(v, batch).values()), values)


class Wrapped(nn.Module):
    """As DDP and FSDP wrap: `module`, with work of their own in the forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_wrappers_are_called_and_change_nothing() -> None:
    model = tiny_llama()
    batch = collate(EXAMPLES, pad_id=0, branches=("chosen", "rejected"))
    expected = response_logits(model, batch)
    wrapped = Wrapped(PeftModelLike(model))
    assert causal_lm(wrapped) is model
    assert torch.equal(response_logits(wrapped, batch), expected)
    assert wrapped.calls == 1


class PeftModelLike(Wrapped):
    """As PEFT wraps: `get_base_model`."""

    def get_base_model(self) -> nn.Module:
        return self.module


def test_mixed_precision_keeps_sums_in_float32() -> None:
    model = tiny_llama()
    batch = collate(EXAMPLES, pad_id=0, branches=("chosen", "rejected"))
    with torch.no_grad():
        exact = branch_logps(model, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert response_logits(model, batch).dtype == torch.bfloat16
            mixed = branch_logps(model, batch)
    for name in exact:
        assert mixed[name].dtype == torch.float32
        assert (mixed[name] - exact[name]).abs().max() < 0.3


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("who", ["base", "base_plus_adapter"])
def test_the_golden_log_probs(layout: Any, side: Any, who: str) -> None:
    golden = json.loads((GOLDEN / "dpo_trajectory.json").read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(GOLDEN / "dpo_trajectory")
    if who == "base_plus_adapter":
        model = PeftModel.from_pretrained(model, GOLDEN / "dpo_trajectory" / "adapter")
    encoded = [
        Encoded(ids["prompt_ids"], {"chosen": ids["chosen_ids"], "rejected": ids["rejected_ids"]})
        for ids in golden["token_ids"]
    ]
    batch = collate(encoded, pad_id=0, branches=("chosen", "rejected"), layout=layout, padding_side=side)
    with torch.no_grad():
        logps = branch_logps(model.eval(), batch)
    for name in ("chosen", "rejected"):
        expected = torch.tensor(golden["float64_logps"][who][name], dtype=torch.float64)
        assert (logps[name].double() - expected).abs().max() < 1e-4
