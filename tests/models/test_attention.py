"""The blocked kernel against torch's own, on shared rows and on any causal mask, forwards and backwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pluralign.models import attention
from pluralign.models.attention import BLOCKED, blocked_attention, cut_rows
from pluralign.models.encoding import Encoded
from pluralign.models.logprobs import branch_logps
from pluralign.models.masks import Reach, attention_inputs, may_attend
from pluralign.models.rows import PADDING, ResponseBatch, collate

NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True, params=[0, attention.PIECE_COST, 2**40], ids=["in pieces", "as it is", "whole"])
def piece_cost(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in pieces, rows under the whole mask, and whichever is cheaper are the same attention."""
    monkeypatch.setattr(attention, "PIECE_COST", request.param)
    if not request.param:
        monkeypatch.setattr(attention, "POSITION_COST", 0)


def rows(shapes: list[tuple[int, list[int]]], side: Any = "right") -> ResponseBatch:
    encoded = [
        Encoded([1] * prompt, {name: [2] * length for name, length in zip(NAMES, responses, strict=False)})
        for prompt, responses in shapes
    ]
    return collate(encoded, pad_id=0, branches=NAMES, padding_side=side)


def inputs(batch: ResponseBatch, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys, values (of another width) and the gradient by what comes out."""
    size, width = batch.input_ids.shape
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    parts = [draw(size, width, count, depth) for count, depth in ((heads, 8), (groups, 8), (groups, 6))]
    grad = draw(size, width, heads, 6) * (batch.segment_ids != PADDING)[:, :, None, None]
    return [*(part.transpose(1, 2).requires_grad_() for part in parts), grad]


def run(kernel: Any, tensors: list[Tensor], mask: Tensor | None, **settings: Any) -> list[Tensor]:
    """What comes out, and the gradients by queries, keys and values."""
    *parts, grad = tensors
    module = SimpleNamespace(num_key_value_groups=parts[0].shape[1] // parts[1].shape[1])
    out, weights = kernel(module, *parts, mask, **settings)
    assert weights is None
    return [out, *torch.autograd.grad(out, parts, grad.to(out.dtype))]


def assert_same(have: list[Tensor], want: list[Tensor], batch: ResponseBatch, tolerance: float = 1e-12) -> None:
    present = batch.segment_ids != PADDING
    for index, (one, other) in enumerate(zip(have, want, strict=True)):
        if index:
            one, other = one.transpose(1, 2), other.transpose(1, 2)
        assert (one[present] - other[present]).abs().max() <= tolerance * other.abs().max()
        assert bool(one.isfinite().all())


shapes = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 7), min_size=0, max_size=3)), min_size=1, max_size=4
).filter(lambda found: max(prompt + sum(responses) for prompt, responses in found) > 1)


@given(
    shapes=shapes,
    side=st.sampled_from(["left", "right"]),
    reach=st.builds(Reach, window=st.none() | st.integers(1, 20), chunk=st.none() | st.integers(1, 20)),
    block=st.sampled_from([1, 3, 128]),
    groups=st.sampled_from([1, 2, 4]),
    kept=st.sampled_from([0, 2**22]),
)
@settings(max_examples=80)
def test_shared_rows_are_attended_to_as_the_mask_says(
    shapes: list[tuple[int, list[int]]], side: Any, reach: Reach, block: int, groups: int, kept: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        patch.setattr(attention, "KEPT_ELEMENTS", kept)
        batch = rows(shapes, side)
        tensors = inputs(batch, groups=groups)
        config = LlamaConfig(sliding_window=reach.window, attention_chunk_size=reach.chunk)
        config._attn_implementation = BLOCKED
        if reach.window is not None:
            reach = Reach(window=reach.window)
        mask: Any = attention_inputs(SimpleNamespace(config=config, dtype=torch.float64), batch)["attention_mask"]  # type: ignore[arg-type]
        plain = may_attend(batch.segment_ids, batch.position_ids, reach)
        assert torch.equal(mask, plain) and not hasattr(plain, "cuts")
        want = run(sdpa_attention_forward, tensors, plain)
        assert_same(run(blocked_attention, tensors, mask), want, batch)
        # The mask alone is enough too: that is what is left where a layer copied it.
        assert_same(run(blocked_attention, tensors, plain), want, batch)


def test_what_the_mask_hides_is_not_computed() -> None:
    batch = rows([(300, [70, 50, 60]), (300, [70, 50, 60])])
    (cut,) = cut_rows(batch.segment_ids, causal=True)
    needed = 300 * 301 // 2 + sum(length * 300 + length * (length + 1) // 2 for length in (70, 50, 60))
    assert needed < cut.weights < 1.25 * needed < 0.6 * 480**2
    assert sorted(place for piece in cut.pieces for place in range(piece.start, piece.stop)) == list(range(480))


def test_short_rows_are_taken_whole_and_long_ones_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for shapes, together in (
        ([(9 + number, [3 + number, 2]) for number in range(20)], True),
        ([(600 + number, [200, 200]) for number in range(4)], False),
        ([(24, [12, 12])] * 20, True),
        ([(73, [73, 73])] * 20, False),
        ([(291, [73, 73])] * 4, False),
    ):
        batch = rows(shapes)
        cuts = cut_rows(batch.segment_ids, causal=True)
        taken = attention._cheaper(cuts, len(shapes), 4, batch.input_ids.shape[1])
        assert (taken is not cuts) == together


def test_rows_that_are_cut_alike_go_together() -> None:
    batch = rows([(5, [3, 2]), (4, [3]), (5, [3, 2]), (4, [3])])
    assert [cut.rows for cut in cut_rows(batch.segment_ids, causal=True)] == [[0, 2], [1, 3]]
    batch = rows([(4, [3]), (5, [3, 2]), (5, [3, 2])])
    assert [cut.rows for cut in cut_rows(batch.segment_ids, causal=True)] == [slice(0, 1), slice(1, 3)]


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_rounds_as_eager_attention_does(autocast: bool) -> None:
    batch = rows([(40, [20, 30]), (33, [11, 25])])
    mask = may_attend(batch.segment_ids, batch.position_ids)
    cut: Any = mask.clone()
    cut.cuts = cut_rows(batch.segment_ids, causal=True)
    rounded = inputs(batch, dtype=torch.bfloat16)
    truth = run(sdpa_attention_forward, [part.detach().double().requires_grad_() for part in rounded], mask)
    if autocast:
        rounded = [part.detach().float().requires_grad_() for part in rounded]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        have = run(blocked_attention, rounded, cut)
    assert have[0].dtype == torch.bfloat16 and have[1].dtype == rounded[0].dtype
    present = batch.segment_ids != PADDING
    for index, (one, other) in enumerate(zip(have, truth, strict=True)):
        difference = (one.double() - other) if not index else (one.double() - other).transpose(1, 2)
        assert difference[present].norm() < 1e-2 * other.norm()


@pytest.mark.parametrize(
    "settings", [{}, {"scaling": 0.7}, {"position_bias": torch.linspace(0, 1, 121).double().view(1, 1, 11, 11)}]
)
def test_what_it_does_not_know_it_leaves_to_sdpa(settings: dict[str, Any]) -> None:
    batch = rows([(6, [3, 2])])
    tensors = inputs(batch)
    mask = may_attend(batch.segment_ids, batch.position_ids)
    assert_same(
        run(blocked_attention, tensors, mask, **settings), run(sdpa_attention_forward, tensors, mask, **settings), batch
    )
    assert_same(run(blocked_attention, tensors, None), run(sdpa_attention_forward, tensors, None), batch)
    additive = torch.zeros(mask.shape, dtype=torch.float64).masked_fill_(~mask, -1e9)
    assert_same(run(blocked_attention, tensors, additive), run(sdpa_attention_forward, tensors, mask), batch)


def test_attention_dropout_is_done_by_sdpa() -> None:
    batch = rows([(6, [3, 2])])
    tensors = inputs(batch)
    mask = may_attend(batch.segment_ids, batch.position_ids)
    found = []
    for kernel in (blocked_attention, sdpa_attention_forward):
        torch.manual_seed(0)
        found.append(run(kernel, tensors, mask, dropout=0.5))
    assert_same(*found, batch)
    assert (found[0][0] - run(blocked_attention, tensors, mask)[0]).abs().max() > 0.1


@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_has_the_gradients_of_sdpa_with_recomputed_activations_too(recompute: bool) -> None:
    found: list[list[Tensor]] = []
    for kernel in ("sdpa", BLOCKED):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            tie_word_embeddings=True,
        )
        config._attn_implementation = kernel
        model = LlamaForCausalLM(config).double().train()
        if recompute and kernel == BLOCKED:
            model.gradient_checkpointing_enable()
        logps = branch_logps(model, rows([(9, [4, 6]), (5, [3]), (2, [1, 5, 3])]))
        (logps["a"] - 0.5 * logps["b"] + 0.1 * logps["c"]).sum().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for have, want in zip(found[1], found[0], strict=True):
        assert (have - want).abs().max() <= 1e-12 * max(1.0, want.abs().max().item())
