"""Pairs whose label follows the priority that stands in the prompt: from responses with scores by several criteria."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pluralign.config import MetaPairsConfig
from pluralign.errors import InputError
from pluralign.preferences.columns import read_prompt
from pluralign.preferences.keys import text_key
from pluralign.preferences.people import shown
from pluralign.preferences.reading import Row, Table, read_table
from pluralign.preferences.schema import BadRow, Place, Problem, Text, excerpt
from pluralign.storage import check_place, staged_file

if TYPE_CHECKING:
    from rich.table import Table as Printed

TOLERANCE = 1e-9
"""Scores that differ by less, as a share of what they are summed from, are equal: their rounding is what differs."""

_INFO = ("system_info", "user_info")
_SUFFIXES = (".jsonl", ".ndjson")
_FORM = "It is a list of {name: ..., scores: {column: weight}}, each with system_info, user_info or both."
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Priority:
    """What counts in a response, and what the model is told of it.

    Attributes:
        name: of the priority; the `group` of its pairs.
        weights: column of a criterion -> weight; a negative one counts against.
        system_info: what the provider says (limits, preferences), or None.
        user_info: what the user says of themself, or None.
    """

    name: str
    weights: Mapping[str, float]
    system_info: str | None = None
    user_info: str | None = None


@dataclass(slots=True)
class Counts:
    """What became of the pairs of responses under one priority.

    Attributes:
        pairs: written.
        flips: those of them that some other priority orders the other way.
        ties: left out, for both responses have the same score.
    """

    pairs: int = 0
    flips: int = 0
    ties: int = 0


@dataclass(slots=True)
class MetaPairs:
    """What `make_meta_pairs` wrote.

    Attributes:
        path: the table.
        priorities: counts by name, in the order of the file.
        prompts: distinct prompts with a usable response.
        responses: usable rows.
        lone: prompts with a single response, of which no pair comes.
        repeated: pairs of responses that are the same text, of which none comes either.
        problems: rows that were left out.
    """

    path: Path
    priorities: dict[str, Counts]
    prompts: int = 0
    responses: int = 0
    lone: int = 0
    repeated: int = 0
    problems: list[Problem] = field(default_factory=list)

    def table(self) -> Printed:
        """The counts for a terminal, with what was left out below."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as Printed
        from rich.text import Text as Plain

        lines = [f"responses: {self.responses}, prompts: {self.prompts}"]
        lines += [f"prompts with one response only: {self.lone}"] if self.lone else []
        lines += [f"pairs of responses that are the same text: {self.repeated}"] if self.repeated else []
        lines += [f"left out: {problem}" for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"and {len(self.problems) - _SHOWN} more rows")
        table = Printed(box=SIMPLE_HEAD, min_width=70, caption=Plain("\n".join(lines)), caption_justify="left")
        table.add_column("priority", overflow="fold")
        for title in ("pairs", "flips", "ties"):
            table.add_column(title, justify="right")
        for name, counts in self.priorities.items():
            table.add_row(Plain(shown(name)), str(counts.pairs), str(counts.flips), str(counts.ties))
        return table


@dataclass(slots=True)
class _Candidate:
    """One response and its scores by criterion."""

    prompt: Text
    response: Text
    scores: dict[str, float]


def make_meta_pairs(config: MetaPairsConfig) -> MetaPairs:
    """Write the pairs of every two responses to one prompt, under every priority, as JSONL.

    The response with the higher weighted sum of scores is chosen. Columns are `prompt`, `chosen`, `rejected`,
    `system_info`, `user_info`, `group` (the priority's name) and `flips`.

    Args:
        config: files of responses, priorities, and where to write.

    Returns:
        What was written, and what was not.

    Raises:
        InputError: a file or the priorities cannot be read, a column is missing, no pair comes of it, or the output
            cannot be written; names the place.
    """
    output = Path(config.output)
    _check_output(output, overwrite=config.overwrite)
    priorities = read_priorities(config.priorities)
    criteria = list(dict.fromkeys(column for one in priorities for column in one.weights))
    made = MetaPairs(output, {one.name: Counts() for one in priorities})
    prompts = _candidates(config.data, criteria, made)
    with staged_file(output) as staging, open(staging, "w", encoding="utf-8") as file:
        for candidates in prompts.values():
            for row in _pairs(candidates, priorities, made):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not any(counts.pairs for counts in made.priorities.values()):
            raise _nothing(made, config.data)
    return made


def read_priorities(path: str) -> list[Priority]:
    """The priorities of a YAML file.

    Raises:
        InputError: it cannot be read, or an entry is not as it should be; names the entry.
    """
    if not path:
        raise InputError("no priorities are given", fix=f"Name a YAML file with --priorities. {_FORM}")
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"not a YAML file ({' '.join(str(error).split())})", where=path) from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"holds {excerpt(entries)}, not a list of priorities", where=path, fix=_FORM)
    priorities = [_priority(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]
    names = [one.name for one in priorities]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"the name {name!r} is given twice", where=f"{path}, entry {number + 1}")
    return priorities


def _priority(entry: Any, where: str) -> Priority:
    if not isinstance(entry, dict):
        raise InputError(f"the entry is {excerpt(entry)}", where=where, fix=_FORM)
    unknown = [str(key) for key in entry if key not in ("name", "scores", *_INFO)]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no key of a priority", where=where, fix=_FORM)
    for key in ("name", *_INFO):
        value = entry.get(key)
        if (value is not None or key == "name") and not _is_text(value):
            raise InputError(
                f"{key} is {excerpt(value)}", where=where, fix="It is text; what YAML reads as no text, in quotes."
            )
    if all(entry.get(key) is None for key in _INFO):
        raise InputError(
            "the model would be told nothing of the priority", where=where, fix="Give system_info or user_info."
        )
    weights = entry.get("scores")
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"scores is {excerpt(weights)}", where=where, fix=_FORM)
    for column, weight in weights.items():
        if not _is_number(weight):
            raise InputError(
                f"the weight of {column!r} is {excerpt(weight)}", where=where, fix="It is a finite number."
            )
    if not any(weights.values()):
        raise InputError("all weights are 0", where=where, fix="A priority that counts nothing orders nothing.")
    named = {str(column): float(weight) for column, weight in weights.items()}
    return Priority(entry["name"], named, *(entry[key].strip() if entry.get(key) else None for key in _INFO))


def _candidates(data: str | list[str], criteria: Sequence[str], made: MetaPairs) -> dict[str, list[_Candidate]]:
    """Usable responses by prompt, in order of first appearance; what cannot be used is noted."""
    prompts: dict[str, list[_Candidate]] = {}
    paths = [data] if isinstance(data, str) else data
    if not paths or not all(paths):
        raise InputError("no file of responses is given", fix="Name one with --data.")
    for path in paths:
        table = read_table(path)
        _check_columns(table, criteria)
        made.problems += table.problems
        for number, row in table.rows:
            try:
                candidate = _candidate(row, criteria)
            except BadRow as bad:
                made.problems.append(bad.at(Place(table.name, number)))
                continue
            prompts.setdefault(text_key(candidate.prompt), []).append(candidate)
    made.prompts, made.responses = len(prompts), sum(map(len, prompts.values()))
    made.lone = sum(len(candidates) == 1 for candidates in prompts.values())
    return prompts


def _check_columns(table: Table, criteria: Sequence[str]) -> None:
    for column in ("prompt", "response", *criteria):
        if column not in table.columns:
            used = "a priority weighs it" if column in criteria else "every row is a response to a prompt"
            listed = ", ".join(sorted(excerpt(name) for name in table.columns)[:12])
            raise InputError(f"there is no column {column!r}, and {used}", where=table.name, fix=f"There are {listed}.")


def _candidate(row: Row, criteria: Iterable[str]) -> _Candidate:
    prompt = read_prompt(row)
    if row.get("response") is None:
        raise BadRow("response", "the row has no response", "Fill the cell, or leave the row out.")
    try:
        response = read_prompt({"prompt": row["response"]})
    except BadRow as bad:
        raise BadRow("response", bad.found, bad.fix) from None
    scores: dict[str, float] = {}
    for column in criteria:
        cell: Any = row.get(column)
        if not _is_number(cell):
            found = "the row has no number" if cell is None else f"the cell holds {excerpt(cell)}, not a finite number"
            raise BadRow(column, found, "Every response has a score by every criterion that a priority weighs.")
        scores[column] = float(cell)
    return _Candidate(prompt, response, scores)


def _pairs(
    candidates: Sequence[_Candidate], priorities: Sequence[Priority], made: MetaPairs
) -> Iterator[dict[str, Any]]:
    """Rows of the responses to one prompt; counts what there are and what there are not."""
    for one, other in combinations(candidates, 2):
        if text_key(one.response) == text_key(other.response):
            made.repeated += 1
            continue
        orders = [_order(one, other, priority) for priority in priorities]
        for priority, order in zip(priorities, orders, strict=True):
            counts = made.priorities[priority.name]
            if order == 0:
                counts.ties += 1
                continue
            flips = -order in orders
            counts.pairs, counts.flips = counts.pairs + 1, counts.flips + flips
            chosen, rejected = (one, other) if order > 0 else (other, one)
            yield {
                "prompt": one.prompt,
                "chosen": chosen.response,
                "rejected": rejected.response,
                "system_info": priority.system_info,
                "user_info": priority.user_info,
                "group": priority.name,
                "flips": flips,
            }


def _order(one: _Candidate, other: _Candidate, priority: Priority) -> int:
    """1 where the first has the higher score, -1 where the second has, 0 where neither."""
    terms = [
        [weight * candidate.scores[column] for column, weight in priority.weights.items()] for candidate in (one, other)
    ]
    left, right = map(math.fsum, terms)
    if abs(left - right) <= TOLERANCE * max(math.fsum(map(abs, part)) for part in terms):
        return 0
    return 1 if left > right else -1


def _is_text(value: Any) -> bool:
    # YAML can write half of a surrogate pair, which no file can hold.
    return isinstance(value, str) and bool(value.strip()) and value.encode("utf-8", "replace").decode() == value


def _is_number(cell: Any) -> bool:
    try:
        return isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell)
    except OverflowError:
        return False


def _check_output(output: Path, *, overwrite: bool) -> None:
    check_place(output)
    if output.suffix not in _SUFFIXES:
        raise InputError("the table is written as JSONL", where=str(output), fix=f"Name it {output.stem}.jsonl.")
    if output.exists() and not overwrite:
        raise InputError("the file is there already", where=str(output), fix="Name another output, or set --overwrite.")


def _nothing(made: MetaPairs, data: str | list[str]) -> InputError:
    where = data if isinstance(data, str) else ", ".join(data)
    ties = sum(counts.ties for counts in made.priorities.values())
    found = (
        f"no pair comes of {made.responses} responses to {made.prompts} prompts ({made.lone} with one response only, "
        f"{made.repeated} pairs of the same text, {ties} ties, {len(made.problems)} rows that cannot be used)"
    )
    fix = str(made.problems[0]) if made.problems else "A pair is two responses to one prompt with different scores."
    return InputError(found, where=where, fix=fix)
