"""Probes in formats as their publishers wrote them: OpenTriviaQA and ARC-Easy in the layout of LLM-Adapters."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pluralign.errors import InputError
from pluralign.evaluation.probes import UnusableProbeError, read_raw
from pluralign.preferences.schema import Place

_ARC = re.compile(
    r"Please choose the correct answer to the question: (.+?)\s*\n\s*(Answer1:.+?)\s*\n\s*Answer format:", re.S
)
_ARC_OPTION = re.compile(r"\s*Answer(\d+):\s*")
_TRIVIA_OPTION = re.compile(r"([A-Z]) (.*)")


def read_trivia(path: Path) -> Iterator[tuple[Place, Any]]:
    """OpenTriviaQA: one category file, the whole as tar (gzip or not), or a folder of these.

    An item is `#Q` and the question (which may go on over several lines), `^` and the right answer, then the options
    `A`, `B`, ...; the topic is the file's name. Lines are UTF-8, or Windows-1252 where they are not: published files
    mix both. `Place.row` is the line.

    Raises:
        InputError: the archive cannot be read.
    """
    if path.is_dir():
        for file in sorted(item for item in path.rglob("*") if item.is_file() and not item.name.startswith(".")):
            yield from read_trivia(file)
    elif tarfile.is_tarfile(path):
        yield from _trivia_archive(path)
    else:
        yield from _trivia_file(str(path), path.name.removesuffix(".gz"), read_raw(path))


def read_arc(path: Path) -> Iterator[tuple[Place, Any]]:
    """ARC as LLM-Adapters has it: a JSON list (gzip allowed) of `{instruction, answer}`.

    Question and options are in the instruction. `Place.row` is the number of the item, from 1.

    Raises:
        InputError: the file is not a JSON list.
    """
    try:
        items = json.loads(read_raw(path).decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not JSON ({error})", where=str(path)) from None
    if not isinstance(items, list):
        raise InputError("not a JSON list", where=str(path), fix="It is a list of {instruction, answer}.")
    for row, item in enumerate(items, 1):
        yield Place(str(path), row), _arc_item(item, row)


def _trivia_archive(path: Path) -> Iterator[tuple[Place, Any]]:
    try:
        # Members are read, never extracted: nothing in the archive can write anywhere.
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield from _trivia_file(f"{path}:{member.name}", Path(member.name).name, file.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"not a readable archive ({error})", where=str(path)) from None


def _trivia_file(file: str, topic: str, raw: bytes) -> Iterator[tuple[Place, Any]]:
    start, block = 0, list[str]()
    for number, line in enumerate(raw.split(b"\n"), 1):
        text = _decoded(line).rstrip("\r")
        if text.startswith("#Q"):
            if start:
                yield Place(file, start), _trivia_item(block, f"{topic}/{start}", topic)
            start, block = number, [text[2:]]
        elif start:
            block.append(text)
    if start:
        yield Place(file, start), _trivia_item(block, f"{topic}/{start}", topic)
    else:
        yield Place(file, 1), UnusableProbeError(None, "no line starts with #Q", "It is no file of OpenTriviaQA.")


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        # Latin-1 has a meaning for the five bytes that Windows-1252 leaves open.
        try:
            return line.decode("cp1252")
        except UnicodeDecodeError:
            return line.decode("latin-1")


def _trivia_item(block: list[str], identifier: str, topic: str) -> dict[str, Any] | UnusableProbeError:
    answers = [index for index, line in enumerate(block) if line.startswith("^")]
    if len(answers) != 1:
        return UnusableProbeError("answer", f"{len(answers)} lines start with ^", "One line gives the right answer.")
    question = "\n".join(line.strip() for line in block[: answers[0]] if line.strip())
    options: list[str] = []
    for line in block[answers[0] + 1 :]:
        matched = _TRIVIA_OPTION.fullmatch(line)
        if matched and ord(matched[1]) - ord("A") == len(options):
            options.append(matched[2].strip())
        elif line.strip():
            return UnusableProbeError(
                "options", f"the line {line.strip()[:60]!r} among the options is not the next one"
            )
    answer = block[answers[0]][1:].strip()
    return {"id": identifier, "question": question, "options": options, "answer": answer, "topic": topic}


def _arc_item(item: Any, row: int) -> dict[str, Any] | UnusableProbeError:
    if not isinstance(item, dict) or not isinstance(item.get("instruction"), str):
        return UnusableProbeError("instruction", "there is no instruction", "It holds the question and its options.")
    matched = _ARC.search(item["instruction"])
    if not matched:
        return UnusableProbeError("instruction", "question and options are not where they should be")
    _, *parts = _ARC_OPTION.split(matched[2])
    numbers, options = parts[0::2], [text.strip() for text in parts[1::2]]
    if numbers != [str(number) for number in range(1, len(options) + 1)]:
        return UnusableProbeError("instruction", f"the options are numbered {', '.join(numbers)}")
    right = re.fullmatch(r"answer(\d+)", str(item.get("answer")).strip())
    if not right or not 1 <= int(right[1]) <= len(options):
        return UnusableProbeError(
            "answer", f"the answer is {item.get('answer')!r}", f"It is answer1 to answer{len(options)}."
        )
    return {
        "id": f"arc/{row}",
        "question": matched[1].strip(),
        "options": options,
        "answer": int(right[1]) - 1,
        "topic": "arc",
    }
