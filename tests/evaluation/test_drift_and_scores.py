"""Scores of many responses against plain forwards, one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pluralign.evaluation.drift import BaseLogits, drift, kl_divergence
from pluralign.models import Base, scoring
from pluralign.models.scoring import Forward, score, shared_rows

Request = tuple[tuple[int, ...], tuple[int, ...]]


def forward_of(base: Base, **changes: Any) -> Forward:
    values = {"pad_id": 257, "layout": "shared", "device": base.device, "vocabulary": base.model.config.vocab_size}
    return Forward(**{**values, **changes})


def next_token_logps(base: Base, request: Request) -> torch.Tensor:
    """[response, V] log-probs by one plain forward of prompt and response."""
    prompt, response = request
    with torch.no_grad():
        logits = base.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    return logits[len(prompt) - 1 : -1].double().log_softmax(-1)


def directly(base: Base, request: Request) -> float:
    logps = next_token_logps(base, request)
    return float(logps[range(len(request[1])), list(request[1])].sum())


def random_requests(count: int = 40) -> list[Request]:
    generator = torch.Generator().manual_seed(0)

    def draw(most: int) -> tuple[int, ...]:
        length = int(torch.randint(1, most, (1,), generator=generator))
        return tuple(torch.randint(0, 256, (length,), generator=generator).tolist())

    prompts = [draw(12) for _ in range(6)]
    return [(prompts[number % 6], draw(9)) for number in range(count)]


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_scores_are_those_of_single_forwards(make_base: Callable[..., Base], layout: str) -> None:
    base, requests = make_base(), random_requests()
    scores = score(base.model, [*requests, *requests[:5]], forward_of(base, layout=layout))
    assert scores.keys() == set(requests)
    for request, value in scores.items():
        assert value == pytest.approx(directly(base, request), abs=1e-4)


def test_each_prompt_is_run_once(make_base: Callable[..., Base], count_forwards: Callable[[Any], list[int]]) -> None:
    base = make_base()
    seen = count_forwards(base.model)
    score(base.model, random_requests() * 2, forward_of(base))
    assert sum(seen) == 6


def test_rows_and_batches_stay_within_their_bounds(
    make_base: Callable[..., Base], monkeypatch: pytest.MonkeyPatch, count_forwards: Callable[[Any], list[int]]
) -> None:
    base, requests = make_base(), random_requests()
    whole = score(base.model, requests, forward_of(base))
    monkeypatch.setattr(scoring, "ROW_TOKENS", 24)
    monkeypatch.setattr(scoring, "ROW_BRANCHES", 3)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", {"cpu": 64})
    monkeypatch.setattr(scoring, "BATCH_LOGITS", 20 * base.model.config.vocab_size)
    rows = shared_rows(requests, "shared")
    assert all(len(row.response_ids) <= 3 for row in rows)
    seen = count_forwards(base.model)
    parts = score(base.model, requests, forward_of(base))
    assert len(seen) > 5
    assert sum(seen) == len(rows)
    assert parts == pytest.approx(whole, abs=1e-4)


def test_drift_against_a_direct_computation(make_base: Callable[..., Base]) -> None:
    base, policy = make_base(0), make_base(1)
    requests = random_requests(12)
    logits = BaseLogits(lambda: contextlib.nullcontext(base.model))
    found = drift(policy.model, {0: requests}, logits, forward_of(base), lambda _: contextlib.nullcontext())[0]
    for request in requests:
        ours, theirs = next_token_logps(policy, request), next_token_logps(base, request)
        divergence = (ours.exp() * (ours - theirs)).sum()
        assert found[request].divergence == pytest.approx(float(divergence), abs=1e-3)
        assert found[request].log_ratio == pytest.approx(directly(policy, request) - directly(base, request), abs=1e-4)
        assert found[request].tokens == len(request[1])


@pytest.mark.parametrize(("limit", "passes"), [(2**30, 1), (0, 2)])
def test_base_logits_are_computed_once_while_they_fit(make_base: Callable[..., Base], limit: int, passes: int) -> None:
    base = make_base()
    asked: list[int] = []

    @contextlib.contextmanager
    def base_model() -> Iterator[Any]:
        asked.append(1)
        yield base.model

    logits = BaseLogits(base_model, limit=limit)
    requests = random_requests(12)
    first = drift(base.model, {0: requests[:8]}, logits, forward_of(base), lambda _: contextlib.nullcontext())[0]
    second = drift(base.model, {0: requests[4:8]}, logits, forward_of(base), lambda _: contextlib.nullcontext())[0]
    assert len(asked) == passes
    for request in requests[4:8]:
        assert first[request].divergence == pytest.approx(0, abs=1e-5)
        assert second[request].log_ratio == pytest.approx(0, abs=1e-5)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.01, 30))
def test_kl_is_never_negative_and_zero_only_to_itself(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 5, 37, generator=generator) * scale
    found = kl_divergence(one, other)
    expected = torch.nn.functional.kl_div(
        other.double().log_softmax(-1), one.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert (found >= 0).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    assert (kl_divergence(one, one) == 0).all()


def test_kl_with_excluded_tokens() -> None:
    one = torch.tensor([[0.0, 0.0, float("-inf")]])
    assert float(kl_divergence(one, torch.zeros(1, 3))) == pytest.approx(torch.tensor(1.5).log().item())
    assert float(kl_divergence(torch.zeros(1, 3), one)) == float("inf")
