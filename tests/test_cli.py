"""The command line: what a person types, and what comes back."""

import errno
import subprocess
import sys
from dataclasses import asdict

import pytest
import yaml

from pluralign import storage
from pluralign.cli import COMMANDS, main
from pluralign.resolve import flat


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "code",
    [
        "import pluralign",
        "from pluralign.cli import main; main(['--help'])",
        "from pluralign.cli import main; assert main(['train', '--help']) == 0",
        "from pluralign.cli import main; assert main(['train', '--print_config']) == 0",
        "from pluralign.cli import main; assert main(['train', '--metod', 'x']) == 2",
    ],
)
def test_torch_is_not_imported_for(code):
    done = run_python(f"{code}\nimport sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_and_explains_every_key(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name in overview
        assert main([*name.split(), "--help"]) == 0
        # Each key's help stands between its name and the type, or the next key.
        _, *entries = " ".join(capsys.readouterr().out.split()).split(" --")
        explained = {entry.split()[0].rstrip("+") for entry in entries if len(entry.partition("(type:")[0].split()) > 3}
        assert {key for key, value in flat(asdict(command.config())).items() if value is not None} <= explained
        assert {"config", "print_config"} <= {entry.split()[0].rstrip("]") for entry in entries}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_print_config_prints_is_what_config_reads(name, capsys, tmp_path):
    assert main([*name.split(), "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == asdict(COMMANDS[name].config()) or name == "train"
    file = tmp_path / "printed.yaml"
    file.write_text(printed)
    assert main([*name.split(), "--config", str(file), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(printed)


def test_a_later_config_file_and_then_the_command_line_win(capsys, tmp_path):
    (tmp_path / "one.yaml").write_text("seed: 1\nloss: {beta: 0.5}\ntraining: {learning_rate: 5e-3}\n")
    (tmp_path / "two.yaml").write_text("seed: 2\noutput_dir: two\n")
    files = [f"--config={tmp_path / 'one.yaml'}", "--config", str(tmp_path / "two.yaml")]
    assert main(["train", *files, "--output_dir", "three", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["loss"]["beta"], printed["output_dir"]) == (2, 0.5, "three")
    # YAML takes 5e-3, without a point, for text.
    assert printed["training"]["learning_rate"] == 0.005


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("training: {max_steps: x}", 'key "training.max_steps"'),
        ("loss: 3", "'loss' is a group of keys"),
        ("loss:", "'loss' is a group of keys"),
        ("3: 4", "'3' is no key"),
        ("losss: {beta: 1}", "'losss.beta' is no key. Did you mean 'loss.beta'"),
        ("", "is empty"),
        ("a: [", "not a YAML file"),
    ],
)
def test_a_config_file_is_checked_like_the_command_line(text, named, capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert main(["train", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and named in error


def test_outputs_that_cannot_be_written_are_errors_in_words(capsys, tmp_path, monkeypatch):
    table = tmp_path / "table.jsonl"
    table.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    check = ["data", "check", str(table), "--output"]
    assert main([*check, str(tmp_path)]) == 2
    assert f"{tmp_path}: it is a folder" in capsys.readouterr().err
    assert main([*check, str(table / "report.json")]) == 2
    assert f"{table} is a file, not a folder" in capsys.readouterr().err
    assert main(["world", "make", "--out", str(table / "world"), "--users", "1", "--pairs_per_user", "2"]) == 2
    assert str(table) in capsys.readouterr().err

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    assert main([*check, str(tmp_path / "report.json")]) == 2
    assert f"{tmp_path / 'report.json'}: No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["table.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "no command 'trian'"),
        (["train", "--method", "dppo"], "Did you mean 'dpo'"),
        (["train", "--loss.betta", "1"], "loss.beta"),
        (["train", "--config", "absent.yaml"], "absent.yaml: there is no such file"),
        (["train", "--data", "absent.jsonl"], "absent.jsonl"),
        (["data", "check", "absent.jsonl"], "absent.jsonl"),
        (["evaluate", "--run", "absent"], "absent"),
        (["generate", "--run", "absent", "--prompts", "x"], "absent"),
        (["report", "absent"], "absent: there is no config.yaml"),
        (["report", "one", "[two, 2]", "one", "--output", "x.html"], "one: the run is given twice"),
        (["report"], "no run is given"),
        (["fewshot", "fit", "one.jsonl", "--data", "two.jsonl"], "--data is given twice"),
    ],
)
def test_usage_and_input_errors_exit_2_and_name_the_place(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


def test_no_command_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_the_first_word_of_some_commands_lists_them(capsys):
    assert main(["fewshot", "--help"]) == 0
    listed = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == [["fewshot", word] for word in ("fit", "predict", "ask", "evaluate")]
    assert main(["people"]) == 2
    assert "people remove" in capsys.readouterr().out
    assert main(["fewshot", "guess"]) == 2
    assert "no command 'fewshot guess'" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pluralign ")
