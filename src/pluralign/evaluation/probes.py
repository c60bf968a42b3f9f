"""Knowledge probes: questions with options of which one is right. Read, checked, sampled; no torch."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pluralign.errors import InputError
from pluralign.preferences.schema import Message, Place, Problem, Text
from pluralign.world import PLAIN, World

Scope = Literal["inside", "outside"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One question of which the right option is known.

    Attributes:
        id: unique in its file.
        question: text or messages.
        options: two or more different, non-empty texts.
        answer: index of the right option, from 0.
        topic: what the question is about; results are also given by topic.
        scope: whether the preferences talk about this topic (`inside`) or not (`outside`).
        prefix: the base's words before an option ("The colour of the Velm is"); "" is none; None leaves the
            presentation to `pluralign.evaluation.retention`.
        prefixes: the same in the manner of a person, by the person's id, group or style; `plain` stands for the base's.
        place: file and row.
    """

    id: str
    question: Text
    options: tuple[str, ...]
    answer: int
    topic: str = "all"
    scope: Scope = "outside"
    prefix: str | None = None
    prefixes: Mapping[str, str] = field(default_factory=dict)
    place: Place = field(default_factory=lambda: Place("memory", 0))


@dataclass(slots=True)
class ProbeSet:
    """The probes of one source.

    Attributes:
        name: what to call the source: the file as given, or `world`.
        probes: those to ask, at most `max_probes`.
        problems: items that cannot be used, each with its place; never dropped silently.
        available: usable items before sampling.
    """

    name: str
    probes: list[Probe]
    problems: list[Problem] = field(default_factory=list)
    available: int = 0


class UnusableProbeError(Exception):
    """An item that cannot be asked; becomes a `Problem` of its source."""

    def __init__(self, column: str | None, found: str, fix: str = "") -> None:
        self.column, self.found, self.fix = column, found, fix
        super().__init__(found)


def load_probes(sources: str | Sequence[str] | None, *, max_probes: int | None = None, seed: int = 0) -> list[ProbeSet]:
    """Read probes from files and named formats.

    Args:
        sources: one or several of: a JSONL file (gzip allowed), `trivia:PATH`, `arc:PATH`, `world`, `world:SEED`.
        max_probes: at most so many of each source, > 0.
        seed: fixes the sample.

    Raises:
        InputError: a source is missing, unreadable, or has no usable probe at all; or `max_probes` is not positive.
    """
    if max_probes is not None and max_probes <= 0:
        raise InputError(f"evaluation.max_probes is {max_probes}", fix="It must be positive, or null for all probes.")
    names = [sources] if isinstance(sources, str) else list(sources or [])
    return [_sampled(_read(name), max_probes, seed) for name in names]


def parse_probe(item: Any, place: Place) -> Probe:
    """A probe from a JSON object `{id, question, options, answer, topic, scope, prefix, prefixes}`.

    `answer` is the index of the right option (an integer, from 0) or its text. `id` defaults to the row's number,
    `topic` to `all`, `scope` to `outside`, `prefix` to that of the style `plain` in `prefixes`; other keys are ignored.

    Raises:
        UnusableProbeError: a key is missing or its value cannot be used.
    """
    if not isinstance(item, dict):
        raise UnusableProbeError(None, f"the row is a {type(item).__name__}, not an object")
    try:
        json.dumps(item, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(error.object[error.start]):04X}"
        raise UnusableProbeError(None, f"it holds the lone surrogate {code}, which is no text") from None
    options = _options(item.get("options"))
    identifier, topic, scope = item.get("id", place.row), item.get("topic", "all"), item.get("scope", "outside")
    if not isinstance(identifier, str | int) or identifier == "":
        raise UnusableProbeError("id", f"the id is {identifier!r}", "It is a text or a number.")
    if not isinstance(topic, str) or not topic:
        raise UnusableProbeError("topic", f"the topic is {topic!r}", "It is a text.")
    if scope not in get_args(Scope):
        raise UnusableProbeError("scope", f"the scope is {scope!r}", "It is inside or outside.")
    prefixes = item.get("prefixes") or {}
    if not isinstance(prefixes, dict) or not all(isinstance(text, str) for text in prefixes.values()):
        raise UnusableProbeError(
            "prefixes", "not an object of texts", "It maps a person's id, group or style to a text."
        )
    # The world's probes know the base's manner by its name.
    prefix = item.get("prefix", prefixes.get(PLAIN))
    if prefix is not None and not isinstance(prefix, str):
        raise UnusableProbeError("prefix", f"the prefix is {prefix!r}", "It is a text.")
    return Probe(
        id=str(identifier),
        question=_question(item.get("question")),
        options=options,
        answer=_answer(item.get("answer"), options),
        topic=topic,
        scope=scope,
        prefix=prefix,
        prefixes=dict(prefixes),
        place=place,
    )


def collect(name: str, items: Iterable[tuple[Place, Any]]) -> ProbeSet:
    """Usable probes and problems of a source; an item that is an `UnusableProbeError` already is reported as it is."""
    probes: list[Probe] = []
    problems: list[Problem] = []
    seen: dict[str, Place] = {}
    for place, item in items:
        try:
            if isinstance(item, UnusableProbeError):
                raise item
            probe = parse_probe(item, place)
            if probe.id in seen:
                raise UnusableProbeError(
                    "id", f"the id {probe.id!r} is that of {seen[probe.id]} too", "Ids must differ."
                )
        except UnusableProbeError as problem:
            problems.append(Problem(place, problem.column, problem.found, problem.fix))
            continue
        seen[probe.id] = place
        probes.append(probe)
    if not probes:
        reason = (
            f"none of its {len(problems)} items can be used; the first: {problems[0]}"
            if problems
            else "no probes in it"
        )
        raise InputError(reason, where=name, fix="Each needs a question, two or more options and the answer.")
    return ProbeSet(name, probes, problems, available=len(probes))


def _read(name: str) -> ProbeSet:
    # Named formats import from here, so they are reached late.
    from pluralign.evaluation.probe_formats import read_arc, read_trivia

    if world := world_of(name):
        return collect(name, ((Place(name, row), item) for row, item in enumerate(world.probes(), 1)))
    for prefix, read in (("trivia:", read_trivia), ("arc:", read_arc)):
        if name.startswith(prefix):
            path = Path(name.removeprefix(prefix)).expanduser()
            require_file(path, name)
            if path.is_dir() and read is read_arc:
                raise InputError("a folder, not a file", where=name, fix="Name one of its files.")
            return collect(name, read(path))
    path = Path(name).expanduser()
    require_file(path, name)
    if path.is_dir():
        raise InputError("a folder, not a file of probes", where=name, fix="For OpenTriviaQA write trivia:FOLDER.")
    return collect(name, _jsonl(path))


@cache
def world_of(name: str) -> World | None:
    """The world that `world` (seed 0) or `world:SEED` names; None for any other source.

    Raises:
        InputError: the seed is no integer.
    """
    kind, _, seed = name.partition(":")
    if kind != "world":
        return None
    try:
        return World(int(seed or 0))
    except ValueError:
        raise InputError(f"the seed {seed!r} is no integer", where=name, fix="Write world, or world:7.") from None


def require_file(path: Path, name: str) -> None:
    """Refuse a source that is not there.

    Raises:
        InputError: nothing is at `path`.
    """
    if not path.exists():
        fix = "A source of probes is a JSONL file, trivia:PATH, arc:PATH, world or world:SEED."
        raise InputError("there is no such file of probes", where=name, fix=fix)


def read_raw(path: Path) -> bytes:
    """A file's bytes, unpacked where they are gzip (by content, whatever the name).

    Raises:
        InputError: the file cannot be read or its gzip is broken.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise InputError(f"cannot be read ({error})", where=str(path)) from None


def _jsonl(path: Path) -> Iterator[tuple[Place, Any]]:
    for row, line in enumerate(read_raw(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield Place(str(path), row), json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield Place(str(path), row), UnusableProbeError(None, f"not UTF-8 ({error.reason} at byte {error.start})")
        except json.JSONDecodeError as error:
            yield Place(str(path), row), UnusableProbeError(None, f"not JSON ({error.msg} at character {error.colno})")


def _sampled(found: ProbeSet, max_probes: int | None, seed: int) -> ProbeSet:
    if max_probes is None or max_probes >= len(found.probes):
        return found
    chosen = sorted(random.Random(f"probes {seed}").sample(range(len(found.probes)), max_probes))
    return ProbeSet(found.name, [found.probes[index] for index in chosen], found.problems, found.available)


def _question(question: Any) -> Text:
    if isinstance(question, str) and question.strip():
        return question
    if isinstance(question, list) and question and all(_is_message(message) for message in question):
        return question
    raise UnusableProbeError("question", f"the question is {_short(question)}", "It is a text, or a list of messages.")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message


def as_messages(question: Text) -> list[Message]:
    """The question as one user turn; messages stay as they are."""
    return [{"role": "user", "content": question}] if isinstance(question, str) else question


def _options(options: Any) -> tuple[str, ...]:
    if not isinstance(options, list) or len(options) < 2:
        raise UnusableProbeError("options", f"the options are {_short(options)}", "It is a list of two or more texts.")
    for option in options:
        if not isinstance(option, str) or not option.strip():
            raise UnusableProbeError("options", f"an option is {_short(option)}", "Each option is a non-empty text.")
    texts = tuple(options)
    if len(set(texts)) != len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UnusableProbeError("options", f"the option {_short(twice)} stands there twice", "Options must differ.")
    return texts


def _answer(answer: Any, options: tuple[str, ...]) -> int:
    if isinstance(answer, str) and answer in options:
        return options.index(answer)
    # bool is an int in Python; true is no index.
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return answer
    fix = f"It is an index from 0 to {len(options) - 1}, or the text of an option."
    raise UnusableProbeError("answer", f"the answer is {_short(answer)}", fix)


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
