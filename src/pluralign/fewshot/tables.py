"""Tables in and out of the few-shot commands: survey answers or preferences, and predictions."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from pluralign.config import DataConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question, answers_of
from pluralign.fewshot.predictor import Answer
from pluralign.fewshot.reading import COUNTRIES, US_GROUPS, read_answers, read_questions
from pluralign.preferences import load_preferences
from pluralign.preferences.reading import read_table
from pluralign.storage import write_jsonl

_SIDES = {"chosen", "rejected"}
_OWNERS = ("user", "group")
NAMED = {"paper_countries": COUNTRIES, "paper_groups": US_GROUPS}
"""Names that stand for several groups."""
SCHEMA_VERSION = 1


def load_answers(
    paths: str | Sequence[str],
    *,
    group: str | None = None,
    groups: Sequence[str] = (),
    key: str = "data",
    several: bool = False,
) -> Answers:
    """What groups answered, of tables of survey answers or of preferences, as their columns say.

    What was changed or left out is said in warnings.

    Args:
        paths: of files, or of a folder of OpinionQA; `world` is the embedded table of preferences.
        group: column of who answered; by default `group` of survey answers and `user` of preferences.
        groups: which of them to take, by name or by a name of `NAMED`; all where there is none.
        key: of the configuration that names the tables.
        several: whether they are of several people or groups: preferences then say whose they are.

    Raises:
        InputError: no table; one that cannot be read, or two that have one group's answer to one question; a group that
            is not there; preferences that do not say whose they are, where they have to or `group` names the column.
    """
    found, silent = Answers(name=", ".join(_named(paths, key))), list[str]()
    for path in _named(paths, key):
        own = (
            _preferences(path, group, owned=several or group is not None)
            if _holds_pairs(path)
            else read_answers(path, group=group or "group")
        )
        found.rescaled += own.rescaled
        found.unasked += own.unasked
        found.undecided += own.undecided
        silent += own.silent
        for owner, number, shares in own:
            before = found.find(own.questions[number])
            if before is not None and found.questions[before].line != own.questions[number].line:
                other = f"group {owner!r}: {own.questions[number].text!r} has other ordinals, or none, in another table"
                raise InputError(other, where=own.place(owner, number), fix="Give all tables the same ones.")
            if not found.add(owner, own.questions[number], shares, own.places.get((owner, number))):
                again = f"group {owner!r} has answered {own.questions[number].text!r} in another table, too"
                raise InputError(again, where=own.place(owner, number), fix="Join the two answers.")
    # Who has no answer in one table may have some in another.
    found.silent = tuple(dict.fromkeys(owner for owner in silent if owner not in found.groups))
    _say(found)
    if not found.groups:
        raise InputError("there are no answers", where=found.name, fix="Give at least one.")
    return _taken(found, groups) if groups else found


def _say(answers: Answers) -> None:
    for note in answers.notes():
        warnings.warn(note, stacklevel=3)


def _taken(answers: Answers, groups: Sequence[str]) -> Answers:
    wanted = [one for name in groups for one in NAMED.get(name, (name,))]
    for one in wanted:
        if one not in answers.groups:
            near = difflib.get_close_matches(one, [*answers.groups, *NAMED], n=1)
            hint = (
                f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(map(repr, list(answers.groups)[:5]))}."
            )
            raise InputError(f"groups has {one!r}, whose answers are not there", where=answers.name, fix=hint)
    return answers.of(dict.fromkeys(wanted))


def load_questions(paths: str | Sequence[str], *, key: str = "questions") -> list[Question]:
    """Distinct questions of tables with `question, options`, or pairs of preferences; rows without any are counted.

    Args:
        paths: of files.
        key: of the configuration that names the tables.

    Raises:
        InputError: no table, or one that cannot be read or has none.
    """
    found: dict[tuple[str, frozenset[str]], Question] = {}
    for path in _named(paths, key):
        for question in _pairs_of(path) if _holds_pairs(path) else read_questions(path):
            found.setdefault(question.asked, question)
    if not found:
        raise InputError("there are no questions", where=", ".join(_named(paths, key)), fix="Give at least one.")
    return list(found.values())


def _pairs_of(path: str) -> list[Question]:
    found = _preferences(path, None, owned=False)
    _say(found)
    return found.questions


def write_answers(answers: Iterable[Answer], path: str | Path) -> None:
    """Predictions as JSONL, a row a group and question (docs/fewshot.md)."""
    write_jsonl(path, map(_row, answers))


def write_questions(questions: Iterable[tuple[Question, float]], path: str | Path) -> None:
    """Questions with what they are worth as JSONL, in their order."""
    write_jsonl(path, ({**_question(one), "worth": round(worth, 6)} for one, worth in questions))


def _row(answer: Answer) -> dict[str, object]:
    row: dict[str, object] = {"group": answer.group, **_question(answer.question)}
    row |= {"distribution": [round(float(share), 6) for share in answer.shares]}
    if answer.low is not None and answer.high is not None:
        row |= {"low": [round(float(end), 6) for end in answer.low]}
        row |= {"high": [round(float(end), 6) for end in answer.high]}
    return {**row, "known": answer.known}


def _question(question: Question) -> dict[str, object]:
    found: dict[str, object] = {"question": question.text, "options": question.options}
    return found if question.ordinals is None else {**found, "ordinals": question.ordinals}


def _named(paths: str | Sequence[str], key: str) -> list[str]:
    found = [paths] if isinstance(paths, str) else list(paths)
    if not found or not all(found):
        raise InputError(f"{key} names no table", fix="Give a file of survey answers, of questions, or of preferences.")
    return found


def _holds_pairs(path: str) -> bool:
    return not Path(path).is_dir() and (not Path(path).exists() or read_table(path).columns >= _SIDES)


def _preferences(path: str, group: str | None, *, owned: bool) -> Answers:
    owner = group or "user"
    if owner not in _OWNERS:
        raise InputError(f"group is {owner!r}", fix="Of preferences it is user or group.")
    preferences = load_preferences(DataConfig(path=path))
    if preferences.problems:
        first = preferences.problems[0]
        whose = f"user {first.user!r}: " if first.user else ""
        more = f" (and {len(preferences.problems) - 1} more rows)" if len(preferences.problems) > 1 else ""
        column = f", column {first.column!r}" if first.column else ""
        raise InputError(f"{whose}{first.found}{more}", where=f"{first.place}{column}", fix=first.fix)
    nobodys = next((row for row in preferences if getattr(row, owner) is None), None)
    if owned and nobodys is not None:
        found = f"there is no column {owner!r}, which says whose preferences they are"
        raise InputError(found, where=str(nobodys.place), fix="Add it, or name the other of user and group (--group).")
    return answers_of(preferences, per=owner)
