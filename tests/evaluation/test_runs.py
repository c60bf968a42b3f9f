"""A finished run evaluated again, from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pluralign.config import (
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    GenerationConfig,
    ParametersConfig,
    TrainConfig,
)
from pluralign.errors import InputError
from pluralign.evaluation import evaluate, read_evaluation
from pluralign.models import Base, load_base
from pluralign.preferences import ALL, Preference, data_hash, folder_name, load_preferences, split_preferences
from pluralign.resolve import MADE_WITH, as_yaml
from pluralign.training.index import write_index

USERS = ["Ann", "../ben", "cem"]


@pytest.fixture
def run(population: Any, make_rows: Callable[..., list[Preference]], tmp_path: Path) -> TrainConfig:
    """A folder as a run leaves it: configuration, adapters and index; `cem` could not be trained."""
    model = tmp_path / "base"
    population.base.model.save_pretrained(model)
    population.base.tokenizer.save_pretrained(model)
    table = tmp_path / "preferences.jsonl"
    columns = ("user", "group", "prompt", "chosen", "rejected")
    rows = [{name: getattr(row, name) for name in columns} for row in make_rows(USERS, pairs=20)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(
        model=str(model),
        device="cpu",
        cache_dir=str(tmp_path / "cache"),
        data=DataConfig(path=str(table), validation=0.4),
        output_dir=str(tmp_path / "run"),
        base_responses=GenerationConfig(max_new_tokens=4),
    )
    population.folder = Path(config.output_dir)
    population.base = load_base(config)
    for number, user in enumerate(USERS[:2]):
        population.adapter(user, 0.3, seed=number)
    write_index(config.output_dir, {user: folder_name(user) for user in USERS[:2]}, {"cem": "one pair"})
    record(config)
    return config


def record(config: TrainConfig) -> None:
    made_with = {MADE_WITH: {"data_hash": data_hash(load_preferences(config.data, config.seed))}}
    (Path(config.output_dir) / "config.yaml").write_text(as_yaml(config) + yaml.safe_dump(made_with))


def again(config: TrainConfig, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"run": config.output_dir, "device": "cpu", **changes})


def test_the_same_rows_are_held_out(run: TrainConfig) -> None:
    found = evaluate(again(run))
    preferences = load_preferences(run.data, run.seed)
    _, held_out = split_preferences(preferences, validation=0.4, by="prompt", per="user", seed=run.seed, data=run.data)
    counts = {user: len(rows) for user, rows in held_out.by("user").items()}
    assert {user: person["pairs"]["n"] for user, person in found.people.items()} == {
        user: counts[user] for user in USERS[:2]
    }
    assert found.skipped == {"cem": "one pair"}
    assert found.path == Path(run.output_dir) / "evaluation.json"
    assert read_evaluation(found.path).as_dict() == found.as_dict()


def test_answers_are_greedy_however_base_responses_were_made(run: TrainConfig) -> None:
    run.base_responses.temperature = 5.0
    found = []
    for sampled in (False, True):
        run.base_responses.do_sample = sampled
        record(run)
        found.append(evaluate(again(run)))
    greedy, other = found
    assert other.base["generation"] == greedy.base["generation"] and not other.base["generation"]["do_sample"]
    assert other.people == greedy.people and other.people["Ann"]["behaviour"]["base"]["tokens"] > 0


def test_changed_data_is_refused(run: TrainConfig) -> None:
    table = Path(str(run.data.path))
    table.write_text("".join(table.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match="data hash"):
        evaluate(again(run))
    assert not (Path(run.output_dir) / "evaluation.json").exists()


def test_the_runs_own_data_under_another_name_holds_out_the_same_rows(run: TrainConfig, tmp_path: Path) -> None:
    """Rows that it was trained on do not count as held out."""
    as_trained = evaluate(again(run)).as_dict()
    moved = Path(str(run.data.path)).rename(tmp_path / "moved.jsonl")
    assert evaluate(again(run, data=replace(run.data, path=str(moved)))).as_dict() == as_trained


def test_held_out_rows_of_the_callers_own(run: TrainConfig, tmp_path: Path) -> None:
    table = tmp_path / "mine.jsonl"
    table.write_text(json.dumps({"user": "Ann", "prompt": "q?", "chosen": "yes", "rejected": "no"}) + "\n")
    found = evaluate(again(run, data=DataConfig(path=str(table)), output=str(tmp_path / "out.json")))
    assert [person["pairs"]["n"] for person in found.people.values()] == [1, 0]
    assert (tmp_path / "out.json").is_file()
    assert not (Path(run.output_dir) / "evaluation.json").exists()


def test_probes_default_to_those_of_the_run(run: TrainConfig, tmp_path: Path) -> None:
    probes = tmp_path / "probes.jsonl"
    probes.write_text(json.dumps({"question": "?", "options": ["a", "b"], "answer": 0}) + "\n")
    record(replace(run, evaluation=EvaluationConfig(probes=str(probes))))
    found = evaluate(again(run, evaluation=EvaluationConfig(generate=False)))
    assert found.base["probes"][0]["used"] == 1
    assert found.people["Ann"]["behaviour"] is None


def test_bad_rows_among_the_held_out_are_named(run: TrainConfig, tmp_path: Path) -> None:
    table = tmp_path / "mine.jsonl"
    rows = [{"user": "Ann", "prompt": "q?", "chosen": "yes", "rejected": rejected} for rejected in ("no", "yes", 3)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match=r"mine\.jsonl, row 3"):
        evaluate(again(run, data=DataConfig(path=str(table))))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.yaml"):
        evaluate(EvaluateConfig(run=str(tmp_path / "nothing")))


def test_a_run_without_index_is_refused(run: TrainConfig) -> None:
    (Path(run.output_dir) / "adapters" / "index.json").unlink()
    with pytest.raises(InputError, match=r"index\.json"):
        evaluate(again(run))


def test_full_weights_are_found_in_the_model_folder(run: TrainConfig, make_base: Callable[..., Base]) -> None:
    trained = make_base(3)
    trained.model.save_pretrained(Path(run.output_dir) / "model")
    trained.tokenizer.save_pretrained(Path(run.output_dir) / "model")
    record(replace(run, parameters=ParametersConfig(per="none", kind="full")))
    found = evaluate(again(run))
    assert list(found.people) == USERS
    assert ALL not in found.people
    assert found.people["cem"]["base_responses"]["kl_per_token"] > 0
