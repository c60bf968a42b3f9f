"""Tasks of lm-eval, put to the base and to everybody: what that package says itself, offline."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pluralign.cli import main
from pluralign.errors import InputError
from pluralign.evaluation.asked import check_asked
from pluralign.evaluation.policies import bare
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.preferences import Preference
from pluralign.seats import EvaluationConfig, KnowledgeConfig

pytestmark = pytest.mark.slow
Rows = Callable[..., list[Preference]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tasks and a group of two of them, as anybody may write them; the network is not there."""

    def refuse(*_: Any) -> None:
        raise AssertionError("somebody asks the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    path = tmp_path / "tasks"
    path.mkdir()
    rows = [
        {
            "question": f"What is {number}?",
            "options": ["it", f"{number} it is", "nothing at all"],
            "answer": number % 3,
            "text": f"What is {number}? It is {number}.",
        }
        for number in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "rows.jsonl")},
            "cache_dir": str(tmp_path / "datasets"),
        },
        "test_split": "test",
        "fewshot_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 3.0},
    }
    tasks = {
        "choose": {
            "output_type": "multiple_choice",
            "doc_to_choice": "options",
            "doc_to_target": "answer",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
        },
        "say": {
            "output_type": "generate_until",
            "doc_to_target": "{{options[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        "read": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [
                {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
            ],
        },
    }
    for name, own in tasks.items():
        (path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **own}))
    both = {"group": "both", "task": ["choose", "say"]}
    both["aggregate_metric_list"] = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    (path / "both.yaml").write_text(yaml.safe_dump(both))
    return path


def asking(folder: Path, *tasks: str, **changes: Any) -> KnowledgeConfig:
    return KnowledgeConfig(tasks=list(tasks), include_path=str(folder), **changes)


def harness_of(*given: Any) -> Any:
    # That package takes seconds to import, and these tests alone need it.
    from pluralign.evaluation.harness import Harness

    return Harness(*given)


def said_by_itself(model: Any, population: Any, folder: Path, *tasks: str, **changes: Any) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` says of a model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[str(folder)], include_defaults=False)
    lm = HFLM(pretrained=model, tokenizer=population.base.tokenizer, batch_size=3)
    found: dict[str, Any] = simple_evaluate(lm, tasks=list(tasks), task_manager=manager, log_samples=False, **changes)[
        "results"
    ]
    return found


def test_figures_of_base_and_people_are_those_of_lm_eval_itself(population: Any, make_rows: Rows, folder: Path) -> None:
    users = ["ann", "ben", "cem"]
    adapters = {user: population.adapter(user, 0.6, seed=number) for number, user in enumerate(users)}
    config = adapters["cem"] / "adapter_config.json"
    # Nothing that a bank takes: it runs by itself.
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    tasks = ("choose", "say", "read")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    held_out = population.anchored(make_rows(users, pairs=1))
    found = population.evaluate(adapters, held_out, generate=False, knowledge=asking(folder, *tasks)).as_dict()
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    values = []
    base = said_by_itself(population.base.model, population, folder, *tasks)
    for user, path in adapters.items():
        policy = load_adapter(population.base, path)
        own = said_by_itself(policy, population, folder, *tasks)
        detach_adapter(policy)
        person = found["people"][user]["knowledge"]
        for task, metric, count in (
            ("choose", "acc", True),
            ("choose", "acc_norm", False),
            ("say", "exact_match", True),
        ):
            figure = person["tasks"][task]["metrics"][metric]
            assert (figure["value"], figure["base"]) == (own[task][f"{metric},none"], base[task][f"{metric},none"])
            assert figure["stderr"] == pytest.approx(own[task][f"{metric}_stderr,none"])
            assert figure["base_stderr"] == pytest.approx(base[task][f"{metric}_stderr,none"])
            assert figure["difference"] == figure["value"] - figure["base"]
            assert (person["tasks"][task]["headline"] == metric) == count
        bytes_ = person["tasks"]["read"]["metrics"]["byte_perplexity"]
        assert bytes_["value"] == pytest.approx(own["read"]["byte_perplexity,none"], rel=1e-4)
        assert bytes_["base"] == pytest.approx(base["read"]["byte_perplexity,none"], rel=1e-4)
        assert bytes_["stderr"] is None and not person["tasks"]["read"]["in_score"]
        assert person["score"] == pytest.approx((own["choose"]["acc,none"] + own["say"]["exact_match,none"]) / 2)
        assert person["difference"] == pytest.approx(person["score"] - person["base_score"])
        values.append(bytes_["value"])
    assert len(set(values)) == 3
    summary = found["summary"]
    assert summary["knowledge.difference.worst"] == min(
        found["people"][user]["knowledge"]["difference"] for user in users
    )
    facts = found["base"]["knowledge"]["tasks"]
    assert facts["choose"] == {"version": 3.0, "num_fewshot": 0, "documents": 12}


def test_examples_limits_and_turns_go_to_lm_eval(population: Any, folder: Path) -> None:
    population.base.model.config.max_position_embeddings = 1024
    for changes in ({"num_fewshot": 2, "limit": 5}, {"apply_chat_template": True, "limit": 0.5}):
        told = harness_of(population.base, asking(folder, "choose", **changes)).ask(bare(population.base))
        alone = said_by_itself(population.base.model, population, folder, "choose", **changes)["choose"]
        assert told.figures["choose"]["acc_norm"].value == alone["acc_norm,none"]
        assert told.documents["choose"] == (5 if "num_fewshot" in changes else 6)


def test_a_group_counts_once(population: Any, folder: Path) -> None:
    harness = harness_of(population.base, asking(folder, "both", "read"))
    told = harness.ask(bare(population.base))
    assert set(told.figures) == {"both", "choose", "say", "read"} and told.headlines == {"both": "acc"}
    assert told.score() == told.figures["both"]["acc"].value


def test_what_is_no_number_is_no_knowledge(population: Any, make_rows: Rows, folder: Path) -> None:
    adapters = {"ann": population.adapter("ann", float("nan"), seed=1), "ben": population.adapter("ben")}
    held_out = population.anchored(make_rows(["ann", "ben"], pairs=1))
    found = population.evaluate(adapters, held_out, generate=False, knowledge=asking(folder, "choose")).as_dict()
    ruined, whole = (found["people"][user]["knowledge"] for user in ("ann", "ben"))
    assert ruined["score"] is ruined["difference"] is ruined["tasks"]["choose"]["metrics"]["acc"]["value"] is None
    assert ruined["undefined"] == 36 and whole["undefined"] == whole["difference"] == 0
    assert found["summary"]["knowledge.difference.worst_person"] == "ben"


def test_a_task_that_is_not_there_is_named_with_near_ones(folder: Path) -> None:
    with pytest.raises(InputError, match=r"include_path: nowhere: there is no such folder"):
        check_asked(EvaluationConfig(knowledge=KnowledgeConfig(tasks="choose", include_path="nowhere")))
    with pytest.raises(InputError, match=r"no task 'arc_eazy'\. Did you mean arc_easy"):
        check_asked(EvaluationConfig(knowledge=KnowledgeConfig(tasks="choose, arc_eazy", include_path=str(folder))))


def test_tasks_that_cannot_be_used_are_named(population: Any, folder: Path, tmp_path: Path) -> None:
    task = yaml.safe_load((folder / "choose.yaml").read_text())
    broken = {
        "gone": {"dataset_kwargs": {"data_files": str(tmp_path / "nowhere.jsonl")}},
        "odd": {"metric_list": [{"metric": "glue", "aggregation": "mean", "higher_is_better": True}]},
        "long": {"doc_to_text": "{{question * 100}}"},
    }
    for name, changes in broken.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**task, "task": name, **changes}))
    with pytest.raises(InputError, match="task gone: cannot be loaded"):
        harness_of(population.base, asking(folder, "gone"))
    with pytest.raises(InputError, match="task odd: lm-eval has no metric 'glue'"):
        harness_of(population.base, asking(folder, "odd"))
    with pytest.raises(InputError, match="'choose' is asked for twice"):
        harness_of(population.base, asking(folder, "choose", "both"))
    population.base.tokenizer.chat_template, template = None, population.base.tokenizer.chat_template
    with pytest.raises(InputError, match="no chat template"):
        harness_of(population.base, asking(folder, "choose", apply_chat_template=True))
    population.base.tokenizer.chat_template = template


def test_a_finished_run_is_asked_by_name_and_keeps_its_base(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, on the nano model: the base is loaded once, whoever answers."""
    from pluralign.models import base as loading

    monkeypatch.chdir(tmp_path)
    training = ["train", "--data.path", "world", "--training.max_steps", "2", "--output_dir", "run", "--device", "cpu"]
    assert main([*training, "--evaluation.generate", "false"]) == 0
    assert json.loads(Path("run/evaluation.json").read_text())["base"]["knowledge"] is None
    loaded = []
    monkeypatch.setattr(loading, "_load_model", lambda *given, own=loading._load_model: loaded.append(1) or own(*given))
    keys = {"tasks": "choose,say", "include_path": str(folder), "limit": "6"}
    named = [word for key, value in keys.items() for word in (f"--evaluation.knowledge.{key}", value)]
    assert main(["evaluate", "--run", "run", "--evaluation.generate", "false", *named, "--device", "cpu"]) == 0
    people = json.loads(Path("run/evaluation.json").read_text())["people"]
    assert len(people) > 1 and len(loaded) == 1
    assert {tuple(person["knowledge"]["tasks"]) for person in people.values()} == {("choose", "say")}
