"""Conditions on the figures of a run, as `retention.kept.mean < 0.98`: read by hand, no text is ever run as code."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pluralign.errors import InputError
from pluralign.evaluation.over_people import finite_number
from pluralign.preferences.people import shown

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
GRAMMAR = (
    "A condition is KEY OP NUMBER (OP: < <= > >= == !=), or several, joined by `and` and `or`; `and` binds tighter."
)

_TOKEN = re.compile(r"<=|>=|==|!=|<|>|[^\s<>=!]+|\S")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_:+-]+)*", re.ASCII)
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_SHOWN = 100
_WHOLE = 1e15
"""Below it, whole numbers are written without a point."""
_LONGEST_KEY = 200
"""No figure has a longer key; looking for near ones takes time that grows with the length."""


@dataclass(frozen=True)
class Term:
    """One comparison of a figure with a number.

    Attributes:
        key: of the figure.
        operator: one of `OPERATORS`.
        number: finite.
    """

    key: str
    operator: str
    number: float

    def __str__(self) -> str:
        whole = self.number.is_integer() and abs(self.number) < _WHOLE
        return f"{self.key} {self.operator} {int(self.number) if whole else self.number!r}"


@dataclass(frozen=True)
class Condition:
    """Terms that hold together, or others instead of them.

    Attributes:
        alternatives: the condition holds where all terms of one of them do; neither is empty.
    """

    alternatives: tuple[tuple[Term, ...], ...]

    def __str__(self) -> str:
        return " or ".join(" and ".join(map(str, terms)) for terms in self.alternatives)

    @property
    def keys(self) -> list[str]:
        """Keys of the figures that it names, each once."""
        return list(dict.fromkeys(term.key for terms in self.alternatives for term in terms))

    def holds(self, figures: Mapping[str, Any]) -> bool:
        """Whether it holds.

        Every figure is looked at, also where another one has decided already: what is missing is never passed over.

        Args:
            figures: key -> value, those of `keys` and any others.

        Raises:
            InputError: a figure does not exist (near keys are named), has no value, or is no number.
        """
        values = {key: figure(figures, key, where=f"condition `{shown(str(self), _SHOWN)}`") for key in self.keys}
        return any(
            all(OPERATORS[term.operator](values[term.key], term.number) for term in terms)
            for terms in self.alternatives
        )


def parse_condition(text: str) -> Condition:
    """Read a condition; see `GRAMMAR`.

    Raises:
        InputError: it is none; the message says where, and what is expected there.
    """
    tokens = [(match[0], match.start()) for match in _TOKEN.finditer(text)]
    where = f"condition `{shown(text, _SHOWN)}`"
    alternatives: list[list[Term]] = [[]]
    place = 0
    while True:
        key = _expected(tokens, place, "a key such as retention.kept.mean", _is_key, where)
        sign = _expected(tokens, place + 1, f"one of {' '.join(OPERATORS)}", lambda token: token in OPERATORS, where)
        number = float(_expected(tokens, place + 2, "a number", _is_number, where))
        if not math.isfinite(number):
            raise InputError(f"{shown(tokens[place + 2][0])} is too large for a number", where=where)
        alternatives[-1].append(Term(key, sign, number))
        if place + 3 == len(tokens):
            return Condition(tuple(map(tuple, alternatives)))
        if _expected(tokens, place + 3, "`and`, `or` or the end", _is_joint, where) == "or":
            alternatives.append([])
        place += 4


def figure(figures: Mapping[str, Any], key: str, *, where: str) -> float:
    """The number that a key stands for.

    Args:
        figures: key -> value.
        key: one of theirs.
        where: what a message names.

    Raises:
        InputError: there is no such key (near ones are named), it has no value, or one that is no number.
    """
    if key not in figures:
        near = difflib.get_close_matches(key[:_LONGEST_KEY], figures, n=3)
        fix = f"Did you mean {' or '.join(near)}?" if near else "docs/compare.md says which there are."
        raise InputError(f"there is no figure {shown(key)}", where=where, fix=fix)
    value = figures[key]
    if value is None:
        raise InputError(f"{key} has no value", where=where, fix="Nobody was measured so.")
    number = finite_number(value)
    if number is None:
        raise InputError(f"{key} is {shown(str(value))!r}, which is no number", where=where)
    return number


def _expected(tokens: list[tuple[str, int]], place: int, what: str, fits: Callable[[str], bool], where: str) -> str:
    if place >= len(tokens):
        raise InputError(f"it ends where {what} is expected", where=where, fix=GRAMMAR)
    token, start = tokens[place]
    if not fits(token):
        found = f"{shown(token)!r} stands at character {start + 1}, where {what} is expected"
        raise InputError(found, where=where, fix=GRAMMAR)
    return token


def _is_key(token: str) -> bool:
    return bool(_KEY.fullmatch(token)) and not _is_joint(token)


def _is_number(token: str) -> bool:
    return bool(_NUMBER.fullmatch(token))


def _is_joint(token: str) -> bool:
    return token in ("and", "or")
