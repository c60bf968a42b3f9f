"""Whether anything in a run's folder still tells of a person: every path and every file is looked at again."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pluralign.config import TrainConfig
from pluralign.evaluation.results import HIGHER_IS_BETTER, MEAN_ONLY
from pluralign.preferences import folder_name
from pluralign.resolve import as_yaml
from pluralign.training.lock import LOCK_FILE
from pluralign.training.runs import CALLS_FILE

_PEOPLE_KEYS = ("people", "skipped", "update")
_PERSON_VALUES = ("user", "adapter")
_WORD = rb"0-9A-Za-z_\x80-\xff"
_TOKEN_ENDS = rb"\s\"'`/\\,:;{}\[\]()<>=|"
_FILE_WORDS = """
abstained adapter_config adapter_model adapters against annotator answers base base_fingerprint base_responses
bootstrap checkpoint config cut default different draws earlier_data eval eval_loss evaluation event events finished
first_problems flipped generation grad_norm group groups held_out host index intercept interval json key layout
learning_rate logps lora loss losses made_with max_shard metadata metrics model model_type name note orders peft
people person pluralign problems python ranking reason regression rejected revision rewards rows rows_hash runs
safetensors scale schema_version scores seed separate settings shared skipped source spreads state step summary
task_type tensorboard tensors text tie ties time tokens train unanswered undefined unfinished user verdicts version
versions weight winrate wins world yaml
"""


class Traces:
    """Looks for one person.

    An id that is ordinary (fewer than four characters, a number, a word of the files' own) is looked for in the places
    where people stand, and in quotes; any other id as a word in every path and in every file's bytes, by itself, as
    JSON escapes it, and as the name of its folder. Of weights the header is read, which has all the text there is.

    Args:
        user: id.
        others: ids that may stand there, also where they hold this one.
    """

    def __init__(self, user: str, others: Iterable[str]) -> None:
        self.user, self.folder = user, folder_name(user)
        self.forms = {form.encode("utf-8", "surrogatepass") for form in _forms(user)}
        self.ordinary = len(user) < 4 or user.isdigit() or user.lower() in _vocabulary()
        self.others = {form.encode("utf-8", "surrogatepass") for other in others for form in _forms(other)}
        any_form = b"|".join(re.escape(form) for form in sorted(self.forms, key=len, reverse=True))
        self._word = re.compile(rb"(?<![" + _WORD + rb"])(?:" + any_form + rb")(?![" + _WORD + rb"])")
        self._quoted = re.compile(rb"[\"'](?:" + any_form + rb")[\"']|(?:train|eval)/(?:" + any_form + rb")/")

    def in_run(self, run: Path) -> tuple[list[str], int]:
        """Where they are found, in words, and the number of files that were read."""
        found: list[str] = []
        files = 0
        for path in sorted(run.rglob("*")):
            relative = path.relative_to(run)
            # Who is at work, and on which machine: they tell of nobody's rows.
            if relative.as_posix() in (LOCK_FILE, CALLS_FILE):
                continue
            if self._in_path(relative):
                found.append(f"{relative}: its name")
            if path.is_file():
                files += 1
                found += [f"{relative}: {place}" for place in self.in_file(path)]
        return found, files

    def in_file(self, path: Path) -> list[str]:
        """Where in a file they are found; at most a few places."""
        content = _header(path) if path.suffix == ".safetensors" else path.read_bytes()
        if not any(form in content for form in self.forms):
            return []
        if path.suffix in (".json", ".jsonl"):
            return list(self._in_json(content, lines=path.suffix == ".jsonl"))[:3]
        return ["its content"] if self._in_bytes(content) else []

    def _in_path(self, relative: Path) -> bool:
        rooms, parts = ("adapters", "state", "tensorboard"), relative.parts
        if parts[0] in rooms and len(parts) > 1 and parts[1] == self.folder:
            return True
        return not self.ordinary and self._as_word(relative.as_posix().encode("utf-8", "surrogatepass"))

    def _in_bytes(self, content: bytes) -> bool:
        return bool(self._quoted.search(content)) or (not self.ordinary and self._as_word(content))

    def _as_word(self, content: bytes) -> bool:
        return any(not self._is_anothers(content, match) for match in self._word.finditer(content))

    def _is_anothers(self, content: bytes, match: re.Match[bytes]) -> bool:
        """Whether the match is a part of somebody else's id, as `ann` is of `ann-marie`."""
        before = re.search(rb"[^" + _TOKEN_ENDS + rb"]*\Z", content[max(0, match.start() - 400) : match.start()])
        after = re.match(rb"[^" + _TOKEN_ENDS + rb"]*", content[match.end() : match.end() + 400])
        token = (before[0] if before else b"") + match[0] + (after[0] if after else b"")
        return token != match[0] and token in self.others

    def _in_json(self, content: bytes, *, lines: bool) -> Iterator[str]:
        for number, part in enumerate(content.split(b"\n") if lines else [content], 1):
            if lines and not any(form in part for form in self.forms):
                continue
            where = f"line {number}" if lines else "its content"
            try:
                value = json.loads(part)
            except ValueError:
                if self._in_bytes(part):
                    yield where
                continue
            places = list(self._in_value(value, ()))
            yield from ([where] if lines and places else places)

    def _in_value(self, value: Any, path: tuple[str, ...]) -> Iterator[str]:
        """Dotted keys of the places in a JSON value that tell of the person; their own id in it is written `...`."""
        if isinstance(value, dict):
            for key, item in value.items():
                of_people = bool(path) and path[-1] in _PEOPLE_KEYS
                if self._tells(key, of_people=of_people):
                    yield ".".join((*path, "..."))
                yield from self._in_value(item, (*path, key))
        elif isinstance(value, list):
            for item in value:
                yield from self._in_value(item, path)
        elif isinstance(value, str):
            key = path[-1] if path else ""
            if self._tells(value, of_people=key in _PERSON_VALUES or key.endswith("_person")):
                yield ".".join(path) or "its content"

    def _tells(self, text: str, *, of_people: bool) -> bool:
        if text in (self.user, self.folder):
            return of_people or not self.ordinary
        raw = text.encode("utf-8", "surrogatepass")
        return raw not in self.others and self._in_bytes(raw)


def _forms(user: str) -> set[str]:
    """An id as files write it: as it is, as JSON escapes it, and as a folder is called."""
    return {user, json.dumps(user)[1:-1], json.dumps(user, ensure_ascii=False)[1:-1], folder_name(user)}


def _vocabulary() -> set[str]:
    """Words that stand in a run's files whoever is in it."""
    measures = " ".join((*HIGHER_IS_BETTER, *MEAN_ONLY))
    text = f"{as_yaml(TrainConfig())} {measures} {_FILE_WORDS}"
    return set(re.findall(r"\w+", text.lower()))


def _header(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = file.read(8)
        return file.read(min(struct.unpack("<Q", size)[0], 100_000_000)) if len(size) == 8 else size
