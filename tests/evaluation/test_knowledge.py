"""What is made of what tasks say, and what is refused before anybody is asked."""

from __future__ import annotations

from typing import Any

import pytest

from pluralign.errors import InputError
from pluralign.evaluation import knowledge
from pluralign.evaluation.asked import check_asked
from pluralign.evaluation.knowledge import Figure, Told
from pluralign.seats import EvaluationConfig, KnowledgeConfig


def test_the_score_is_of_headlines() -> None:
    figures = {"a": {"loss": Figure(3, None), "acc,strict": Figure(0.5, 0.1)}, "b": {"loss": Figure(1, None)}}
    told = Told(figures, {"a": 4, "b": 4}, {"a": {"loss": False, "acc": True}, "b": {"loss": False}})
    assert told.headlines == {"a": "acc,strict"} and told.score() == 0.5
    assert Told({"b": figures["b"]}, {"b": 4}, {"b": {"loss": False}}).score() is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"limit": 0.0}, "limit is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_asked(EvaluationConfig(knowledge=KnowledgeConfig(tasks="choose", **changes)))


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lm-eval is not installed\. pip install 'pluralign\[knowledge\]'"):
        check_asked(EvaluationConfig(knowledge=KnowledgeConfig(tasks="arc_easy")))
    check_asked(EvaluationConfig())
