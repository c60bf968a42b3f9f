"""Preference sets in the formats their publishers chose: who the users are, and which response they preferred."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pluralign.errors import InputError
from pluralign.preferences.columns import to_preferences
from pluralign.preferences.reading import Row, Table
from pluralign.preferences.schema import BadRow, Message, Place, Preferences, excerpt


@dataclass(frozen=True, slots=True)
class Tied:
    """A comparison that a user left undecided."""

    user: str


Judged = list[Row | Tied]


@dataclass(frozen=True, slots=True)
class Layout:
    """One published layout.

    Attributes:
        source: its name in `data.source`; a source may have several layouts.
        columns: the columns that it has and that give it away.
        read: a row of it -> rows of prompt, chosen, rejected, user, and undecided comparisons.
        user_is_file: the user is the file's name up to its first dot, where the rows name none.
        prepare: makes one row out of several first.
    """

    source: str
    columns: frozenset[str]
    read: Callable[[Row], Judged]
    user_is_file: bool = False
    prepare: Callable[[Table], Table] | None = None


def read_source(table: Table, source: str) -> Preferences:
    """Read a table by the name of its format; `auto` finds it by the columns, `table` is none of the published ones.

    Raises:
        InputError: there is no such source, or the table lacks its columns.
    """
    layout = layout_of(table, source)
    if layout is None:
        return to_preferences(table)
    prepared = layout.prepare(table) if layout.prepare else table
    user = table.stem if layout.user_is_file and "user" not in table.columns else None
    converted, ties = _convert(prepared, layout, user)
    if not converted.rows:
        return Preferences([], converted.problems, ties, table.name)
    preferences = to_preferences(converted)
    preferences.ties = ties
    return preferences


def layout_of(table: Table, source: str) -> Layout | None:
    """The published layout of a table, None for one whose columns are named as `to_preferences` wants them."""
    if source == "table":
        return None
    if source == "auto":
        # Pairs of text are one of the published formats only where they are transcripts.
        return next((layout for layout in LAYOUTS if _fits(layout, table) and _is_unmistakable(layout, table)), None)
    layouts = [layout for layout in LAYOUTS if layout.source == source]
    if not layouts:
        known = sorted({layout.source for layout in LAYOUTS})
        raise InputError(f"data.source is {source!r}", fix=f"It is auto, table, {', '.join(known)}.")
    for layout in layouts:
        if _fits(layout, table):
            return layout
    expected = " or ".join(f"({', '.join(sorted(layout.columns))})" for layout in layouts)
    found = f"the columns are {', '.join(sorted(map(excerpt, table.columns)))}"
    raise InputError(found, where=table.name, fix=f"Source {source!r} has {expected}.")


def refuse_shared_stems(tables: Iterable[Table], source: str) -> None:
    """Where a file's name is its user, two files of one name would become one person unnoticed.

    Raises:
        InputError: there are two such files.
    """
    seen: dict[str, str] = {}
    for table in tables:
        layout = layout_of(table, source)
        if layout is None or not layout.user_is_file or "user" in table.columns or table.stem is None:
            continue
        if table.stem in seen:
            found = f"the user is named after the file, and {seen[table.stem]} has that name too"
            raise InputError(found, where=table.name, fix="Rename one of them, or give the rows a `user` column.")
        seen[table.stem] = table.name


def _fits(layout: Layout, table: Table) -> bool:
    return layout.columns <= table.columns


def _is_unmistakable(layout: Layout, table: Table) -> bool:
    if layout.read is not _hh_transcripts:
        return True
    first = next((row["chosen"] for _, row in table.rows if row.get("chosen")), None)
    return "prompt" not in table.columns and isinstance(first, str) and _TURN.match(first) is not None


def _convert(table: Table, layout: Layout, user: str | None) -> tuple[Table, dict[str, int]]:
    converted = Table(table.name, problems=[replace(problem, user=user) for problem in table.problems], stem=table.stem)
    ties: dict[str, int] = {}
    for number, row in table.rows:
        try:
            judged = layout.read(row)
        except BadRow as bad:
            bad.user = bad.user or user
            converted.problems.append(bad.at(Place(table.name, number)))
            continue
        for one in judged:
            if isinstance(one, Tied):
                owner = one.user or user or ""
                ties[owner] = ties.get(owner, 0) + 1
                continue
            if user is not None:
                one["user"] = user
            elif "user" in row:
                one.setdefault("user", row["user"])
            converted.add(number, one)
    return converted, ties


# HH-RLHF (Bai et al. 2022): transcripts; https://huggingface.co/datasets/Anthropic/hh-rlhf, and as packaged with DSP

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def _hh_transcripts(row: Row) -> Judged:
    carried = {name: cell for name, cell in row.items() if name not in ("chosen", "rejected")}
    return [{"chosen": _turns(row, "chosen"), "rejected": _turns(row, "rejected"), **carried}]


def _hh_scored(row: Row) -> Judged:
    texts, scores = row.get("text"), row.get("score")
    if not isinstance(texts, list) or len(texts) != 2:
        raise BadRow("text", f"the cell holds {excerpt(texts)}, not two transcripts")
    if not isinstance(scores, list) or len(scores) != 2 or not all(isinstance(score, int | float) for score in scores):
        raise BadRow("score", f"the cell holds {excerpt(scores)}, not two numbers")
    if scores[0] == scores[1]:
        return [Tied(str(row.get("user") or ""))]
    better, worse = (0, 1) if scores[0] > scores[1] else (1, 0)
    carried = {name: cell for name, cell in row.items() if name not in ("text", "score")}
    return _hh_transcripts({"chosen": texts[better], "rejected": texts[worse], **carried})


def _turns(row: Row, column: str) -> list[Message]:
    transcript = row.get(column)
    if not isinstance(transcript, str):
        raise BadRow(column, f"the cell holds {excerpt(transcript)}, not a transcript")
    before, *pieces = _TURN.split(transcript)
    if before.strip() or not pieces:
        raise BadRow(column, f"the transcript begins with {excerpt(transcript)}, not with '\\n\\nHuman:'")
    return [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


# DSP (Cheng et al. 2023): one query, one response a domain and a plain one; a user is a domain

_NOBODY = "normal"


def _dsp(row: Row) -> Judged:
    responses = row.get("responses")
    if not isinstance(responses, dict):
        raise BadRow("responses", f"the cell holds {excerpt(responses)}, not an object of responses by domain")
    return [
        {"user": domain, "prompt": row.get("query"), "chosen": responses[domain], "rejected": other, "over": over}
        for domain in responses
        if domain != _NOBODY
        for over, other in responses.items()
        if over != domain
    ]


# Model-written evaluations (Perez et al. 2022), folder persona: a user is a file

_PERSONA = {"question": "prompt", "answer_matching_behavior": "chosen", "answer_not_matching_behavior": "rejected"}


def _persona(row: Row) -> Judged:
    return [{_PERSONA.get(name, name): cell for name, cell in row.items()}]


# HelpSteer2 (Wang et al. 2024): two responses, five ratings each; a user is a weighting of the five

RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")

WEIGHTINGS: dict[str, dict[str, int]] = {
    "balanced": {"helpfulness": 1, "correctness": 1, "coherence": 1},
    "exact": {"correctness": 2, "coherence": 1},
    "brief": {"verbosity": -2, "helpfulness": 1},
    "thorough": {"verbosity": 2, "helpfulness": 1},
    "simple": {"complexity": -2, "helpfulness": 1},
    "expert": {"complexity": 2, "correctness": 1},
}
"""Users of HelpSteer2: each prefers the response with the higher weighted sum of ratings. Whole weights keep sums of
quarters exact, so that a tie is a tie."""


def _helpsteer2(row: Row) -> Judged:
    responses, labels = row.get("responses"), row.get("labels")
    if not isinstance(responses, list) or len(responses) != 2:
        raise BadRow("responses", f"the cell holds {excerpt(responses)}, not two responses")
    if not isinstance(labels, list) or len(labels) != 2:
        raise BadRow("labels", f"the cell holds {excerpt(labels)}, not the ratings of two responses")
    first, second = (_ratings(label) for label in labels)
    judged: Judged = []
    for user, weights in WEIGHTINGS.items():
        margin = sum(weight * (first[rating] - second[rating]) for rating, weight in weights.items())
        if margin == 0:
            judged.append(Tied(user))
            continue
        chosen, rejected = responses if margin > 0 else reversed(responses)
        pair = {"user": user, "prompt": row.get("prompt"), "chosen": chosen, "rejected": rejected}
        judged.append({**pair, "rating_margin": abs(margin)})
    return judged


def _ratings(label: object) -> dict[str, float]:
    if not isinstance(label, dict):
        raise BadRow("labels", f"the ratings are {excerpt(label)}, not an object")
    for rating in RATINGS:
        if not isinstance(label.get(rating), int | float):
            raise BadRow("labels", f"the rating {rating!r} is {excerpt(label.get(rating))}, not a number")
    return label


def _pair_responses(table: Table) -> Table:
    """As on the hub: a row a response; the two of a prompt follow each other."""
    paired = Table(table.name, problems=list(table.problems), stem=table.stem)
    rows = iter(table.rows)
    waiting = next(rows, None)
    while waiting is not None:
        number, first = waiting
        following = next(rows, None)
        if following is None or following[1].get("prompt") != first.get("prompt"):
            paired.refuse(number, "the row has no second response to its prompt after it")
            waiting = following
            continue
        both = (first, following[1])
        labels = [{rating: one.get(rating) for rating in RATINGS} for one in both]
        paired.add(
            number,
            {"prompt": first.get("prompt"), "responses": [one.get("response") for one in both], "labels": labels},
        )
        waiting = next(rows, None)
    return paired


# PandaLM (Wang et al. 2023), human test set: three annotators, three users; 0 is a tie

_ANNOTATOR = re.compile(r"annotator\d+")


def _pandalm(row: Row) -> Judged:
    instruction, given = row.get("instruction"), row.get("input")
    prompt = f"{instruction}\n\n{given}" if isinstance(instruction, str) and given else instruction
    sides = {1: ("response1", "response2"), 2: ("response2", "response1")}
    judged: Judged = []
    for user in filter(_ANNOTATOR.fullmatch, row):
        verdict = row[user]
        if verdict == 0:
            judged.append(Tied(user))
            continue
        if verdict not in sides:
            raise BadRow(user, f"the verdict is {excerpt(verdict)}", "It is 0 (tie), 1 or 2.", user=user)
        chosen, rejected = (row.get(side) for side in sides[verdict])
        judged.append({"user": user, "prompt": prompt, "chosen": chosen, "rejected": rejected})
    return judged


LAYOUTS = (
    Layout("hh", frozenset({"text", "score"}), _hh_scored, user_is_file=True),
    Layout("hh", frozenset({"chosen", "rejected"}), _hh_transcripts, user_is_file=True),
    Layout("dsp", frozenset({"query", "responses"}), _dsp),
    Layout("personas", frozenset(_PERSONA), _persona, user_is_file=True),
    Layout("helpsteer2", frozenset({"prompt", "responses", "labels"}), _helpsteer2),
    Layout("helpsteer2", frozenset({"prompt", "response", *RATINGS}), _helpsteer2, prepare=_pair_responses),
    Layout("pandalm", frozenset({"instruction", "response1", "response2", "annotator1"}), _pandalm),
)
