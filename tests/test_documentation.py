"""What the pages tell a reader to type is what the program takes."""

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from pluralign.cli import COMMANDS, named_arguments
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
