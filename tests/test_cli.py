"""The command line: what a person types, and what comes back."""

import subprocess
import sys

import pytest

from pluralign.cli import COMMANDS, main


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "code",
    [
        "import pluralign",
        "from pluralign.cli import main; main(['--help'])",
        "from pluralign.cli import main; main(['train', '--help'])",
        "from pluralign.cli import main; main(['train', '--print_config'])",
        "from pluralign.cli import main; main(['train', '--metod', 'x'])",
    ],
)
def test_torch_is_not_imported_for(code):
    done = run_python(f"{code}\nimport sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command_and_every_key(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in COMMANDS:
        assert name in overview
        assert main([*name.split(), "--help"]) == 0
        text = capsys.readouterr().out
        undocumented = [
            line
            for line in text.splitlines()
            if line.lstrip().startswith("(type:") and text.splitlines()[text.splitlines().index(line) - 1].strip() == ""
        ]
        assert "--config" in text and not undocumented


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
    ],
)
def test_usage_and_input_errors_exit_2_and_name_the_place(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


def test_no_command_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pluralign ")
