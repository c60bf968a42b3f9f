"""The commands end to end on the embedded world: files in, files out, exit codes."""

import json

import pyarrow.parquet as parquet
import pytest
import yaml

from pluralign.cli import main
from pluralign.world import World

STEPS = ["--training.max_steps", "4", "--training.logging_steps", "2"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three people with sixteen pairs each."""
    path = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    rows = World(0).preferences(3, 16)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A small trained population and its evaluation."""
    folder = tmp_path_factory.mktemp("run") / "out"
    arguments = ["--data", str(table), "--output_dir", str(folder), "--evaluation.probes", "world"]
    assert main(["train", *arguments, "--evaluation.max_probes", "12", "--evaluation.max_prompts", "4", *STEPS]) == 0
    return folder


def users(folder):
    return sorted(json.loads((folder / "adapters" / "index.json").read_text())["people"])


def test_train_leaves_what_the_documentation_says(run, table):
    assert users(run) == ["cheerful-001", "formal-000", "terse-002"]
    for user in users(run):
        names = {path.name for path in (run / "adapters" / user).iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "pluralign.json"} <= names
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["path"] == str(table) and config["made_with"]["data_hash"]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["user"] for line in steps} == set(users(run))
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert set(evaluation) >= {"schema_version", "base", "people", "groups", "summary"}
    assert not list(run.rglob(".staging-*")) and not (run / "state").exists()


def test_the_same_command_again_trains_nobody_and_another_run_is_refused(run, table, capsys):
    before = {path: path.stat().st_mtime_ns for path in (run / "adapters").rglob("*.safetensors")}
    same = ["train", "--config", str(run / "config.yaml")]
    assert main(same) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (run / "adapters").rglob("*.safetensors")}
    assert main([*same, "--loss.beta", "0.5"]) == 2
    assert "loss.beta" in capsys.readouterr().err


def test_a_demo_replaces_no_run(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert main(["demo", "--output_dir", str(run)]) == 2
    assert f"{run}: the folder holds no demo" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_evaluate_says_again_what_train_said(run, tmp_path):
    output = tmp_path / "again.json"
    assert main(["evaluate", "--run", str(run), "--output", str(output)]) == 0
    first, again = (json.loads(path.read_text())["summary"] for path in (run / "evaluation.json", output))
    assert first.keys() == again.keys()
    for key in first:
        assert again[key] == (pytest.approx(first[key], abs=1e-4) if isinstance(first[key], float) else first[key])


def test_compare_holds_lines_and_refuses_what_cannot_be_compared(run, tmp_path, capsys):
    again, before = tmp_path / "again.json", json.loads((run / "evaluation.json").read_text())
    again.write_text(json.dumps(before))
    output = tmp_path / "compared.json"
    held = ["--fail-if", "retention.kept.mean < 0", "--fail_if", "skipped > 0 or pairs.accuracy.mean > 1"]
    assert main(["compare", str(run), str(again), *held, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "figures are over the 3 people that both have" in shown and shown.count("passed: ") == 2
    compared = json.loads(output.read_text())
    assert {one["difference"] for one in compared["differences"].values()} == {0}
    # All conditions count, not the last one alone; and each is on figures of the summary.
    broken = ["--fail-if", "pairs.accuracy.worst >= 0", "--fail-if", "retention.kept.mean < 0"]
    assert main(["compare", str(run), *broken]) == 1
    assert "FAILED: pairs.accuracy.worst >= 0" in capsys.readouterr().out
    questions = {
        "retention.keept.mean < 1": "Did you mean retention.kept.mean",
        "win_rate.raw.mean < 1": "win_rate.raw.mean has no value",
        "retention.kept.mean": "it ends where one of",
        "__import__('os') < 1": "stands at character 1",
        "difference.skipped > 0": "there is one run",
    }
    for condition, named in questions.items():
        assert main(["compare", str(run), "--fail-if", condition]) == 2
        assert named in capsys.readouterr().err
    other = {**before, "base": {**before["base"], "fingerprint": "0" * 64}}
    again.write_text(json.dumps(other))
    assert main(["compare", str(run), str(again)]) == 2
    assert "the bases differ" in capsys.readouterr().err
    assert main(["compare", str(run), str(again), "--different"]) == 0
    assert "NOT THE SAME YARDSTICK: the bases differ" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(tmp_path)]) == 2
    assert "pluralign evaluate --run" in capsys.readouterr().err


def test_win_rates_of_the_worlds_judge_stand_beside_the_evaluation(run, capsys):
    call = ["winrate", str(run), "--annotator.type", "world", "--max_prompts", "2", "--orders", "random"]
    assert main(call) == 0
    assert "against the base, by world" in capsys.readouterr().out
    written = json.loads((run / "winrate" / "base.json").read_text())
    assert list(written["people"]) == list(json.loads((run / "evaluation.json").read_text())["people"])
    assert {one["win_rate"]["n"] for one in written["people"].values()} == {2}
    assert (
        main(["compare", str(run), "--fail-if", "win_rate.raw.mean < 0 or win_rate.length_controlled.worst < 0"]) == 0
    )
    assert main(["winrate", str(run), str(run), "--annotator.type", "world"]) == 2
    assert main(["winrate", str(run)]) == 2
    assert "nobody says which response is better" in capsys.readouterr().err


def test_generate_puts_base_and_person_side_by_side(run, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    question = "What is the gem of Rarvun?"
    command = ["generate", "--run", str(run), "--prompts", question, "--users", "[formal-000]", "--output", str(output)]
    assert main([*command, "--generation.max_new_tokens", "12"]) == 0
    assert "formal-000" in capsys.readouterr().out
    (answer,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert answer["base"] and list(answer["people"]) == ["formal-000"]
    several = [*command[:-4], "--users", "terse-002, formal-000", "--output", str(output)]
    assert main([*several, "--generation.max_new_tokens", "4"]) == 0
    assert list(json.loads(output.read_text().splitlines()[0])["people"]) == ["terse-002", "formal-000"]
    for typed in ("formal-00", "terse-002,formal-00"):
        assert main(["generate", "--run", str(run), "--prompts", question, "--users", typed]) == 2
        assert "nobody has the id 'formal-00'. Did you mean 'formal-000'" in capsys.readouterr().err
    assert main(["generate", "--run", str(tmp_path), "--prompts", question]) == 2
    assert "Give the output folder of `pluralign train`" in capsys.readouterr().err
    assert main(["generate", "--run", str(run), "--prompts", "word " * 600, "--users", "formal-000"]) == 0
    assert "1 had a prompt cut on the left" in capsys.readouterr().err


def test_anchor_writes_a_table_that_train_takes(table, tmp_path):
    anchored = tmp_path / "anchored.parquet"
    assert main(["anchor", "--data", str(table), "--output", str(anchored)]) == 0
    columns = parquet.read_schema(anchored).names
    assert {"prompt", "chosen", "rejected", "base", "ref_chosen_logps", "ref_base_logps"} <= set(columns)
    assert main(["anchor", "--data", str(table), "--output", str(anchored)]) == 2
    out = tmp_path / "run"
    assert main(["train", "--data", str(anchored), "--output_dir", str(out), *STEPS]) == 0
    assert len(users(out)) == 3


def test_data_check_reports_and_fails_on_bad_rows(table, tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["data", "check", str(table), "--model", "nano", "--output", str(report)]) == 0
    assert json.loads(report.read_text())["rows"] == 48
    broken = tmp_path / "broken.jsonl"
    broken.write_text(table.read_text() + '{"user": "x", "prompt": "hi", "chosen": "a", "rejected": ""}\n')
    assert main(["data", "check", str(broken)]) == 1
    assert "row 49" in " ".join(capsys.readouterr().out.split())


def test_world_make_writes_a_world_that_can_be_trained_on(tmp_path):
    out = tmp_path / "world"
    assert main(["world", "make", "--seed", "3", "--out", str(out), "--users", "2", "--pairs_per_user", "20"]) == 0
    assert {"corpus.jsonl", "preferences.jsonl", "probes.jsonl", "world.json"} <= {p.name for p in out.iterdir()}
    assert main(["data", "check", str(out / "preferences.jsonl")]) == 0
    assert main(["world", "make", "--seed", "3", "--out", str(out)]) == 2


def test_a_fully_trained_model_answers_too(table, tmp_path):
    out, output = tmp_path / "run", tmp_path / "answers.jsonl"
    policy = ["--parameters.per", "none", "--parameters.kind", "full", "--method", "dpo"]
    assert main(["train", "--data", str(table), "--output_dir", str(out), *policy, *STEPS]) == 0
    assert (out / "model" / "model.safetensors").is_file()
    command = ["generate", "--run", str(out), "--prompts", "What is the gem of Rarvun?", "--output", str(output)]
    assert main([*command, "--generation.max_new_tokens", "4"]) == 0
    assert list(json.loads(output.read_text())["people"]) == ["_all"]


def test_one_bad_person_costs_the_others_nothing(table, tmp_path, capsys):
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(table.read_text() + '{"user": "ed", "prompt": "hi", "chosen": "same", "rejected": "same"}\n')
    out = tmp_path / "run"
    assert main(["train", "--data", str(mixed), "--output_dir", str(out), *STEPS]) == 1
    assert "skipped 'ed'" in capsys.readouterr().out
    assert len(users(out)) == 3
