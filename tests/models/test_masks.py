"""Who may attend to whom, against the definition written out slowly, and against transformers' own masks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask, create_sliding_window_causal_mask

from pluralign.models.encoding import Encoded
from pluralign.models.masks import Reach, UnsupportedLayersError, attention_inputs, layer_reaches, may_attend
from pluralign.models.rows import collate

reaches = st.builds(Reach, window=st.none() | st.integers(1, 9), chunk=st.none() | st.integers(1, 9))
lengths = st.lists(
    st.tuples(st.integers(1, 8), st.lists(st.integers(1, 7), min_size=0, max_size=4)), min_size=1, max_size=3
)


def sees(query: tuple[int, int], key: tuple[int, int], reach: Reach) -> bool:
    """The definition: of two tokens as (segment, position), whether the first sees the second."""
    segment, position = query
    other_segment, other_position = key
    in_own_row = other_segment in (0, segment) and segment >= 0 and other_segment >= 0
    if segment == 0:
        in_own_row = other_segment == 0
    near = reach.window is None or position - other_position < reach.window
    together = reach.chunk is None or position // reach.chunk == other_position // reach.chunk
    return in_own_row and other_position <= position and near and together


@given(shapes=lengths, reach=reaches, side=st.sampled_from(["left", "right"]))
def test_a_token_sees_exactly_what_it_would_see_in_a_row_of_its_own(
    shapes: list[tuple[int, list[int]]], reach: Reach, side: Any
) -> None:
    names = ["a", "b", "c", "d"]
    encoded = [
        Encoded([1] * prompt, {name: [2] * length for name, length in zip(names, responses, strict=False)})
        for prompt, responses in shapes
    ]
    batch = collate(encoded, pad_id=0, branches=names, padding_side=side)
    mask = may_attend(batch.segment_ids, batch.position_ids, reach)
    rows, width = batch.input_ids.shape
    assert mask.shape == (rows, 1, width, width) and mask.dtype == torch.bool
    for row in range(rows):
        places = list(zip(batch.segment_ids[row].tolist(), batch.position_ids[row].tolist(), strict=True))
        expected = [[sees(q, k, reach) or i == j for j, k in enumerate(places)] for i, q in enumerate(places)]
        assert mask[row, 0].tolist() == expected


@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
@pytest.mark.parametrize(
    ("reach", "create", "settings"),
    [
        (Reach(), create_causal_mask, {}),
        (Reach(window=8), create_sliding_window_causal_mask, {"sliding_window": 8}),
        (Reach(chunk=8), create_chunked_causal_mask, {"attention_chunk_size": 8}),
    ],
)
def test_a_row_of_one_response_has_the_mask_that_transformers_builds(
    length: int, reach: Reach, create: Any, settings: dict[str, Any]
) -> None:
    config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, **settings)
    config._attn_implementation = "eager"
    positions = torch.arange(length)[None]
    theirs = create(
        config=config,
        inputs_embeds=torch.zeros(1, length, 8),
        attention_mask=None,
        past_key_values=None,
        position_ids=positions,
    )
    ours = may_attend((positions > length // 2).long(), positions, reach)
    assert torch.equal(ours, theirs == 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), {"full_attention": Reach()}),
        (MistralConfig(sliding_window=16), {"sliding_attention": Reach(window=16)}),
        (MistralConfig(sliding_window=None), {"full_attention": Reach()}),
        (Qwen2Config(num_hidden_layers=3, use_sliding_window=False, sliding_window=16), {"full_attention": Reach()}),
        (
            Qwen2Config(num_hidden_layers=3, use_sliding_window=True, sliding_window=16, max_window_layers=1),
            {"full_attention": Reach(), "sliding_attention": Reach(window=16)},
        ),
        (SimpleNamespace(use_sliding_window=False, sliding_window=16), {"full_attention": Reach()}),
        (SimpleNamespace(attention_chunk_size=16), {"chunked_attention": Reach(chunk=16)}),
        (
            SimpleNamespace(layer_types=["chunked_attention", "full_attention"], attention_chunk_size=16),
            {"chunked_attention": Reach(chunk=16), "full_attention": Reach()},
        ),
    ],
)
def test_the_reach_of_layers_is_read_as_transformers_reads_it(config: Any, expected: dict[str, Reach]) -> None:
    assert layer_reaches(config) == expected


def test_layers_that_carry_a_state_are_named() -> None:
    with pytest.raises(UnsupportedLayersError, match="linear_attention"):
        layer_reaches(SimpleNamespace(layer_types=["full_attention", "linear_attention"]))


def test_an_attention_kernel_that_takes_no_mask_is_named() -> None:
    config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    config._attn_implementation = "flash_attention_2"
    batch = collate([Encoded([1], {"a": [2]})], pad_id=0, branches=("a",))
    with pytest.raises(UnsupportedLayersError, match="flash_attention_2"):
        attention_inputs(SimpleNamespace(config=config), batch)  # type: ignore[arg-type]
