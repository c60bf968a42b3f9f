"""Run the guides of `docs/guides` as they stand; with `--write`, write what they print into them.

In a page, blocks of `sh` (commands of pluralign, also with `> /dev/null`, and `echo $?`) and of `python` run one after
the other in one folder; a block of `text` behind one of them is what it prints. Every page begins in an empty folder,
offline, on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
WIDTH = 120
"""Columns of the terminal that tables are made for."""
_BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.S | re.M)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def run(page: Path) -> Iterator[tuple[re.Match[str], str]]:
    """Run a page in the working directory: each block of text, with what was printed before it."""
    names: dict[str, object] = {}
    printed = ""
    for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, content = block.groups()
        if language == "text":
            yield block, printed
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if language == "python":
                exec(compile(content, f"{page.name}", "exec"), names)
            else:
                _commands(content, page)
        printed = "".join(f"{line.rstrip()}\n" for line in output.getvalue().strip("\n").splitlines())


def _commands(content: str, page: Path) -> None:
    """The lines of a block: a command that fails ends the run, unless the next line asks for its exit code."""
    from pluralign.cli import main

    lines = content.replace("\\\n", " ").splitlines()
    code = 0
    for number, line in enumerate(lines):
        if line == "echo $?":
            print(code)
            continue
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] != "pluralign":
            raise SystemExit(f"{page.name}: {line!r} is no command of pluralign")
        unseen = words[-2:] == [">", "/dev/null"]
        with contextlib.redirect_stdout(io.StringIO()) if unseen else contextlib.nullcontext():
            code = main(words[1:-2] if unseen else words[1:])
        if code and lines[number + 1 : number + 2] != ["echo $?"]:
            raise SystemExit(f"{page.name}: {line!r} ends with {code}")


def differences(expected: str, printed: str, *, absolute: float = 0.15, relative: float = 0.25) -> list[str]:
    """What a page says and does not come out: words are compared as they are, numbers within what machines differ by.

    Args:
        expected: the page's block of text.
        printed: what was printed.
        absolute: by so much numbers up to 1 may differ, as shares are.
        relative: by so much of itself a larger one.
    """
    # Rules and cells of a table are as wide as what stands in them.
    said, found = (re.sub(r"[━─┏┓┗┛┡┩│┃┬┴├┤┼╇╈┳┻╷╵\s]+", " ", text).split() for text in (expected, printed))
    if len(said) != len(found):
        return [f"{len(said)} words, and {len(found)} come out:\n{printed}"]
    wrong = []
    for one, other in zip(said, found, strict=True):
        numbers = [list(map(float, _NUMBER.findall(word))) for word in (one, other)]
        same = _NUMBER.sub("0", one) == _NUMBER.sub("0", other)
        near = all(
            abs(a - b) <= (absolute if abs(a) <= 1 else relative * abs(a)) for a, b in zip(*numbers, strict=False)
        )
        if not (same and near):
            wrong.append(f"{one} is {other}")
    return wrong


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A working directory and a cache of their own, and a terminal of one width."""
    before = {name: os.environ.get(name) for name in ("COLUMNS", "PLURALIGN_CACHE")}
    os.environ |= {"COLUMNS": str(WIDTH), "PLURALIGN_CACHE": str(folder / "cache")}
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main() -> None:
    """Run pages, and say or write what they print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=sorted(GUIDES.glob("*.md")))
    parser.add_argument("--write", action="store_true", help="put what was printed into the pages")
    arguments = parser.parse_args()
    for page in map(Path.resolve, arguments.pages):
        with tempfile.TemporaryDirectory() as folder, alone(Path(folder)):
            found = list(run(page))
        text = page.read_text(encoding="utf-8")
        if found and text != found[0][0].string:
            raise SystemExit(f"{page.name} has changed meanwhile")
        for block, printed in reversed(found):
            for line in differences(block[2], printed):
                print(f"{page.name}: {line}")
            text = f"{text[: block.start()]}```text\n{printed}```{text[block.end() :]}"
        if arguments.write:
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
