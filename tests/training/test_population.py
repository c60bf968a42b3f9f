"""What a run over people owes each of them: an adapter of their own, whoever else is there, whatever befalls them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import pluralign.training.arguments as arguments
import pluralign.training.population as population
from pluralign.config import AnchorConfig, BaseAnchorConfig
from pluralign.errors import InputError, PluralignError
from pluralign.training import PreferenceTrainer, train
from pluralign.training.index import read_index


@pytest.fixture
def make_config(make_config: Any) -> Any:
    """Runs that train people one after another."""
    return partial(make_config, engine="trainer")


def test_a_run_leaves_what_is_documented(make_rows: Any, make_config: Any, metrics: Any) -> None:
    config = make_config(make_rows(["a", "../..", "émile 🙂"]))
    result = train(config)
    assert list(result.adapters) == ["a", "../..", "émile 🙂"]
    assert not result.skipped
    assert read_index(result.output_dir).people == {user: path.name for user, path in result.adapters.items()}
    for path in result.adapters.values():
        assert path.parent == result.output_dir / "adapters"
        info = json.loads((path / "pluralign.json").read_text())
        assert info["base_fingerprint"]
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model), str(path))
    written = yaml.safe_load((result.output_dir / "config.yaml").read_text())
    assert written["parameters"]["rank"] == 4
    assert written["made_with"]["versions"]["torch"] == torch.__version__
    lines = metrics(result.output_dir, "a")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6]
    assert {"rewards/margins", "logps/chosen", "grad_norm", "learning_rate"} <= lines[0].keys()
    evaluation = json.loads((result.output_dir / "evaluation.json").read_text())
    assert set(evaluation["people"]) == set(result.adapters)
    assert sorted(path.name for path in result.output_dir.iterdir()) == [
        "adapters",
        "calls.json",
        "config.yaml",
        "evaluation.json",
        "metrics.jsonl",
    ]


def _b_factors(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for name, tensor in tensors.items() if "lora_B" in name])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_together_equals_alone(dropout: float, make_rows: Any, make_config: Any, weights: Any) -> None:
    changes = {"parameters": {"dropout": dropout}}
    alone = train(make_config(make_rows(["b"]), "alone", **changes))
    together = train(make_config(make_rows(["a", "b", "c"]), "together", **changes))
    turned = train(make_config(make_rows(["c", "b", "a"]), "turned", **changes))
    for other in (together, turned):
        torch.testing.assert_close(weights(other.adapters["b"]), weights(alone.adapters["b"]), rtol=0, atol=0)
    assert not torch.equal(*(_b_factors(weights(together.adapters[user])) for user in "ab"))


def test_a_cache_of_ones_own_changes_only_rounding(
    make_rows: Any, make_config: Any, weights: Any, tmp_path: Path
) -> None:
    together = train(make_config(make_rows(["a", "b"]), "together"))
    alone = train(make_config(make_rows(["b"]), "alone", cache_dir=str(tmp_path / "own")))
    torch.testing.assert_close(weights(alone.adapters["b"]), weights(together.adapters["b"]), rtol=1e-5, atol=1e-6)


def test_another_seed_is_another_adapter(make_rows: Any, make_config: Any, weights: Any) -> None:
    first = train(make_config(make_rows(["a"]), "first"))
    second = train(make_config(make_rows(["a"]), "second", seed=1))
    assert not torch.equal(*(_b_factors(weights(run.adapters["a"])) for run in (first, second)))


def test_the_base_is_left_as_it_was(make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    kept = population.Population._train_person

    def watched(self: Any, *args: Any) -> None:
        before = {name: value.clone() for name, value in self.base.model.state_dict().items()}
        flags = self.base.model.config.use_cache, self.base.model.training
        kept(self, *args)
        torch.testing.assert_close(dict(self.base.model.state_dict()), before, rtol=0, atol=0)
        assert (self.base.model.config.use_cache, self.base.model.training) == flags
        assert not any(value.requires_grad for value in self.base.model.parameters())
        seen.append(args[0])

    monkeypatch.setattr(population.Population, "_train_person", watched)
    train(make_config(make_rows(["a", "b"])))
    assert seen == ["a", "b"]


@pytest.mark.parametrize("per", ["group", "none"])
def test_one_adapter_a_group_or_for_all(per: str, make_rows: Any, make_config: Any) -> None:
    table = make_rows(["a", "b", "c"], pairs=6)
    table = [{**row, "group": "x" if row["user"] == "a" else "y"} for row in table]
    result = train(make_config(table, parameters={"per": per}))
    assert list(result.adapters) == (["x", "y"] if per == "group" else ["_all"])


def test_no_user_column(make_rows: Any, make_config: Any) -> None:
    table = [{key: value for key, value in row.items() if key != "user"} for row in make_rows(["a"])]
    result = train(make_config(table))
    assert result.adapters == {"_all": result.output_dir / "adapters" / "_all"}


def test_full_fine_tuning(make_rows: Any, make_config: Any) -> None:
    config = make_config(
        make_rows(["a", "b"]), parameters={"per": "none", "kind": "full"}, training={"learning_rate": 1e-3}
    )
    result = train(config)
    assert result.adapters == {"_all": result.output_dir / "model"}
    base = AutoModelForCausalLM.from_pretrained(config.model)
    before = base.state_dict()
    model = AutoModelForCausalLM.from_pretrained(result.output_dir / "model")
    assert model.config.use_cache == base.config.use_cache
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items() if "proj" in name)
    assert train(config).adapters == result.adapters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"kind": "full"}}, "parameters.per is user"),
        ({"parameters": {"kind": "full", "per": "none"}, "reference": {"compute": "forward"}}, "reference.compute"),
        ({"training": {"extra_arguments": {"warmup_step": 3}}}, "Did you mean 'warmup_steps'"),
        ({"training": {"extra_arguments": {"learning_rate": 3}}}, "Set training.learning_rate"),
        ({"training": {"extra_arguments": {"push_to_hub": True}}}, "nothing is published"),
        ({"training": {"extra_arguments": {"train_sampling_strategy": "group_by_length"}}}, "train_sampling_strategy"),
        ({"training": {"extra_arguments": {"tf32": "no"}}}, "'tf32'.*the text 'no'. It must be true or false"),
        ({"training": {"extra_arguments": {"logging_strategy": False}}}, "refuses.*IntervalStrategy"),
        ({"training": {"lr_scheduler_type": "sideways"}}, "refuses"),
        ({"training": {"per_device_train_batch_size": 0}}, "at least 1"),
        ({"training": {"early_stopping_patience": 1, "eval_strategy": "no"}}, "eval_strategy"),
        ({"training": {"report_to": "nobody"}}, r"training\.report_to.*nobody"),
        ({"weighting": {"column": "wieght"}}, "no row has the column 'wieght'"),
        ({"loss": {"beta": 0.0}}, "loss.beta"),
        ({"evaluation": {"probes": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"parameters": {"target_modules": ["query"]}, "engine": "trainer"}, "There are: .*q_proj"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, make_rows: Any, make_config: Any
) -> None:
    config = make_config(make_rows(["a"], pairs=4), **changes)
    with pytest.raises(InputError, match=message):
        train(config)
    assert not Path(config.output_dir).exists()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise RuntimeError("it requires tensorboard to be installed")

    monkeypatch.setattr(arguments, "get_reporting_integration_callbacks", lambda names: [absent])
    config = make_config(make_rows(["a"], pairs=4), training={"report_to": "tensorboard"})
    with pytest.raises(InputError, match="requires tensorboard"):
        train(config)
    assert not Path(config.output_dir).exists()


def test_probes_that_the_model_cannot_be_asked_are_refused_before_training(
    make_rows: Any, make_config: Any, tmp_path: Path
) -> None:
    probes = tmp_path / "probes.jsonl"
    probes.write_text('{"question": [{"role": "user", "content": "?"}], "options": ["a", "b"], "answer": 0}\n')
    config = make_config(make_rows(["a"], pairs=4), evaluation={"probes": str(probes)})
    with pytest.raises(InputError, match=r"probes\.jsonl, row 1: .*no chat template"):
        train(config)
    assert not (Path(config.output_dir) / "metrics.jsonl").exists()


def test_a_person_whose_validation_lacks_the_metric_costs_the_others_nothing(make_rows: Any, make_config: Any) -> None:
    """Prompts without a pair have no accuracy."""
    prompts = [{"user": "b", "prompt": row["prompt"], "base": " the river"} for row in make_rows(["b"], 8)]
    table = prompts + make_rows(["a"], 8)
    anchor, training = AnchorConfig(BaseAnchorConfig(weight=0.3)), {"metric_for_best_model": "rewards/accuracies"}
    result = train(make_config(table, anchor=anchor, training=training))
    assert list(result.adapters) == ["a"]
    assert "'rewards/accuracies'" in result.skipped["b"] and "logps/base" in result.skipped["b"]


def test_bad_people_are_reported_and_cost_the_others_nothing(
    make_rows: Any, make_config: Any, weights: Any, metrics: Any
) -> None:
    good = make_rows(["good"], weight=lambda number: 1.0)
    row = {"prompt": "Q :", "chosen": " a", "rejected": " b", "weight": 1.0}
    bad = [
        {**row, "user": "empty", "chosen": ""},
        {**row, "user": "one-sided", "rejected": None},
        {
            "user": "messages",
            "prompt": [{"role": "user", "content": "Q"}],
            "chosen": " a",
            "rejected": " b",
            "weight": 1.0,
        },
        {**row, "user": "weighed", "weight": -1.0},
        {**row, "user": "light", "weight": 0.0},
        {**row, "user": "single"},
    ]
    alone = train(make_config(good, "alone", weighting={"column": "weight"}))
    with pytest.warns(UserWarning, match="rows left out"):
        result = train(make_config(bad[:3] + good + bad[3:], "all", weighting={"column": "weight"}))
    assert sorted(result.adapters) == ["good", "single"]
    assert set(result.skipped) == {"empty", "one-sided", "messages", "weighed", "light"}
    assert "row 1" in result.skipped["empty"]
    assert "chat template" in result.skipped["messages"]
    assert "-1.0" in result.skipped["weighed"]
    assert result.skipped["light"] == "all weights in column 'weight' are 0"
    assert read_index(result.output_dir).skipped == result.skipped
    assert not any("eval_loss" in line for line in metrics(result.output_dir, "single"))
    torch.testing.assert_close(weights(result.adapters["good"]), weights(alone.adapters["good"]), rtol=0, atol=0)
    assert train(make_config(bad[:3] + good + bad[3:], "all", weighting={"column": "weight"})) == result


def test_nobody_left_is_an_error(make_config: Any) -> None:
    table = [{"user": "a", "prompt": "Q", "chosen": "x", "rejected": None}]
    with pytest.raises(InputError, match="nobody can be trained"):
        train(make_config(table))


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_loss_that_is_no_number_stops_one_person(
    checkpoint: bool, make_rows: Any, make_config: Any, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 5 on the loss of one person is NaN; what was good at the checkpoint of step 3 is kept."""
    good: dict[int, dict[str, torch.Tensor]] = {}
    kept_loss, kept_save = PreferenceTrainer.compute_loss, PreferenceTrainer._save_checkpoint

    def broken(self: Any, *args: Any, **options: Any) -> Any:
        loss = kept_loss(self, *args, **options)
        return loss * math.nan if self.args.run_name == "b" and self.state.global_step == 4 else loss

    def watched(self: Any, *args: Any) -> None:
        kept_save(self, *args)
        if self.args.run_name == "b":
            tensors = get_peft_model_state_dict(self.model, save_embedding_layers=False)
            good[self.state.global_step] = {name: tensor.clone() for name, tensor in tensors.items()}

    training = {"save_strategy": "epoch" if checkpoint else "no"}
    reference = train(make_config(make_rows(["a", "c"]), "reference", training=training))
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", broken)
    monkeypatch.setattr(PreferenceTrainer, "_save_checkpoint", watched)
    config = make_config(make_rows(["a", "b", "c"]), training=training)
    result = train(config)
    assert "not finite" in result.skipped["b"] and "step 5" in result.skipped["b"]
    for user in "ac":
        torch.testing.assert_close(weights(result.adapters[user]), weights(reference.adapters[user]), rtol=0, atol=0)
    if checkpoint:
        assert "step 3" in result.skipped["b"]
        assert json.loads((result.adapters["b"] / "pluralign.json").read_text())["note"] == result.skipped["b"]
        torch.testing.assert_close(weights(result.adapters["b"]), good[3], rtol=0, atol=0)
    else:
        assert "b" not in result.adapters
    assert not (result.output_dir / "state").exists()
    monkeypatch.undo()
    assert train(config) == result


@pytest.mark.parametrize("writer", ["python", "torch", "safetensors"])
def test_a_full_disk(
    writer: str, make_rows: Any, make_config: Any, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the second person, in the words of the three writers that there are."""
    config = make_config(make_rows(["a", "b"]))
    undisturbed = train(make_config(make_rows(["a", "b"]), "undisturbed"))
    error = {
        "python": OSError(28, "No space left on device"),
        "torch": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
    }[writer]
    kept_save, kept_scaler = population.save_adapter, PreferenceTrainer._save_scaler

    def adapter(policy: Any, folder: Path, **options: Any) -> None:
        if options["user"] == "b" and writer == "python":
            raise error
        kept_save(policy, folder, **options)

    def checkpoint(self: Any, folder: str) -> None:
        if self.args.run_name == "b" and writer != "python":
            raise error
        kept_scaler(self, folder)

    monkeypatch.setattr(population, "save_adapter", adapter)
    monkeypatch.setattr(PreferenceTrainer, "_save_scaler", checkpoint)
    with pytest.raises(PluralignError, match="the disk is full") as caught:
        train(config)
    assert caught.value.exit_code == 2
    assert [path.name for path in (Path(config.output_dir) / "adapters").iterdir() if path.is_dir()] == ["a"]
    assert not list(Path(config.output_dir).rglob(".staging-*"))
    monkeypatch.undo()
    result = train(config)
    for user in "ab":
        torch.testing.assert_close(weights(result.adapters[user]), weights(undisturbed.adapters[user]), rtol=0, atol=0)


def test_another_run_is_refused_and_the_same_one_is_kept(make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["a", "b"]))
    result = train(config)
    stamps = {path: path.stat().st_mtime_ns for path in result.output_dir.rglob("*") if path.is_file()}
    assert train(make_config(make_rows(["a", "b"]), training={"report_to": []})) == result
    assert {path: path.stat().st_mtime_ns for path in stamps if path.name != "index.json"} == {
        path: stamp for path, stamp in stamps.items() if path.name != "index.json"
    }
    with pytest.raises(InputError, match=r"loss\.beta, training\.learning_rate"):
        train(make_config(make_rows(["a", "b"]), loss={"beta": 0.2}, training={"learning_rate": 1e-4}))
    replaced = train(make_config(make_rows(["a", "c"]), overwrite=True))
    assert sorted(replaced.adapters) == ["a", "c"]
    assert not (result.output_dir / "adapters" / "b").exists()


def test_arguments_of_the_trainer_alone_are_part_of_the_run(make_rows: Any, make_config: Any) -> None:
    training = {"extra_arguments": {"adam_beta2": 0.9}, "max_steps": 1}
    config = make_config(make_rows(["a"]), training=training)
    result = train(config)
    assert train(config) == result
    for other in ({}, {"adam_beta2": 0.8}, {"adam_beta1": 0.9}):
        with pytest.raises(InputError, match=r"differs in training\.extra_arguments\. "):
            train(make_config(make_rows(["a"]), training={**training, "extra_arguments": other}))
    assert list(train(make_config(make_rows(["a", "b"]), training=training)).adapters) == ["a", "b"]


def test_a_folder_that_was_moved_goes_on_with_its_best_checkpoint(
    make_rows: Any, make_config: Any, weights: Any, metrics: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped behind its best checkpoint, moved, and gone on with."""
    # Held-out pairs the other way round: whatever is learned makes them worse, and the first epoch is the best.
    table = make_rows(["a"], 12)
    turned = tmp_path / "turned.jsonl"
    rows = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in table]
    turned.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"validation": str(turned)}
    training = {"learning_rate": 0.01, "num_train_epochs": 5, "load_best_model_at_end": True}
    undisturbed = train(make_config(table, "undisturbed", training=training, data=data))
    losses = [line["eval_loss"] for line in metrics(undisturbed.output_dir) if "eval_loss" in line]
    assert losses.index(min(losses)) == 0
    kept = PreferenceTrainer._save_checkpoint

    def stop_at_epoch_4(self: Any, *args: Any) -> None:
        kept(self, *args)
        if self.state.global_step == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(PreferenceTrainer, "_save_checkpoint", stop_at_epoch_4)
    config = make_config(table, "stopped", training=training, data=data)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    moved = Path(config.output_dir).rename(tmp_path / "moved")
    result = train(replace(config, output_dir=str(moved)))
    torch.testing.assert_close(weights(result.adapters["a"]), weights(undisturbed.adapters["a"]), rtol=0, atol=0)


def test_results_without_a_configuration_are_not_touched(make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["a"]))
    (Path(config.output_dir) / "model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no config\.yaml"):
        train(config)
    assert (Path(config.output_dir) / "model").is_dir()


def test_people_who_are_held_out_get_no_adapter_and_are_not_missing(make_rows: Any, make_config: Any) -> None:
    users = ["a", "b", "c"]
    result = train(make_config(make_rows(users), data={"split_by": "user", "validation": 0.34}))
    assert len(result.adapters) == 2
    assert not result.skipped


def test_rows_that_only_anchor(make_rows: Any, make_config: Any, metrics: Any) -> None:
    """Prompts without a pair hold the policy near the base, where the objective has such an anchor."""
    table = make_rows(["a"], 8)
    prompts = [{"user": "a", "prompt": row["prompt"], "base": " the river"} for row in make_rows(["b"], 4)]
    anchor = AnchorConfig(BaseAnchorConfig(weight=0.3))
    result = train(make_config(table + prompts, "anchored", data={"validation": 0.0}, anchor=anchor))
    assert not result.skipped
    assert max(line["step"] for line in metrics(result.output_dir)) == 6
    with pytest.warns(UserWarning, match="there is no chosen and no rejected response"):
        plain = train(make_config(table + prompts, "plain", data={"validation": 0.0}))
    assert max(line["step"] for line in metrics(plain.output_dir)) == 4


def test_weights_that_changed_behind_the_name_are_refused(make_rows: Any, make_config: Any, tmp_path: Path) -> None:
    shutil.copytree(make_config(make_rows(["a"])).model, tmp_path / "model")
    config = make_config(make_rows(["a"]), model=str(tmp_path / "model"))
    first = json.loads((train(config).adapters["a"] / "pluralign.json").read_text())
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match="fingerprint"):
        train(config)
    anew = train(replace(config, overwrite=True))
    info = json.loads((anew.adapters["a"] / "pluralign.json").read_text())
    assert info["base_fingerprint"] != first["base_fingerprint"]
    assert train(config) == anew
