"""What answers are like as texts: small exact cases, and a run's figures beside plain forwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pluralign.config import GenerationConfig
from pluralign.evaluation.text_quality import distinct, perplexity, repetition, text_quality
from pluralign.models import generate
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.preferences import Preference


def test_distinct_and_repetition_are_those_of_their_definitions() -> None:
    texts = [[1, 2, 1, 2, 1, 2], [1, 2], []]
    assert distinct(texts, 1) == 2 / 8
    # 12 21 12 21 12, and 12 again.
    assert distinct(texts, 2) == 2 / 6
    assert distinct(texts, 3) == 2 / 4
    assert distinct([[7]], 2) is None and distinct([], 1) is None
    # 1212 2121 1212: one of three came before; the short ones have no phrase to repeat.
    assert repetition(texts) == pytest.approx(1 / 3)
    assert repetition([[1, 2, 3, 4, 5]]) == 0
    assert repetition([[1, 2, 3]]) is None


def test_perplexity_is_over_tokens_and_leaves_out_the_impossible() -> None:
    # Of four tokens one in two, of twelve one in four.
    found = perplexity([-4 * math.log(2), -12 * math.log(4)], [4, 12])
    assert found == pytest.approx(2 ** ((4 + 24) / 16))
    assert perplexity([-4 * math.log(2), -math.inf], [4, 3]) == pytest.approx(2)
    assert perplexity([], []) is None and perplexity([-math.inf], [1]) is None
    assert perplexity([-1e6], [1]) is None
    assert text_quality([], [])["characters"] is None


def test_a_run_measures_what_the_policy_itself_says(
    population: Any, make_rows: Callable[..., list[Preference]]
) -> None:
    rows = population.anchored(make_rows(["ann", "ben"], pairs=3))
    adapters = {user: population.adapter(user, 0.6, seed=number) for number, user in enumerate(("ann", "ben"))}
    found = population.evaluate(adapters, rows, generate=True).people["ben"]["behaviour"]
    questions = list(dict.fromkeys(tuple(row.encoded.prompt_ids) for row in rows if row.preference.user == "ben"))
    policy = load_adapter(population.base, adapters["ben"])
    said = generate(policy, population.base.tokenizer, list(map(list, questions)), GenerationConfig(max_new_tokens=8))
    nats = ratios = divergence = 0.0
    tokens = 0
    for prompt, answer in zip(questions, said, strict=True):
        response = [*answer.token_ids, *([answer.end] if answer.end is not None else [])]
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            own = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            with policy.disable_adapter():
                base = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        places = range(len(response)), response
        nats -= float(base[places].sum())
        ratios += float((own[places] - base[places]).sum())
        divergence += float((own.exp() * (own - base)).sum())
        tokens += len(response)
    detach_adapter(policy)
    person = found["person"]
    assert person["base_perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-3)
    assert person["kl_per_token"] == pytest.approx(divergence / tokens, rel=1e-3)
    assert person["log_ratio_per_token"] == pytest.approx(ratios / tokens, rel=1e-3)
    # The base finds its own greedy answers likelier than what the policy says instead.
    assert 1 <= found["base"]["base_perplexity"] < person["base_perplexity"]
    assert found["person"]["tokens"] == pytest.approx(sum(len(answer.token_ids) for answer in said) / len(said))
