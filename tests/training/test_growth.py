"""A finished folder lives on: new people join, named ones are trained anew, and nobody else is touched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pluralign.config import EvaluateConfig
from pluralign.errors import InputError
from pluralign.evaluation import evaluate
from pluralign.training import PreferenceTrainer, train
from pluralign.training.bank.learner import Learner
from pluralign.training.index import read_index

ENGINES = ["trainer", "bank"]


def files_of(*folders: Path) -> dict[Path, tuple[bytes, int]]:
    """Bytes and time of change of every file."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def lines_of(run: Path, user: str) -> list[str]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if json.loads(line)["user"] == user]


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("engine", ENGINES)
def test_new_people_join_and_nobody_else_is_touched(
    engine: str, make_rows: Any, make_config: Any, weights: Any, same_figures: Any
) -> None:
    """As if they had been there from the start: adapters, metrics, index and evaluation."""
    whole = train(make_config(make_rows(["a", "b", "c"]), "whole", engine=engine))
    run = train(make_config(make_rows(["a", "b"]), engine=engine)).output_dir
    before = files_of(run / "adapters" / "a", run / "adapters" / "b")
    measured = {user: read(run, "evaluation.json")["people"][user] for user in "ab"}
    told = {user: lines_of(run, user) for user in "ab"}
    # The table under another name, as tables that grow often are.
    config = make_config(make_rows(["a", "b", "c"]), "grown", output_dir=str(run), engine=engine)
    grown = train(config)
    assert files_of(run / "adapters" / "a", run / "adapters" / "b") == before
    assert grown.adapters == {user: run / "adapters" / user for user in "abc"}
    assert not grown.skipped and not grown.changed and not grown.absent
    exact = {"rtol": 0, "atol": 0} if engine == "trainer" else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(weights(grown.adapters["c"]), weights(whole.adapters["c"]), **exact)
    assert {user: lines_of(run, user) for user in "ab"} == told
    assert [json.loads(line)["step"] for line in lines_of(run, "c")] == [
        json.loads(line)["step"] for line in lines_of(whole.output_dir, "c")
    ]
    assert (run / "adapters" / "index.json").read_bytes() == (whole.output_dir / "adapters" / "index.json").read_bytes()
    evaluation, expected = read(run, "evaluation.json"), read(whole.output_dir, "evaluation.json")
    assert {user: evaluation["people"][user] for user in "ab"} == measured
    assert list(evaluation["people"]) == ["a", "b", "c"] and evaluation["summary"]["people"] == 3
    assert list(evaluation["people"]["c"]["cross"]["people"]) == ["c", "a", "b"]
    assert evaluation["base"]["held_out"] == expected["base"]["held_out"]
    if engine == "trainer":
        same_figures(evaluation["people"]["c"], expected["people"]["c"])
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["data"]["path"] == config.data.path
    assert len(written["made_with"]["earlier_data"]) == 1
    names = ["adapters", "calls.json", "config.yaml", "evaluation.json", "metrics.jsonl"]
    assert sorted(path.name for path in run.iterdir()) == names
    first, second = read(run, "calls.json")["calls"]
    assert (first["people"], second["people"]) == (2, 1) and first["machine"] == second["machine"]
    assert list(second["seconds"]) == ["preparation", "training", "evaluation"]
    assert min(second["seconds"].values()) >= 0 and second["peak_memory_bytes"] > 10_000_000
    assert second["machine"]["cores"] >= 1 and second["machine"]["memory_bytes"] > second["peak_memory_bytes"]
    # The same again has nothing to do.
    stamps = files_of(run)
    assert train(config) == grown
    assert {path: kept for path, kept in files_of(run).items() if path.name != "index.json"} == {
        path: kept for path, kept in stamps.items() if path.name != "index.json"
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_named_people_are_trained_anew(
    engine: str, make_rows: Any, make_config: Any, weights: Any, same_figures: Any
) -> None:
    changed = make_rows(["a", "c"]) + make_rows(["b"], pairs=20)
    changed.sort(key=lambda row: row["user"])
    whole = train(make_config(changed, "whole", engine=engine))
    run = train(make_config(make_rows(["a", "b", "c"]), engine=engine)).output_dir
    before = files_of(run)
    config = make_config(changed, output_dir=str(run), engine=engine)
    left = train(config)
    assert left.changed == ["b"]
    with pytest.warns(UserWarning, match="1 adapters were made from other rows .*: b"):
        evaluate(EvaluateConfig(run=str(run), output=str(run / "other.json"), device="cpu"))
    (run / "other.json").unlink()
    adapters = [path for path in before if "adapters" in path.parts and path.name != "index.json"]
    assert {path: files_of(run)[path] for path in adapters} == {path: before[path] for path in adapters}
    assert (run / "metrics.jsonl").read_bytes() == before[run / "metrics.jsonl"][0]
    updated = train(replace(config, update="b"))
    assert updated.changed == [] and list(updated.adapters) == ["a", "b", "c"]
    exact = {"rtol": 0, "atol": 0} if engine == "trainer" else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(weights(run / "adapters" / "b"), weights(whole.adapters["b"]), **exact)
    after = files_of(run)
    others = [path for path in adapters if path.parent.name != "b"]
    assert {path: after[path] for path in others} == {path: before[path] for path in others}
    steps = [json.loads(line)["step"] for line in lines_of(run, "b")]
    assert steps == [json.loads(line)["step"] for line in lines_of(whole.output_dir, "b")]
    assert "b" not in (run / "config.yaml").read_text().split("update:")[1].partition("\n")[0]
    evaluation, expected = read(run, "evaluation.json"), read(whole.output_dir, "evaluation.json")
    assert evaluation["people"]["b"]["pairs"]["n"] == expected["people"]["b"]["pairs"]["n"]
    if engine == "trainer":
        same_figures(evaluation["people"]["b"], expected["people"]["b"])


def test_whoever_left_the_table_stays(make_rows: Any, make_config: Any) -> None:
    run = train(make_config(make_rows(["a", "b"]))).output_dir
    before = files_of(run / "adapters" / "b")
    measured = read(run, "evaluation.json")["people"]["b"]
    grown = train(make_config(make_rows(["a", "c"]), output_dir=str(run)))
    assert grown.absent == ["b"] and set(grown.adapters) == {"a", "b", "c"}
    assert files_of(run / "adapters" / "b") == before
    assert read(run, "evaluation.json")["people"]["b"] == measured
    assert lines_of(run, "b")
    with pytest.raises(InputError, match=r"'b' cannot be trained anew: the table has no row"):
        train(make_config(make_rows(["a", "c"]), output_dir=str(run), update="b"))
    found = evaluate(EvaluateConfig(run=str(run), device="cpu"))
    assert found.people["b"]["pairs"]["n"] == 0


def test_unknown_people_are_refused_with_near_ones(make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["alice", "bob"], pairs=4))
    run = train(config).output_dir
    before = files_of(run)
    with pytest.raises(InputError, match=r"nobody has the id 'alcie'. Did you mean 'alice'"):
        train(replace(config, update="bob,alcie"))
    with pytest.raises(InputError, match="There are 'alice', 'bob'"):
        train(replace(config, update=["zz"]))
    assert files_of(run) == before


def test_an_id_with_a_comma_is_one_id_where_somebody_has_it(make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["a,b", "c"], pairs=4))
    first = train(config)
    stamp = (first.adapters["a,b"] / "pluralign.json").stat().st_mtime_ns
    again = train(replace(config, update="a,b"))
    assert (again.adapters["a,b"] / "pluralign.json").stat().st_mtime_ns > stamp
    assert train(replace(config, update=["a,b", "c"])).adapters == first.adapters


def test_another_configuration_is_another_run_and_so_is_an_unfinished_ones_table(
    make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(make_rows(["a", "b"]), engine="trainer")
    run = train(config).output_dir
    with pytest.raises(InputError, match=r"differs in loss\.beta, the content of the data"):
        train(make_config(make_rows(["a", "c"]), output_dir=str(run), loss={"beta": 0.2}, engine="trainer"))
    kept = PreferenceTrainer._save_checkpoint

    def stop(self: Any, *args: Any) -> None:
        kept(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(PreferenceTrainer, "_save_checkpoint", stop)
    grown = make_config(make_rows(["a", "b", "c"]), "grown", output_dir=str(run), engine="trainer")
    with pytest.raises(KeyboardInterrupt):
        train(grown)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"the content of the data. It is not finished"):
        train(make_config(make_rows(["a", "b", "d"]), "other", output_dir=str(run), engine="trainer"))
    assert list(train(grown).adapters) == ["a", "b", "c"]


def test_a_finished_population_grows_with_another_engine(make_rows: Any, make_config: Any, weights: Any) -> None:
    whole = train(make_config(make_rows(["a", "b", "c"]), "whole", engine="trainer"))
    run = train(make_config(make_rows(["a", "b"]), engine="trainer")).output_dir
    before = files_of(run)
    # Nothing to do, and nothing done.
    train(make_config(make_rows(["a", "b"]), engine="bank", bank={"slots": 1}))
    assert {path: kept for path, kept in files_of(run).items() if path.name != "index.json"} == {
        path: kept for path, kept in before.items() if path.name != "index.json"
    }
    grown = train(make_config(make_rows(["a", "b", "c"]), engine="bank", bank={"slots": 1, "batch_tokens": 64}))
    torch.testing.assert_close(weights(grown.adapters["c"]), weights(whole.adapters["c"]), rtol=1e-4, atol=1e-6)
    adapters = [path for path in before if path.parent.parent.name == "adapters"]
    assert {path: files_of(run)[path] for path in adapters} == {path: before[path] for path in adapters}
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["engine"], written["bank"]) == ("bank", {"slots": 1, "batch_tokens": 64})


def test_what_is_begun_goes_on_with_its_engine(
    make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch, weights: Any
) -> None:
    """A first run, and the growth of one that another engine has made."""
    kept = PreferenceTrainer._save_checkpoint

    def stop(self: Any, *args: Any) -> None:
        kept(self, *args)
        raise KeyboardInterrupt

    def killed(config: Any) -> None:
        monkeypatch.setattr(PreferenceTrainer, "_save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config)
        monkeypatch.undo()

    def refused(config: Any, message: str) -> None:
        before = files_of(Path(config.output_dir))
        with pytest.raises(InputError, match=message):
            train(config)
        assert files_of(Path(config.output_dir)) == before

    first, grown = make_rows(["a", "b"]), make_rows(["a", "b", "c"])
    killed(make_config(first, engine="trainer"))
    message = "the run is not finished, and was begun with engine trainer. .*engine may be another once it is finished"
    refused(make_config(first, engine="bank"), message)
    refused(make_config(first, engine="trainer", bank={"slots": 3}), "begun with bank.slots of its own choice")
    run = train(make_config(first, engine="trainer")).output_dir
    train(make_config(first, engine="bank", update="a"))
    killed(make_config(grown, engine="trainer"))
    refused(make_config(grown, engine="bank"), message)
    whole = train(make_config(grown, "whole", engine="trainer"))
    ended = train(make_config(grown, engine="trainer"))
    assert ended.output_dir == run
    torch.testing.assert_close(weights(ended.adapters["c"]), weights(whole.adapters["c"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["bank", "trainer"])
@pytest.mark.parametrize("good_steps", [0, 1])
def test_a_failed_update_leaves_the_adapter_that_was_there(
    good_steps: int, engine: str, make_rows: Any, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the steps before the broken one could be kept."""
    training = {"save_strategy": "steps", "save_steps": 1}
    config = make_config(make_rows(["a", "b"]), training=training, engine=engine)
    run = train(config).output_dir
    before = files_of(run / "adapters" / "b")
    loss, clip = PreferenceTrainer.compute_loss, Learner.clip

    def factor(trained: Any) -> float:
        return float("nan") if trained.state.global_step >= good_steps else 1.0

    monkeypatch.setattr(
        PreferenceTrainer, "compute_loss", lambda self, *args, **kw: loss(self, *args, **kw) * factor(self)
    )
    monkeypatch.setattr(Learner, "clip", lambda self: clip(self) * factor(self))
    failed = train(replace(config, update="b"))
    monkeypatch.undo()
    assert files_of(run / "adapters" / "b") == before
    assert f"not finite (NaN or infinite) at step {good_steps + 1}; the adapter before it stays" in failed.skipped["b"]
    assert list(failed.adapters) == ["a", "b"]
    assert read_index(run) == ({"a": "a", "b": "b"}, failed.skipped)
    assert train(config).skipped == failed.skipped
    assert not train(replace(config, update="b")).skipped


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_one_policy_for_all_is_trained_anew_by_name_only(kind: str, make_rows: Any, make_config: Any) -> None:
    settings = {"parameters": {"per": "none", "kind": kind}, "training": {"max_steps": 2}}
    run = train(make_config(make_rows(["a"]), **settings)).output_dir
    place = run / "model" if kind == "full" else run / "adapters" / "_all"
    before = files_of(place)
    grown = make_config(make_rows(["a", "b"]), output_dir=str(run), **settings)
    with pytest.raises(InputError, match=r"content of the data. --update _all"):
        train(grown)
    assert files_of(place) == before
    train(replace(grown, update="_all"))
    assert files_of(place) != before
    assert set(read(run, "evaluation.json")["people"]) == {"a", "b"}


def test_folders_of_older_versions_grow_too(make_rows: Any, make_config: Any) -> None:
    """No hash of rows in the adapters, and keys of the configuration that were not there yet."""
    run = train(make_config(make_rows(["a", "b"], pairs=4))).output_dir
    for path in run.glob("adapters/*/pluralign.json"):
        info = {key: value for key, value in json.loads(path.read_text()).items() if key != "made_from"}
        path.write_text(json.dumps(info))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if k not in ("update", "bank")}))
    before = files_of(run / "adapters" / "a", run / "adapters" / "b")
    with pytest.warns(UserWarning, match="of 2 people nothing says"):
        grown = train(make_config(make_rows(["a", "b", "c"], pairs=4), output_dir=str(run)))
    assert grown.changed == [] and list(grown.adapters) == ["a", "b", "c"]
    assert files_of(run / "adapters" / "a", run / "adapters" / "b") == before


def test_an_evaluation_with_other_settings_is_made_anew(make_rows: Any, make_config: Any) -> None:
    run = train(make_config(make_rows(["a", "b"], pairs=8))).output_dir
    content = read(run, "evaluation.json")
    content["base"]["settings"]["cross_table"] = 0
    content["people"]["a"]["cross"] = None
    (run / "evaluation.json").write_text(json.dumps(content))
    train(make_config(make_rows(["a", "b", "c"], pairs=8), output_dir=str(run)))
    assert list(read(run, "evaluation.json")["people"]["a"]["cross"]["people"]) == ["a", "b", "c"]


def test_a_run_that_lost_an_adapter_makes_it_again(make_rows: Any, make_config: Any, weights: Any) -> None:
    config = make_config(make_rows(["a", "b"], pairs=4), engine="trainer")
    first = train(config)
    kept = weights(first.adapters["a"])
    shutil.rmtree(first.adapters["a"])
    assert train(config).adapters.keys() == first.adapters.keys()
    torch.testing.assert_close(weights(first.adapters["a"]), kept, rtol=0, atol=0)


def test_who_had_no_adapter_is_tried_again_on_another_table(make_rows: Any, make_config: Any) -> None:
    bad = {"user": "c", "prompt": "Q :", "chosen": " a", "rejected": ""}
    with pytest.warns(UserWarning, match="rows left out"):
        first = train(make_config([*make_rows(["a", "b"], pairs=4), bad]))
    assert "c" in first.skipped
    good = {**bad, "rejected": " b"}
    grown = train(make_config([*make_rows(["a", "b"], pairs=4), good], output_dir=str(first.output_dir)))
    assert not grown.skipped and "c" in grown.adapters
    assert read_index(first.output_dir).skipped == {}


def test_a_table_that_only_moved_is_found_at_its_new_place(make_rows: Any, make_config: Any) -> None:
    first = make_config(make_rows(["a", "b"], pairs=4), "first")
    result = train(first)
    moved = make_config(make_rows(["a", "b"], pairs=4), "moved", output_dir=first.output_dir)
    Path(str(first.data.path)).unlink()
    assert train(moved) == result
    assert evaluate(EvaluateConfig(run=first.output_dir, device="cpu")).people.keys() == {"a", "b"}
