"""Shares that policies give to the options of survey questions, beside those of people and groups."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pluralign.errors import InputError
from pluralign.evaluation.distribution import option_shares
from pluralign.fewshot.metrics import jensen_shannon_alignment, wasserstein_alignment
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.preferences import Preference
from pluralign.seats import DistributionConfig

Rows = Callable[..., list[Preference]]


def table(path: Path, *rows: dict[str, Any], column: str = "group") -> DistributionConfig:
    path.write_text("".join(json.dumps({column: row.pop("of"), **row}) + "\n" for row in rows))
    return DistributionConfig(answers=str(path), group=column)


LINE = {"question": "How often?", "options": ["never", "now and then", "always"], "ordinals": [0, 1, 4]}
KINDS = {"question": "Which one?", "options": ["tea", "coffee"]}


def logp(model: Any, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(response)), response].sum())


def shares_of(model: Any, tokenizer: Any, asked: dict[str, Any]) -> np.ndarray:
    """Options as whole answers behind the question of a run whose prompts are text."""
    prompt = tokenizer(f"Question: {asked['question']}\nAnswer:")["input_ids"]
    ends = [tokenizer(f" {option}")["input_ids"] + [tokenizer.eos_token_id] for option in asked["options"]]
    scores = torch.tensor([logp(model, prompt, end) for end in ends])
    return scores.softmax(0).numpy()


@pytest.mark.parametrize("kind", ["bank", "alone"])
def test_alignment_is_that_of_summed_log_probs_of_whole_answers(
    population: Any, make_rows: Rows, tmp_path: Path, kind: str
) -> None:
    """Ann has answered herself; Ben is compared with his group's answers, and Cem with nobody's."""
    users = ["ann", "ben", "cem"]
    adapters = {user: population.adapter(user, 0.5, seed=number) for number, user in enumerate(users)}
    if kind == "alone":
        for path in adapters.values():
            config = path / "adapter_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    own, group = ([0.2, 0.3, 0.5], [0.9, 0.1]), ([1.0, 0.0, 0.0], [0.5, 0.5])
    survey = table(
        tmp_path / "survey.jsonl",
        {"of": "ann", "distribution": own[0], **LINE},
        {"of": "ann", "distribution": own[1], **KINDS},
        {"of": "group-1", "distribution": group[0], **LINE},
        {"of": "group-1", "distribution": group[1], **KINDS},
    )
    held_out = population.anchored(make_rows(users, pairs=1))
    content = population.evaluate(adapters, held_out, generate=False, distribution=survey).as_dict()
    tokenizer = population.base.tokenizer
    bare = [shares_of(population.base.model, tokenizer, asked) for asked in (LINE, KINDS)]
    for user, answers in (("ann", own), ("ben", group)):
        policy = load_adapter(population.base, adapters[user])
        line, kinds = (shares_of(policy, tokenizer, asked) for asked in (LINE, KINDS))
        detach_adapter(policy)
        found = content["people"][user]["distribution"]
        near = [wasserstein_alignment(shares, answers[0], LINE["ordinals"]) for shares in (line, bare[0])]
        like = [jensen_shannon_alignment(shares, answers[1]) for shares in (kinds, bare[1])]
        also = [jensen_shannon_alignment(shares, answers[0]) for shares in (line, bare[0])]
        assert (found["of"], found["n"], found["undefined"]) == ("ann" if user == "ann" else "group-1", 2, 0)
        assert found["alignment"] == pytest.approx((near[0] + like[0]) / 2, abs=1e-4)
        assert found["base_alignment"] == pytest.approx((near[1] + like[1]) / 2, abs=1e-4)
        assert found["difference"] == pytest.approx(found["alignment"] - found["base_alignment"])
        assert found["wasserstein"]["alignment"] == pytest.approx(near[0], abs=1e-4)
        assert found["jensen_shannon"]["alignment"] == pytest.approx((like[0] + also[0]) / 2, abs=1e-4)
    nobody = content["people"]["cem"]["distribution"]
    assert nobody["of"] is nobody["alignment"] is nobody["base_alignment"] is None and nobody["n"] == 0
    assert content["summary"]["distribution.alignment.mean"] == pytest.approx(
        np.mean([content["people"][user]["distribution"]["alignment"] for user in ("ann", "ben")])
    )
    assert content["base"]["distribution"] == {
        "answers": str(tmp_path / "survey.jsonl"),
        "groups": 2,
        "questions": 2,
        "too_long": 0,
        "rescaled": 0,
    }


def test_what_is_undefined_is_no_agreement(population: Any, make_rows: Rows, tmp_path: Path) -> None:
    """All options at one place; a policy that gives no numbers; a question that has no room."""
    survey = table(
        tmp_path / "survey.jsonl",
        {"of": "ann", "distribution": [1, 0], **KINDS, "ordinals": [2, 2]},
        {"of": "ann", "distribution": [1, 0], **KINDS, "question": "long? " * 100},
        {"of": "ben", "distribution": [1, 0], **KINDS, "question": "Which of them?"},
        column="who",
    )
    adapters = {"ann": population.adapter("ann"), "ben": population.adapter("ben", float("nan"))}
    held_out = population.anchored(make_rows(list(adapters), pairs=1))
    content = population.evaluate(adapters, held_out, generate=False, distribution=survey).as_dict()
    ann, ben = (content["people"][user]["distribution"] for user in adapters)
    assert (ann["n"], ann["undefined"], ann["alignment"], ann["wasserstein"]["alignment"]) == (1, 1, None, None)
    assert 0 < ann["jensen_shannon"]["alignment"] < 1
    assert (ben["n"], ben["undefined"], ben["alignment"], ben["difference"]) == (1, 1, None, None)
    assert content["base"]["distribution"]["too_long"] == 1
    assert content["summary"]["distribution.alignment.mean"] is None


def test_answers_of_nobody_are_refused(population: Any, make_rows: Rows, tmp_path: Path) -> None:
    survey = table(tmp_path / "survey.jsonl", {"of": "Spain", "distribution": [1, 0], **KINDS})
    with pytest.raises(InputError, match=r"distribution\.answers: they are of 'Spain', and nobody has such an id"):
        population.evaluate(
            {"ann": population.adapter("ann")}, population.anchored(make_rows(["ann"])), distribution=survey
        )


def test_shares_of_options_are_a_softmax() -> None:
    assert option_shares([-1000.0, -1000.0 + math.log(3)]) == pytest.approx([0.25, 0.75])
    assert option_shares([-5.0, -math.inf]) == pytest.approx([1, 0])
    assert np.isnan(option_shares([-math.inf, -math.inf])).all() and np.isnan(option_shares([0.0, math.nan])).all()
