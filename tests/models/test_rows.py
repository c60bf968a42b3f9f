"""The batch, against a description of it that shares no code with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralign.models.encoding import Encoded
from pluralign.models.rows import LENGTH_STEP, Layout, PaddingSide, collate

PAD = 99
BRANCHES = ("chosen", "rejected", "base")

tokens = st.integers(0, 50)
example = st.builds(
    Encoded,
    prompt_ids=st.lists(tokens, min_size=1, max_size=7),
    response_ids=st.dictionaries(st.sampled_from([*BRANCHES, "other"]), st.lists(tokens, min_size=1, max_size=6)),
)
layouts = st.sampled_from(["shared", "separate"])
sides = st.sampled_from(["left", "right"])


@given(encoded=st.lists(example, min_size=1, max_size=5), layout=layouts, side=sides)
def test_every_response_token_is_predicted_once_by_what_comes_before_it(
    encoded: list[Encoded], layout: Layout, side: PaddingSide
) -> None:
    batch = collate(encoded, pad_id=PAD, branches=BRANCHES, layout=layout, padding_side=side)
    width = batch.input_ids.shape[1]
    expected = [
        (b * 3 + k, time, token)
        for b, one in enumerate(encoded)
        for k, name in enumerate(BRANCHES)
        for time, token in enumerate(one.response_ids.get(name, []))
    ]
    assert len(expected) == len(batch.labels) == len(batch.owner) == len(batch.predict_at)
    for (owner, time, token), predictor, label, whose in zip(
        expected, batch.predict_at.tolist(), batch.labels.tolist(), batch.owner.tolist(), strict=True
    ):
        one = encoded[owner // 3]
        row, column = divmod(predictor, width)
        assert (label, whose) == (token, owner)
        # The predictor holds the token before this one in a row of its own, at its position there.
        own_row = one.prompt_ids + one.response_ids[BRANCHES[owner % 3]]
        assert batch.position_ids[row, column] == len(one.prompt_ids) + time - 1
        assert batch.input_ids[row, column] == own_row[len(one.prompt_ids) + time - 1]
        assert batch.segment_ids[row, column] == (0 if time == 0 else owner % 3 + 1)
        if layout == "shared":
            assert row == owner // 3


@given(encoded=st.lists(example, min_size=1, max_size=5), layout=layouts, side=sides)
def test_every_row_holds_its_prompt_and_responses_and_nothing_else(
    encoded: list[Encoded], layout: Layout, side: PaddingSide
) -> None:
    batch = collate(encoded, pad_id=PAD, branches=BRANCHES, layout=layout, padding_side=side)
    assert batch.lengths.tolist() == [[len(one.response_ids.get(name, [])) for name in BRANCHES] for one in encoded]
    contents: list[dict[int, tuple[list[int], list[int]]]] = []
    for one in encoded:
        prompt = {0: (one.prompt_ids, list(range(len(one.prompt_ids))))}
        responses = {
            k + 1: (ids, list(range(len(one.prompt_ids), len(one.prompt_ids) + len(ids))))
            for k, name in enumerate(BRANCHES)
            if (ids := one.response_ids.get(name))
        }
        if layout == "shared" or not responses:
            contents.append(prompt | responses)
        else:
            contents += [prompt | {k: response} for k, response in responses.items()]
    assert len(batch.input_ids) == len(contents)
    for row, content in enumerate(contents):
        segments = batch.segment_ids[row]
        padded = segments == -1
        length = int((~padded).sum())
        edge = padded[:-length] if side == "left" else padded[length:]
        assert bool(edge.all())
        assert bool((batch.input_ids[row][padded] == PAD).all()) and bool((batch.position_ids[row][padded] == 0).all())
        assert set(segments[~padded].tolist()) == set(content)
        for number, (ids, positions) in content.items():
            assert batch.input_ids[row][segments == number].tolist() == ids
            assert batch.position_ids[row][segments == number].tolist() == positions
    # Columns of padding throughout are there only to make the width of unequal rows a multiple.
    padding = batch.segment_ids == -1
    empty = int(padding.all(0).sum())
    assert empty < LENGTH_STEP and (not empty or batch.input_ids.shape[1] % LENGTH_STEP == 0)
    assert not empty or len(set((~padding).sum(1).tolist())) > 1


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate([Encoded([1], {"chosen": [2]})], pad_id=0, branches=("chosen",))
    moved = batch.to("meta")
    tensors = [name for name, value in vars(moved).items() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7 and all(getattr(moved, name).device.type == "meta" for name in tensors)
    assert (moved.branches, moved.layout) == (batch.branches, batch.layout)
    assert batch.branch_lengths()["chosen"].tolist() == [1]


@pytest.mark.parametrize("encoded", [[], [Encoded([], {"chosen": [1]})]])
def test_nothing_to_predict_from_is_refused(encoded: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"at least one example|empty prompt"):
        collate(encoded, pad_id=0, branches=("chosen",))
