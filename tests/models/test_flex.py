"""Block masks against dense ones, packed rows against padded ones; on a GPU, the kernel against `sdpa`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention

from pluralign.models.encoding import Encoded
from pluralign.models.flex import BLOCK, block_mask, pack
from pluralign.models.logprobs import branch_logps, response_logps
from pluralign.models.masks import FLEX, Reach, UnsupportedLayersError, attention_inputs, mask_mod, may_attend
from pluralign.models.rows import PADDING, ResponseBatch, collate

NAMES = ("a", "b", "c")
PAD = 0
WINDOW = 8
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
MIXED = {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SIZES),
    "mistral": lambda: tf.MistralConfig(**SIZES, sliding_window=WINDOW),
    "qwen3": lambda: tf.Qwen3Config(
        **SIZES, head_dim=16, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "gemma2": lambda: tf.Gemma2Config(
        **SIZES, **MIXED, query_pre_attn_scalar=16, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(**SIZES, **MIXED, query_pre_attn_scalar=16),
}


def build(name: str, kernel: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=kernel).to(**settings).eval()


def some_rows(seed: int = 0, count: int = 5) -> ResponseBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(most: int) -> list[int]:
        length = int(torch.randint(1, most, (), generator=generator))
        return torch.randint(3, 96, (length,), generator=generator).tolist()

    encoded = [Encoded(draw(90), {name: draw(60) for name in NAMES}) for _ in range(count)]
    return collate(encoded, pad_id=PAD, branches=NAMES)


examples = st.lists(
    st.builds(
        Encoded,
        prompt_ids=st.lists(st.integers(1, 90), min_size=1, max_size=12),
        response_ids=st.dictionaries(st.sampled_from(NAMES), st.lists(st.integers(1, 90), min_size=1, max_size=9)),
    ),
    min_size=1,
    max_size=5,
)
reaches = st.builds(Reach, window=st.none() | st.integers(1, 9), chunk=st.none() | st.integers(1, 9))


@given(encoded=examples, reach=reaches, side=st.sampled_from(["left", "right"]), packed=st.booleans())
@settings(max_examples=25)
def test_the_mask_function_says_of_two_positions_what_the_dense_mask_says(
    encoded: list[Encoded], reach: Reach, side: Any, packed: bool
) -> None:
    batch = collate(encoded, pad_id=PAD, branches=NAMES, padding_side=side)
    batch = pack(batch, 256, pad_id=PAD) if packed else batch
    rows, width = batch.input_ids.shape
    of_batch = batch.segment_ids, batch.position_ids, reach, batch.row_ids
    dense = may_attend(*of_batch)
    assert torch.equal(create_mask(mask_mod(*of_batch), rows, None, width, width, device="cpu"), dense)
    blocks = block_mask(mask_mod(*of_batch), batch.segment_ids)
    assert blocks.shape == (rows, 1, width, width)
    filled = torch.nn.functional.pad(dense, (0, -width % BLOCK, 0, -width % BLOCK))
    filled = filled.unflatten(2, (-1, BLOCK)).unflatten(4, (-1, BLOCK)).any(dim=5).any(dim=3)
    assert torch.equal(blocks.to_dense().bool(), filled)


@given(encoded=examples, side=st.sampled_from(["left", "right"]), tokens=st.integers(0, 600))
def test_packed_rows_hold_what_the_rows_held(encoded: list[Encoded], side: Any, tokens: int) -> None:
    batch = collate(encoded, pad_id=PAD, branches=NAMES, padding_side=side)
    packed = pack(batch, tokens, pad_id=PAD)
    assert packed.row_ids is not None
    width = packed.input_ids.shape[1]
    assert width % BLOCK == 0 and width <= max(tokens, BLOCK)
    assert all(len(set(block.tolist())) == 1 for block in packed.row_ids.view(-1, BLOCK))
    for row in range(len(batch.input_ids)):
        there, here = packed.row_ids == row, batch.segment_ids[row] != PADDING
        assert len(there.any(dim=1).nonzero()) == 1, "one packed row each"
        there &= packed.segment_ids != PADDING
        for name in ("input_ids", "position_ids", "segment_ids"):
            assert torch.equal(getattr(packed, name)[there], getattr(batch, name)[row][here])
    empty = packed.segment_ids == PADDING
    assert int((~empty).sum()) == int((batch.segment_ids != PADDING).sum())
    assert bool((packed.input_ids[empty] == PAD).all()) and bool((packed.position_ids[empty] == 0).all())
    for name in ("labels", "owner", "lengths"):
        assert torch.equal(getattr(packed, name), getattr(batch, name))
    for before, after in zip(batch.predict_at.tolist(), packed.predict_at.tolist(), strict=True):
        assert packed.row_ids.flatten()[after] == before // batch.input_ids.shape[1]
        for name in ("input_ids", "position_ids", "segment_ids"):
            assert getattr(packed, name).flatten()[after] == getattr(batch, name).flatten()[before]


def test_packing_fills_rows_up_to_the_budget() -> None:
    batch = collate(
        [Encoded([1] * length, {"a": [2]}) for length in (300, 100, 100, 20, 250)], pad_id=0, branches=NAMES
    )
    packed = pack(batch, 512, pad_id=PAD)
    assert packed.input_ids.shape == (2, 512) and packed.row_ids is not None
    assert [row[::BLOCK].tolist() for row in packed.row_ids] == [[0, 0, 0, 1], [4, 4, 2, 3]]
    assert pack(batch, 0, pad_id=PAD).input_ids.shape == (3, 384)
    for wrong in (packed, collate([Encoded([1], {"a": [2]})], pad_id=0, branches=NAMES, layout="separate")):
        with pytest.raises(ValueError, match="only shared rows"):
            pack(wrong, 512, pad_id=PAD)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_packed_rows_have_the_log_probs_and_gradients_of_rows_of_their_own(name: str) -> None:
    model = build(name, "eager", dtype=torch.float64)
    found = []
    for batch in (some_rows(), pack(some_rows(), 512, pad_id=PAD)):
        logps = branch_logps(model, batch)
        loss = (logps["a"] - 0.5 * logps["b"] + 0.1 * logps["c"]).sum()
        found.append([*logps.values(), *torch.autograd.grad(loss, list(model.parameters()))])
    for have, want in zip(found[1], found[0], strict=True):
        # The eager attention of transformers has its softmax in float32 whatever the model.
        assert (have - want).abs().max() <= 1e-5 * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_models_flex_attention_takes_the_block_masks(
    name: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uncompiled(query: Tensor, key: Tensor, value: Tensor, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention(query, key, value, **kwargs)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", uncompiled)
    batch = pack(some_rows(), 512, pad_id=PAD) if packed else some_rows()
    with torch.no_grad():
        expected = response_logps(build(name, "eager"), batch)
        assert (response_logps(build(name, FLEX), batch) - expected).abs().max() < 1e-4


def test_flex_attention_on_a_cpu_is_not_trained_with() -> None:
    with pytest.raises(UnsupportedLayersError, match="no backward pass on a CPU"):
        attention_inputs(build("llama", FLEX), some_rows())


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernel_has_the_log_probs_and_gradients_of_dense_masks(name: str, packed: bool) -> None:
    found = []
    for kernel in ("eager", FLEX):
        model = build(name, kernel, device="cuda")
        batch = pack(some_rows(), 512, pad_id=PAD) if packed and kernel == FLEX else some_rows()
        logps = branch_logps(model, batch.to("cuda"))
        loss = (logps["a"] - 0.5 * logps["b"] + 0.1 * logps["c"]).sum()
        found.append([*logps.values(), *torch.autograd.grad(loss, list(model.parameters()))])
    for have, want in zip(found[1], found[0], strict=True):
        assert (have - want).abs().max() <= 2e-3 * max(1.0, want.abs().max().item())
