"""What one wants to know of a table before training on it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pluralign.preferences.columns import EQUAL_SIDES
from pluralign.preferences.keys import data_hash, text_key
from pluralign.preferences.schema import Preference, Preferences, Problem, Text

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1

_TOKENIZED_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some numbers; all 0 of none."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Spread:
        """The spread of some numbers."""
        ordered = sorted(numbers)
        if not ordered:
            return cls(0, 0, 0)
        return cls(ordered[0], statistics.median(ordered), ordered[-1])


@dataclass(slots=True)
class CheckReport:
    """What `check_preferences` found.

    Attributes:
        name: the table.
        data_hash: hash of its content.
        rows: usable rows; `kinds` says how many are pairs, good and bad completions, anchor-only rows.
        kinds: number of rows by kind; and `messages`, how many of all have a prompt of messages.
        prompts: distinct prompts.
        users: usable rows by user, in order of first appearance; empty where the table names none.
        groups: the same for groups.
        unusable: users without one usable row.
        rows_per_user: spread of `users`.
        unit: what `lengths` counts: tokens, or characters without a tokenizer.
        lengths: spread over rows by branch (prompt, chosen, rejected, base).
        duplicates: rows that repeat an earlier one of the same user.
        equal_sides: pairs with equal sides (they are among the problems too).
        contradictions: by user (`_all` where the table names none), the pairs judged both ways.
        shared_pairs: pairs that two or more users judged.
        disputed_pairs: how many of `shared_pairs` users judged differently.
        ties: undecided comparisons by user; they are no rows.
        problems: rows that cannot be used.
    """

    name: str
    data_hash: str
    rows: int
    kinds: dict[str, int]
    prompts: int
    users: dict[str, int]
    groups: dict[str, int]
    unusable: list[str]
    rows_per_user: Spread
    unit: str
    lengths: dict[str, Spread]
    duplicates: int
    equal_sides: int
    contradictions: dict[str, int]
    shared_pairs: int
    disputed_pairs: int
    ties: dict[str, int]
    problems: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values; the schema is in the documentation of the data."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["rows_per_user"] = asdict(self.rows_per_user)
        fields["lengths"] = {branch: asdict(spread) for branch, spread in self.lengths.items()}
        fields["problems"] = [_problem_as_dict(problem) for problem in self.problems]
        return {"schema_version": SCHEMA_VERSION, **fields}

    def table(self, longest: int = 20) -> RenderableType:
        """The report for a terminal, with up to `longest` people and problems of each kind spelled out."""
        from pluralign.preferences.check_table import render

        return render(self, longest)


def check_preferences(preferences: Preferences, tokenizer: Any = None) -> CheckReport:
    """Look at a table before training on it.

    Args:
        preferences: the table.
        tokenizer: counts lengths in tokens (contents only, without the tokens of a chat template); without one,
            in characters.
    """
    rows, problems = preferences.rows, preferences.problems
    users = Counter(row.user for row in rows if row.user is not None)
    groups = Counter(row.group for row in rows if row.group is not None)
    verdicts = _Verdicts(rows)
    return CheckReport(
        name=preferences.name,
        data_hash=data_hash(preferences),
        rows=len(rows),
        kinds=_kinds(rows),
        prompts=len({text_key(row.prompt) for row in rows}),
        users=dict(users),
        groups=dict(groups),
        unusable=sorted({problem.user for problem in problems if problem.user is not None} - users.keys()),
        rows_per_user=Spread.of(users.values()),
        unit="characters" if tokenizer is None else "tokens",
        lengths=_lengths(rows, tokenizer),
        duplicates=verdicts.duplicates,
        equal_sides=sum(problem.found == EQUAL_SIDES for problem in problems),
        contradictions=verdicts.contradictions,
        shared_pairs=verdicts.shared,
        disputed_pairs=verdicts.disputed,
        ties=dict(preferences.ties),
        problems=problems,
    )


def _problem_as_dict(problem: Problem) -> dict[str, Any]:
    place = {"file": problem.place.file, "row": problem.place.row, "column": problem.column, "user": problem.user}
    return {**place, "found": problem.found, "fix": problem.fix}


def _kinds(rows: Iterable[Preference]) -> dict[str, int]:
    kinds = {"pairs": 0, "completions": 0, "bad_completions": 0, "anchor_only": 0, "messages": 0}
    names = {(True, True): "pairs", (True, False): "completions", (False, True): "bad_completions"}
    for row in rows:
        kinds[names.get((row.chosen is not None, row.rejected is not None), "anchor_only")] += 1
        kinds["messages"] += not isinstance(row.prompt, str)
    return kinds


class _Verdicts:
    """Who judged which pair how: repetitions, contradictions and disputes."""

    def __init__(self, rows: Iterable[Preference]) -> None:
        self.duplicates, self.shared, self.disputed = 0, 0, 0
        self.contradictions: dict[str, int] = {}
        # By pair, its sides in a fixed order: each user's verdicts as bits, 1 for the first side and 2 for the second.
        judged: dict[tuple[str, str, str], dict[str, int]] = {}
        for row in rows:
            pair, verdict = _verdict(row)
            verdicts, user = judged.setdefault(pair, {}), row.owner("user")
            before = verdicts.get(user, 0)
            self.duplicates += bool(before & verdict)
            verdicts[user] = before | verdict
        for verdicts in judged.values():
            self._count(verdicts)

    def _count(self, verdicts: dict[str, int]) -> None:
        for user, verdict in verdicts.items():
            if verdict == 3:
                self.contradictions[user] = self.contradictions.get(user, 0) + 1
        if len(verdicts) > 1:
            self.shared += 1
            self.disputed += len(set(verdicts.values())) > 1


def _verdict(row: Preference) -> tuple[tuple[str, str, str], int]:
    prompt = text_key(row.prompt)
    if row.rejected is None or row.chosen is None:
        only = next((text for text in (row.chosen, row.rejected, row.base) if text is not None), None)
        return (prompt, "" if only is None else text_key(only), ""), 2 if row.rejected is not None else 1
    chosen, rejected = text_key(row.chosen), text_key(row.rejected)
    return ((prompt, chosen, rejected), 1) if chosen < rejected else ((prompt, rejected, chosen), 2)


def _lengths(rows: Iterable[Preference], tokenizer: Any) -> dict[str, Spread]:
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault("prompt", []).append(_content(row.prompt))
        for branch, text in row.responses.items():
            texts.setdefault(branch, []).append(_content(text))
    if tokenizer is None:
        return {branch: Spread.of(map(len, of)) for branch, of in texts.items()}
    distinct = dict.fromkeys(text for of in texts.values() for text in of)
    counts = dict(zip(distinct, _token_counts(list(distinct), tokenizer), strict=True))
    return {branch: Spread.of(map(counts.__getitem__, of)) for branch, of in texts.items()}


def _token_counts(texts: list[str], tokenizer: Callable[..., Any]) -> Iterator[int]:
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        chunk = texts[start : start + _TOKENIZED_AT_ONCE]
        yield from map(len, tokenizer(chunk, add_special_tokens=False)["input_ids"])


def _content(text: Text) -> str:
    """The text alone: of messages, their contents and no markup."""
    if isinstance(text, str):
        return text
    return "\n".join(_parts(message.get("content")) for message in text)


def _parts(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") if isinstance(part, dict) else str(part) for part in content)
    return content or ""
