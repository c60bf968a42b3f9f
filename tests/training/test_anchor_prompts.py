"""Prompts without a pair: everybody gets some, what the base says to them is kept, and they are part of the run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pluralign import evaluate
from pluralign.config import AnchorConfig, BaseAnchorConfig, DataConfig, ModelConfig, TrainConfig, WeightingConfig
from pluralign.errors import InputError
from pluralign.models import load_base
from pluralign.models.anchoring import encoder_of
from pluralign.models.encoding import Encoder
from pluralign.preferences import Preference
from pluralign.training import train
from pluralign.training.anchor_prompts import AnchorPrompts
from pluralign.training.people import Census, Person

PROMPTS = ["the river", "old stone", "at night", "far away"]


def anchored(prompts: Any, per_pair: float = 0.5, weight: float = 0.3) -> AnchorConfig:
    return AnchorConfig(BaseAnchorConfig(weight=weight, prompts=prompts, prompts_per_pair=per_pair))


def census(users: list[str], prompt: Any = "prompt", pairs: int = 8) -> Census:
    def own(user: str) -> list[Preference]:
        return [Preference(prompt, f"yes {number}", "no", user=user) for number in range(pairs)]

    return Census([Person(user, own(user), []) for user in users])


def added(config: TrainConfig, found: Census, encoder: Encoder, pairs: int = 8) -> dict[str, list[Preference]]:
    AnchorPrompts.of(config).give_to(found, config, encoder)
    return {person.user: person.train[pairs:] for person in found.people}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoder_of(load_base(ModelConfig()), DataConfig())


def test_everybody_gets_their_share_whoever_else_is_there(encoder: Encoder) -> None:
    config = TrainConfig(anchor=anchored(PROMPTS))
    rows = added(config, census(["a", "b"]), encoder)
    assert {user: len(own) for user, own in rows.items()} == {"a": 4, "b": 4}
    assert {str(row.prompt) for row in rows["a"]} == set(PROMPTS)
    assert all(row.chosen is None and row.rejected is None and row.user == "a" for row in rows["a"])
    assert added(config, census(["b"]), encoder)["b"] == rows["b"]
    few = replace(config, anchor=anchored(PROMPTS, per_pair=0.01))
    assert len(added(few, census(["a"]), encoder)["a"]) == 1
    many = replace(config, anchor=anchored(PROMPTS, per_pair=1.0))
    assert Counter(str(row.prompt) for row in added(many, census(["a"]), encoder)["a"]) == dict.fromkeys(PROMPTS, 2)


def test_texts_are_turns_where_the_table_has_messages(encoder: Encoder) -> None:
    found = census(["a"], [{"role": "user", "content": "?"}], pairs=1)
    (row,) = added(TrainConfig(anchor=anchored("the river")), found, encoder, pairs=1)["a"]
    assert row.prompt == [{"role": "user", "content": "the river"}]


def test_whose_rows_cannot_be_used_is_not_trained_on_prompts_alone(make_rows: Any, make_config: Any) -> None:
    rows = make_rows(["a"], importance=lambda _: 1.0) + make_rows(["b"], importance=lambda _: 0.0)
    config = make_config(rows, anchor=anchored(PROMPTS), weighting=WeightingConfig("importance"))
    result = train(config)
    assert list(result.adapters) == ["a"] and "weights" in result.skipped["b"]
    with pytest.raises(InputError, match="no row has the column"):
        train(replace(config, weighting=WeightingConfig("importanse"), output_dir=f"{config.output_dir}-other"))


def test_prompts_that_do_not_suit_the_model_are_refused(make_rows: Any, make_config: Any, tmp_path: Path) -> None:
    """Nobody's anchor goes missing without a word."""
    file = tmp_path / "general.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "hello"}]}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"general\.jsonl, row 1"):
        train(make_config(make_rows(["a"]), anchor=anchored(str(file))))


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
    moved = replace(config, anchor=anchored(str(file.rename(tmp_path / "moved.txt"))))
    assert train(moved).adapters["a"].stat().st_mtime_ns == before
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
        (anchored(["", "x"]), r"anchor\.base\.prompts"),
    ],
)
def test_what_cannot_be_used_is_refused(anchor: AnchorConfig, message: str, make_rows: Any, make_config: Any) -> None:
    with pytest.raises(InputError, match=message):
        train(make_config(make_rows(["a"]), anchor=anchor))
