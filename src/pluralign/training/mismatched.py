"""A response to another prompt beside every row: what KTO measures its divergence from the reference with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pluralign.preferences.keys import text_key
from pluralign.preferences.schema import Preference
from pluralign.training.people import Census


def give_mismatched(census: Census) -> None:
    """Put one beside everybody's rows, to learn from and held out.

    It is the response of the next row with another prompt, fixed for the whole training: so its reference log-prob is
    computed once like any other. A row gets none where its person has one prompt only.
    """
    for person in census.people:
        person.train, person.held_out = mismatched(person.train), mismatched(person.held_out)


def mismatched(rows: Sequence[Preference]) -> list[Preference]:
    """The rows, each with a response of another.

    A pair lends its chosen and its rejected response in turn: both sides are in the mean.
    """
    keys = [text_key(row.prompt) for row in rows]
    found: list[Preference] = []
    for number, row in enumerate(rows):
        others = ((number + step) % len(rows) for step in range(1, len(rows)))
        other = next((one for one in others if keys[one] != keys[number] and _alike(row, rows[one])), None)
        sides = [] if other is None else [side for side in (rows[other].chosen, rows[other].rejected) if side]
        found.append(replace(row, mismatched=sides[number % len(sides)]) if sides else row)
    return found


def _alike(row: Preference, other: Preference) -> bool:
    """Whether a response of the other can follow the row's prompt: text after text, messages after messages."""
    return isinstance(row.prompt, str) == isinstance(other.prompt, str) and any((other.chosen, other.rejected))
