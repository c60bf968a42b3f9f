"""Log-probs from hidden states against the logits' own, and what is never in memory while they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pluralign.models import head as head_module
from pluralign.models import logprobs
from pluralign.models.encoding import Encoded
from pluralign.models.head import LogitMap, head_dtype, head_logps, is_plain_head
from pluralign.models.logprobs import branch_logps, response_logits, response_logps, token_logps
from pluralign.models.rows import ResponseBatch, collate

POSITIONS, HIDDEN, VOCABULARY = 40, 8, 512
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def some_head(dtype: torch.dtype, *, bias: bool, trained: bool) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head, hidden states, labels, and the gradient of a loss by the log-probs."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    head.requires_grad_(trained)
    hidden = torch.randn(POSITIONS, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    grad = torch.randn(POSITIONS, generator=generator, dtype=torch.float64)
    return head, hidden, labels, grad.to(torch.promote_types(dtype, torch.float32))


def mapped(logits: Tensor, logit_map: LogitMap) -> Tensor:
    logits = logits * logit_map.scale
    return logits if logit_map.softcap is None else torch.tanh(logits / logit_map.softcap) * logit_map.softcap


def gradients(head: nn.Linear, hidden: Tensor, logps: Tensor, grad: Tensor) -> list[Tensor]:
    wanted = [tensor for tensor in (hidden, *head.parameters()) if tensor.requires_grad]
    return list(torch.autograd.grad(logps, wanted, grad))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("elements", [1, 3000, 2**22], ids=["a column at a time", "some columns", "one block"])
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.25), LogitMap(softcap=3.0), LogitMap(1.5, 2.0)])
@pytest.mark.parametrize(("bias", "trained"), [(False, False), (True, False), (False, True), (True, True)])
def test_values_and_gradients_are_those_of_the_logits(
    dtype: torch.dtype,
    tolerance: float,
    elements: int,
    logit_map: LogitMap,
    bias: bool,
    trained: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(head_module.CHUNK_ELEMENTS, "cpu", elements)
    head, hidden, labels, grad = some_head(dtype, bias=bias, trained=trained)
    expected = mapped(head(hidden), logit_map).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    logps = head_logps(head, hidden, labels, logit_map, dtype)
    assert logps.dtype == dtype
    assert (logps - expected).abs().max() <= tolerance * expected.abs().max()
    for have, want in zip(gradients(head, hidden, logps, grad), gradients(head, hidden, expected, grad), strict=True):
        assert have.dtype == want.dtype
        assert (have - want).abs().max() <= tolerance * want.abs().max()
    with torch.no_grad():
        assert torch.equal(head_logps(head, hidden, labels, logit_map, dtype), logps)


@pytest.mark.parametrize("elements", [3000, 2**22])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_as_close_to_the_truth_as_the_logits_path(
    elements: int, trained: bool, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head_module.CHUNK_ELEMENTS, "cpu", elements)
    head, hidden, labels, grad = some_head(torch.bfloat16, bias=False, trained=trained)
    exact_head, exact_hidden = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64), hidden.detach().double()
    exact_head.load_state_dict({"weight": head.weight.double()})
    exact_head.requires_grad_(trained)
    exact_hidden.requires_grad_()
    exact = exact_head(exact_hidden).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    truth = gradients(exact_head, exact_hidden, exact, grad.double())
    if autocast:
        head, hidden = head.float(), hidden.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plain = token_logps(head(hidden), labels)
        ours = head_logps(head, hidden, labels, LogitMap(), head_dtype(head, hidden))
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() <= 1.1 * (plain - exact).norm()
    for have, other, want in zip(
        gradients(head, hidden, ours, grad), gradients(head, hidden, plain, grad), truth, strict=True
    ):
        assert have.dtype == other.dtype
        assert (have - want).norm() <= 1.2 * (other - want).norm()


def test_a_label_that_is_all_but_certain_has_an_exact_gradient() -> None:
    _, hidden, labels, _ = some_head(torch.float32, bias=False, trained=False)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
        hidden.copy_(head.weight[labels] * 16 / head.weight[labels].norm(dim=1, keepdim=True))
    weight, exact_hidden = head.weight.double(), hidden.detach().double().requires_grad_()
    exact = (exact_hidden @ weight.t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    (want,) = torch.autograd.grad(exact.sum(), exact_hidden)
    (have,) = torch.autograd.grad(head_logps(head, hidden, labels, LogitMap(), torch.float32).sum(), hidden)
    # A float32 probability nearest to 1 is 6e-8 away from it: as a difference, 1 - p would be a digit or none.
    certain = (exact > -1e-5) & (exact < -1e-12)
    assert bool(certain.any())
    assert ((have - want).norm(dim=1) / want.norm(dim=1))[certain].max() < 1e-4


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def wide_model(*, tied: bool) -> Any:
    torch.manual_seed(0)
    config = tf.LlamaConfig(**{**SIZES, "vocab_size": 4096, "hidden_size": 8}, head_dim=2, tie_word_embeddings=tied)
    return tf.LlamaForCausalLM(config)


def a_batch(vocabulary: int = 96) -> ResponseBatch:
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(vocabulary, (length,), generator=generator).tolist()

    encoded = [Encoded(draw(4), {"chosen": draw(12), "rejected": draw(9)}), Encoded(draw(7), {"chosen": draw(13)})]
    return collate(encoded, pad_id=0, branches=("chosen", "rejected"))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_nothing_of_positions_times_vocabulary_is_ever_made(
    trained: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head_module.CHUNK_ELEMENTS, "cpu", 8192)
    model, batch = wide_model(tied=tied).requires_grad_(trained), a_batch(4096)
    model.model.layers.requires_grad_()
    all_at_once = len(batch.labels) * 4096
    with Largest() as ours:
        sum(branch_logps(model, batch).values()).sum().backward()  # type: ignore[union-attr]
    # The weights' own gradient is the largest there is.
    assert ours.elements <= 4096 * 8 < all_at_once / 4
    with Largest() as logits:
        token_logps(response_logits(model, batch), batch.labels).sum().backward()
    assert logits.elements >= all_at_once


def test_a_frozen_head_keeps_no_more_than_the_hidden_states_size() -> None:
    head, hidden, labels, _ = some_head(torch.float32, bias=False, trained=False)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        head_logps(head, hidden, labels, LogitMap(), torch.float32)
    assert kept == [hidden.numel()]


MODELS: dict[str, tuple[Callable[[], Any], LogitMap]] = {
    "llama": (lambda: tf.LlamaConfig(**SIZES), LogitMap()),
    "gemma2": (lambda: tf.Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0), LogitMap(softcap=3.0)),
    "granite": (lambda: tf.GraniteConfig(**SIZES, logits_scaling=4.0), LogitMap(0.25)),
    "hyperclovax": (lambda: tf.HyperCLOVAXConfig(**SIZES, logits_scaling=4.0), LogitMap(4.0)),
    "cohere": (lambda: tf.CohereConfig(**SIZES, logit_scale=0.1), LogitMap(0.1)),
    "minicpm3": (
        lambda: tf.MiniCPM3Config(
            **{**SIZES, "num_key_value_heads": 4},
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
        ),
        LogitMap(),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_does_to_its_logits_is_found_out(name: str, recwarn: Any) -> None:
    config, logit_map = MODELS[name]
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config()).eval()
    batch = a_batch()
    with torch.no_grad():
        expected = token_logps(response_logits(model, batch), batch.labels)
        for _ in range(2):
            torch.testing.assert_close(response_logps(model, batch), expected, rtol=1e-5, atol=1e-5)
    assert logprobs._LOGIT_MAPS[model][1] == logit_map
    assert not [warning for warning in recwarn if "logits" in str(warning.message)]


def test_a_changed_configuration_is_noticed() -> None:
    torch.manual_seed(0)
    model: Any = tf.AutoModelForCausalLM.from_config(MODELS["gemma2"][0]()).eval()
    batch = a_batch()
    with torch.no_grad():
        for softcap in (3.0, 1.0, None):
            model.config.final_logit_softcapping = softcap
            expected = token_logps(response_logits(model, batch), batch.labels)
            torch.testing.assert_close(response_logps(model, batch), expected, rtol=1e-5, atol=1e-5)


class Cubing(tf.LlamaForCausalLM):
    """Does something to its logits that no configuration tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits**3
        return output


def test_a_model_with_logits_of_its_own_keeps_them_and_says_so_once(recwarn: Any) -> None:
    torch.manual_seed(0)
    model = Cubing(tf.LlamaConfig(**SIZES)).eval()
    batch = a_batch()
    expected = token_logps(response_logits(model, batch), batch.labels)
    (want,) = torch.autograd.grad(expected.sum(), model.lm_head.weight)
    for _ in range(3):
        logps = response_logps(model, batch)
        (have,) = torch.autograd.grad(logps.sum(), model.lm_head.weight)
        assert torch.equal(logps, expected) and torch.equal(have, want)
    said = [str(warning.message) for warning in recwarn if "unknown to its logits" in str(warning.message)]
    assert len(said) == 1 and "llama" in said[0]


class Sharded(Tensor):
    """As FSDP and quantization replace weights: by a tensor of another kind."""


class Other(nn.Linear):
    """As quantized layers are: a linear layer of another kind."""


def test_only_a_plain_head_is_left_out_of_the_forward() -> None:
    assert is_plain_head(nn.Linear(4, 5)) and is_plain_head(nn.Linear(4, 5, bias=False, dtype=torch.bfloat16))
    sharded, emptied, hooked, replaced = (nn.Linear(4, 5) for _ in range(4))
    sharded.weight = nn.Parameter(torch.randn(5, 4).as_subclass(Sharded))
    emptied.weight.data = torch.empty(0)
    hooked.register_forward_hook(lambda module, inputs, output: output)
    replaced.forward = lambda hidden: hidden  # type: ignore[method-assign, assignment]
    deepspeed = nn.Linear(4, 5)
    deepspeed.weight.ds_id = 1  # type: ignore[attr-defined]
    for head in (sharded, emptied, hooked, replaced, deepspeed, Other(4, 5), nn.Linear(4, 5, device="meta")):
        assert not is_plain_head(head)


@pytest.mark.parametrize("kind", ["lora", "modules_to_save"])
def test_an_adapted_head_takes_the_logits_path(kind: str) -> None:
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))
    targets = {"target_modules": ["q_proj", "lm_head"]} if kind == "lora" else {"modules_to_save": ["lm_head"]}
    policy = get_peft_model(model, LoraConfig(init_lora_weights=False, **targets)).eval()
    batch = a_batch()
    assert not is_plain_head(model.get_output_embeddings())
    expected = token_logps(response_logits(policy, batch), batch.labels)
    assert torch.equal(response_logps(policy, batch), expected)


def test_the_models_forwards_are_its_own_again_also_after_a_failure() -> None:
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)).eval()
    batch = a_batch()
    response_logps(model, batch)
    batch.input_ids[0, 0] = 10_000
    with pytest.raises(IndexError):
        response_logps(model, batch)
    assert "forward" not in vars(model) and "forward" not in vars(model.lm_head)
    own = model.forward
    model.forward = own
    batch.input_ids[0, 0] = 1
    response_logps(model, batch)
    assert vars(model)["forward"] is own
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 96)
