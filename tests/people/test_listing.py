"""Who there is, in a table and as JSON, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pluralign.cli import main


def test_everybody_is_listed(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "people.json"
    assert main(["people", "list", str(trained.run), "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    people = {entry["user"]: entry for entry in json.loads(out.read_text())["people"]}
    assert list(people)[-1] == "ed" and set(people) == {"alice", "alice-marie", "42", "émile 🙂", "ed"}
    evaluation = trained.read("evaluation.json")["people"]
    for user, entry in people.items():
        assert user in printed
        if user == "ed":
            continue
        files = list((trained.run / entry["folder"]).iterdir())
        assert entry["bytes"] == sum(path.stat().st_size for path in files) and len(files) == 3
        assert entry["steps"] == 2 and entry["trained"] and entry["reason"] is None
        assert entry["accuracy"] == evaluation[user]["pairs"]["accuracy"]
        assert entry["group"] == ("odd" if len(user) % 2 else "even")
    assert not people["ed"]["trained"] and "empty" in people["ed"]["reason"]
    assert "4 adapters" in printed and "1 people without one" in printed


def test_one_person_is_shown(trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "person.json"
    assert main(["people", "show", str(trained.run), "--user", "émile 🙂", "--output", str(out)]) == 0
    person = json.loads(out.read_text())
    assert person["adapter"]["r"] == 2 and person["made_with"]["user"] == "émile 🙂"
    assert set(person["files"]) == {"adapter_config.json", "adapter_model.safetensors", "pluralign.json"}
    assert person["last_step"]["step"] == 2 and "eval_loss" in person["last_validation"]
    assert person["evaluation"] == trained.read("evaluation.json")["people"]["émile 🙂"]
    printed = capsys.readouterr().out
    assert "pairs.accuracy" in printed and "adapter_model.safetensors" in printed
    assert main(["people", "show", str(trained.run), "--user", "ed"]) == 0
    assert "empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["show", "RUN", "--user", "alcie"], "Did you mean 'alice'"),
        (["show", "RUN"], "--user names nobody"),
        (["remove", "RUN", "--user", "alcie,42"], "nobody has the id 'alcie'"),
        (["remove", "RUN"], "--user names nobody"),
        (["list", "nowhere"], "there is no config.yaml"),
        (["list", "RUN", "--output", "."], "it is a folder"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], named: str, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained.run.rglob("*") if path.is_file()}
    assert main(["people", *(str(trained.run) if word == "RUN" else word for word in arguments)]) == 2
    assert named in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trained.run.rglob("*") if path.is_file()} == before


def test_listing_does_not_import_torch(trained: Any) -> None:
    code = (
        "import sys; from pluralign.cli import main\n"
        f"assert main(['people', 'list', {str(trained.run)!r}]) == 0\n"
        f"assert main(['people', 'show', {str(trained.run)!r}, '--user', 'alice']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
