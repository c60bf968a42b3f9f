"""What the pages tell a reader to type is what the program takes."""

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pluralign.cli import COMMANDS, main, named_arguments
from pluralign.config import TrainConfig
from pluralign.resolve import parse, resolve

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands():
    for page in PAGES:
        for block in [*blocks(page, "sh"), *blocks(page, "bash"), *blocks(page, "console")]:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and "=" in words[0]:
                    words = words[1:]
                if "pluralign" in words[:1]:
                    yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words)[:60]}")


def settings():
    for page in PAGES:
        for number, block in enumerate(blocks(page, "yaml")):
            yield pytest.param(block, id=f"{page.name}-{number}")


@pytest.mark.parametrize("words", list(commands()))
def test_commands_of_the_pages_are_understood(words):
    size = 2 if " ".join(words[:2]) in COMMANDS else 1
    name, arguments = " ".join(words[:size]), words[size:]
    assert name in COMMANDS or name == "--help"
    if name in COMMANDS:
        arguments = named_arguments(name, arguments)
    # A page's own files need not be there: only `--config` is read at this point.
    if "--config" in arguments or any(word in ("|", ">", "&&", "COMMAND") for word in arguments):
        return
    with contextlib.suppress(SystemExit):
        parse(COMMANDS[name].config, arguments, prog=f"pluralign {name}")


@pytest.mark.parametrize("block", list(settings()))
def test_settings_of_the_pages_are_known(block):
    values = yaml.safe_load(block)
    assert resolve(TrainConfig, values)


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = blocks(ROOT / "README.md", "json")
    assert json.loads(row)["user"] == "ada"
    Path("preferences.jsonl").write_text(row)
    (code,) = blocks(ROOT / "README.md", "python")
    names = {}
    exec(code, names)
    assert names["result"].adapters["ada"].joinpath("adapter_config.json").is_file()


def test_the_loss_of_the_guide_trains(tmp_path, monkeypatch):
    """The module of the page, on the Python path, and its command on a table of one's own."""
    page = ROOT / "docs" / "methods" / "README.md"
    monkeypatch.chdir(tmp_path)
    (module,) = [block for block in blocks(page, "python") if "half_hinge" in block]
    Path("my_losses.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    (row,) = blocks(ROOT / "README.md", "json")
    Path("preferences.jsonl").write_text(row)
    (command,) = [line for block in blocks(page, "sh") for line in block.splitlines() if "my_losses" in line]
    assert main([*shlex.split(command)[1:], "--training.max_steps", "2", "--output_dir", "run"]) == 0
    losses = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    # Half a hinge is a half where policy is reference.
    assert losses[0]["loss"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_the_few_shot_guide_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "fewshot.md").read_text(encoding="utf-8")
    names = {}
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", text, re.S | re.M):
        if language == "python":
            exec(block, names)
            continue
        words = shlex.split(block.replace("\\\n", " "), comments=True)
        for line in " ".join(map(shlex.quote, words)).split("pluralign ")[1:]:
            arguments = shlex.split(line)
            if arguments[0] == "generate":
                # Its run is the demo's; with one person it is soon made.
                assert main(["demo", "--users", "1"]) == 0
            assert main(arguments) == 0
    right, asked = map(int, re.findall(r"(\d+) of (\d+) predicted", capsys.readouterr().out)[0])
    assert asked == 30 and right >= 20
    assert len(Path("next.jsonl").read_text().splitlines()) == 30
    assert json.loads(Path("fewshot.json").read_text())["summaries"]
