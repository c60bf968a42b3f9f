"""Prompts without a pair: everybody gets some, what the base says to them is kept, and they are part of the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pluralign import evaluate
from pluralign.config import AnchorConfig, BaseAnchorConfig, ParametersConfig, TrainConfig, WeightingConfig
from pluralign.errors import InputError
from pluralign.preferences import Preference, Preferences
from pluralign.training import train
from pluralign.training.anchor_prompts import AnchorPrompts

PROMPTS = ["the river", "old stone", "at night", "far away"]


def anchored(prompts: Any, per_pair: float = 0.5, weight: float = 0.3) -> AnchorConfig:
    return AnchorConfig(BaseAnchorConfig(weight=weight, prompts=prompts, prompts_per_pair=per_pair))


def table(users: list[str], pairs: int = 8) -> Preferences:
    rows = [Preference(f"prompt {number}", "yes", "no", user=user) for user in users for number in range(pairs)]
    return Preferences(rows)


def added(config: TrainConfig, training: Preferences) -> list[Preference]:
    return AnchorPrompts.of(config).added_to(training, config).rows[len(training) :]


def test_everybody_gets_their_share_whoever_else_is_there() -> None:
    config = TrainConfig(anchor=anchored(PROMPTS))
    rows = added(config, table(["a", "b"]))
    assert Counter(row.user for row in rows) == {"a": 4, "b": 4}
    assert {str(row.prompt) for row in rows if row.user == "a"} == set(PROMPTS)
    assert all(row.chosen is None and row.rejected is None for row in rows)
    assert added(config, table(["b"])) == [row for row in rows if row.user == "b"]
    assert len(added(replace(config, anchor=anchored(PROMPTS, per_pair=0.01)), table(["a"]))) == 1
    twice = added(replace(config, anchor=anchored(PROMPTS, per_pair=1.0)), table(["a"]))
    assert Counter(str(row.prompt) for row in twice) == dict.fromkeys(PROMPTS, 2)


def test_one_policy_for_all_gets_them_once() -> None:
    config = TrainConfig(anchor=anchored(PROMPTS), parameters=ParametersConfig(per="none"))
    assert len(added(config, table(["a", "b"]))) == 8


def test_texts_are_turns_where_the_table_has_messages() -> None:
    rows = [Preference([{"role": "user", "content": "?"}], "yes", "no", user="a")]
    (row,) = added(TrainConfig(anchor=anchored("the river")), Preferences(rows))
    assert row.prompt == [{"role": "user", "content": "the river"}]


@pytest.mark.parametrize("engine", ["bank", "trainer"])
def test_they_are_trained_on_and_not_held_out(engine: str, make_rows: Any, make_config: Any, metrics: Any) -> None:
    rows = make_rows(["a"], 8)
    for row in rows:
        row["importance"] = 2.0
    config = make_config(rows, anchor=anchored(PROMPTS), engine=engine, weighting=WeightingConfig("importance"))
    result = train(config)
    assert not result.skipped
    # Six rows to learn from and three prompts, in batches of four.
    assert max(line["step"] for line in metrics(result.output_dir)) == 6
    assert any(line.get("anchor/loss", 0) > 0 for line in metrics(result.output_dir))
    (person,) = evaluate({"run": str(result.output_dir)}).people.values()
    assert person["pairs"]["n"] == 2


def test_a_run_with_other_prompts_is_another_run(make_rows: Any, make_config: Any, tmp_path: Path) -> None:
    file = tmp_path / "general.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    config = make_config(make_rows(["a"]), anchor=anchored(str(file)))
    result = train(config)
    before = result.adapters["a"].stat().st_mtime_ns
    assert train(config).adapters["a"].stat().st_mtime_ns == before
    file.write_text("\n".join(PROMPTS[:2]), encoding="utf-8")
    with pytest.raises(InputError, match=r"content of anchor\.base\.prompts"):
        train(config)
    assert train(replace(config, overwrite=True)).adapters["a"].stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        (anchored(PROMPTS, weight=0.0), r"anchor\.base\.weight is 0"),
        (anchored(PROMPTS, per_pair=0.0), r"prompts_per_pair is 0"),
        (anchored(PROMPTS, per_pair=float("nan")), r"prompts_per_pair is nan"),
        (anchored("nowhere.jsonl"), r"nowhere\.jsonl"),
        (anchored(["", "x"]), r"prompt"),
    ],
)
def test_what_cannot_be_used_is_refused(anchor: AnchorConfig, message: str, make_rows: Any, make_config: Any) -> None:
    with pytest.raises(InputError, match=message):
        train(make_config(make_rows(["a"]), anchor=anchor))
