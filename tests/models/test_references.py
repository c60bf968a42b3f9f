from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import GenerationConfig, ParametersConfig
from pluralign.errors import InputError
from pluralign.models import scoring
from pluralign.models.adapters import detach_adapter, new_adapter
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoded
from pluralign.models.generation import generate
from pluralign.models.references import base_responses, content_key, reference_logps

SETTINGS = GenerationConfig(max_new_tokens=6)


def draw(seed: int, length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def encoded() -> list[Encoded]:
    """Two users on some prompts: five rows, nine distinct pairs of prompt and response, eleven in all."""
    first, second, third = draw(1, 5), draw(2, 17), draw(3, 1)
    return [
        Encoded(first, {"chosen": draw(4, 9), "rejected": draw(5, 3), "base": draw(6, 12)}),
        Encoded(second, {"chosen": draw(4, 9), "rejected": draw(7, 20)}),
        Encoded(first, {"chosen": draw(5, 3), "rejected": draw(8, 1), "base": draw(6, 12)}),
        Encoded(third, {"base": draw(9, 2)}),
        Encoded(second, {"chosen": draw(10, 4), "rejected": draw(11, 6)}),
    ]


@torch.no_grad()
def direct(model: Any, prompt: list[int], response: list[int]) -> float:
    logps = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) - 1 + at, token].item() for at, token in enumerate(response))


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("budget", [8192, 40, 1])
def test_each_branch_has_the_log_prob_of_a_direct_forward(
    tiny_base: Base, encoded: list[Encoded], tmp_path: Path, layout: Any, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", budget)
    monkeypatch.setattr(scoring, "ROW_TOKENS", budget)
    found = reference_logps(tiny_base, encoded, Cache(tmp_path), layout=layout)
    for row, values in zip(encoded, found, strict=True):
        assert values.keys() == row.response_ids.keys()
        for name, response in row.response_ids.items():
            expected = direct(tiny_base.model, row.prompt_ids, response)
            assert values[name] == pytest.approx(expected, abs=1e-5 * max(1.0, abs(expected)))


def test_distinct_texts_run_once_and_prompts_once_and_a_second_run_runs_nothing(
    tiny_base: Base, encoded: list[Encoded], tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    forwards = count_forwards(tiny_base.model)
    first = reference_logps(tiny_base, encoded, Cache(tmp_path), layout="shared")
    assert forwards == [3]  # one batch of a row a prompt
    cache = Cache(tmp_path)
    assert reference_logps(tiny_base, encoded, cache, layout="shared") == first
    assert reference_logps(tiny_base, encoded[::-1], cache, layout="shared") == first[::-1]
    assert forwards == [3]
    (section,) = cache._sections.values()
    assert (len(section), section.misses) == (9, 0)
    more = [*encoded, Encoded(encoded[0].prompt_ids, {"chosen": draw(12, 5)})]
    assert reference_logps(tiny_base, more, Cache(tmp_path), layout="shared")[:-1] == first
    assert forwards == [3, 1]


def test_values_depend_on_base_dtype_and_layout(
    make_base: Callable[..., Base], encoded: list[Encoded], tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    cache = Cache(tmp_path)
    first = reference_logps(make_base(), encoded, cache, layout="shared")
    for base, layout in (
        (make_base(seed=1), "shared"),
        (make_base(dtype=torch.bfloat16), "shared"),
        (make_base(dtype=torch.float64), "shared"),
        (make_base(), "separate"),
    ):
        forwards = count_forwards(base.model)
        found = reference_logps(base, encoded, cache, layout=layout)
        assert forwards
        # The layout changes rounding at most, a dtype more, another base everything.
        assert (found == first) <= (layout == "separate")


def test_values_depend_on_how_products_are_rounded(
    tiny_base: Base, encoded: list[Encoded], tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    """What is as PyTorch comes has no fact of its own: caches from before there was one stay valid."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    forwards = count_forwards(tiny_base.model)
    for precision in ("none", "bf16", "none", "bf16"):
        before, settings.fp32_precision = settings.fp32_precision, precision
        try:
            reference_logps(tiny_base, encoded, Cache(tmp_path), layout="shared")
        finally:
            settings.fp32_precision = before
    assert forwards == [3, 3]
    facts = [json.loads(path.read_text()) for path in tmp_path.glob("reference_logps/*/facts.json")]
    assert sorted(one.get("matmul", "") for one in facts) == ["", "bf16"]


def test_a_damaged_value_is_computed_again(tiny_base: Base, encoded: list[Encoded], tmp_path: Path) -> None:
    first = reference_logps(tiny_base, encoded, Cache(tmp_path), layout="shared")
    (path,) = tmp_path.glob("reference_logps/*/segment-*.jsonl")
    content = bytearray(path.read_bytes())
    content[content.index(b'"value":-') + 12] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="1 damaged line"):
        again = reference_logps(tiny_base, encoded, Cache(tmp_path), layout="shared")
    assert [row == pytest.approx(other, abs=1e-4) for row, other in zip(again, first, strict=True)] == [True] * 5


def test_a_reference_is_never_taken_from_an_adapter(tiny_base: Base, encoded: list[Encoded], tmp_path: Path) -> None:
    before = reference_logps(tiny_base, encoded, Cache(tmp_path / "a"), layout="shared")
    policy = new_adapter(tiny_base, ParametersConfig(dropout=0.5), seed=0)
    for call in (
        lambda: reference_logps(tiny_base, encoded, Cache(tmp_path / "b"), layout="shared"),
        lambda: base_responses(tiny_base, [[1]], SETTINGS, Cache(tmp_path / "b")),
    ):
        with pytest.raises(RuntimeError, match=r"carries an adapter at model\.layers\.0"):
            call()
    assert not (tmp_path / "b").exists()
    policy.train()
    torch.nn.init.ones_(policy.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    detach_adapter(policy)
    assert reference_logps(tiny_base, encoded, Cache(tmp_path / "b"), layout="shared") == before


def test_dropout_of_the_base_is_off(make_base: Callable[..., Base], encoded: list[Encoded], tmp_path: Path) -> None:
    base = make_base(attention_dropout=0.5)
    before = reference_logps(base, encoded, Cache(tmp_path / "a"), layout="shared")
    base.model.train()
    assert reference_logps(base, encoded, Cache(tmp_path / "b"), layout="shared") == before


def test_a_base_that_gives_no_number_is_an_error(make_base: Callable[..., Base], tmp_path: Path) -> None:
    base = make_base()
    base.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="tiny in float32 gives a response the log-prob nan"):
        reference_logps(base, [Encoded([1], {"chosen": [2]})], Cache(tmp_path), layout="shared")
    assert not list(tmp_path.rglob("segment-*"))


def test_each_distinct_prompt_is_answered_once_ever(
    tiny_base: Base, tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    prompts = [draw(1, 4), draw(2, 9), draw(1, 4), draw(3, 4)]
    forwards = count_forwards(tiny_base.model)
    first = base_responses(tiny_base, prompts, SETTINGS, Cache(tmp_path))
    assert forwards == [3] * 6
    assert first == generate(tiny_base.model, tiny_base.tokenizer, prompts, SETTINGS)
    forwards.clear()
    # Settings that change nothing find the same answers: the batch, and what sampling would use.
    same = GenerationConfig(max_new_tokens=6, batch_size=1, temperature=0.5)
    assert base_responses(tiny_base, prompts, same, Cache(tmp_path), seed=7) == first
    assert not forwards
    assert base_responses(tiny_base, prompts, GenerationConfig(max_new_tokens=5), Cache(tmp_path)) != first
    assert forwards


def test_sampled_answers_are_kept_by_seed_and_settings(
    tiny_base: Base, tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    def answers(seed: int, temperature: float = 1.0) -> list[str]:
        settings = GenerationConfig(max_new_tokens=6, do_sample=True, temperature=temperature)
        return [one.text for one in base_responses(tiny_base, [draw(1, 4)], settings, Cache(tmp_path), seed=seed)]

    first = answers(0)
    assert answers(1) != first
    assert answers(0, temperature=5.0) != first
    forwards = count_forwards(tiny_base.model)
    assert answers(0) == first
    assert not forwards


def test_a_cache_that_cannot_be_written_changes_no_value(
    tiny_base: Base, encoded: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = reference_logps(tiny_base, encoded, Cache(tmp_path / "a"), layout="shared")
    (tmp_path / "b").write_text("a file, not a folder")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = Cache(tmp_path / "b")
        assert reference_logps(tiny_base, encoded, cache, layout="shared") == expected
        base_responses(tiny_base, [[1]], SETTINGS, cache)
    assert len(caught) == 1
    assert str(tmp_path / "b") in str(caught[0].message)


def test_keys_tell_where_the_prompt_ends() -> None:
    contents = [([1, 2], [3]), ([1], [2, 3]), ([1, 2, 3], []), ([1, 2, 3],), ([1], [2], [3])]
    assert len({content_key(*content) for content in contents}) == len(contents)
