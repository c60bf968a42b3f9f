"""The truth about an answer, by program: its style, whether its fact is right, whether it is language at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pluralign.world.items import Item
from pluralign.world.styles import STYLES

_WORD = re.compile(r"\w+")
_CLAIM = r"the [\w ]+? is(?: a| the)? \w+"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is true of an answer.

    Attributes:
        style: it is in the style its reader wants.
        right: it states the right value and no other; None where it declines or no fact was asked.
        degenerate: it is empty, repeats itself, uses words that the world does not have, or never ended.
        spoken: the style it is in; None if in none.
    """

    style: bool
    right: bool | None
    degenerate: bool
    spoken: str | None


class StyleClassifier:
    """Tells the style of an answer whatever its fact; no answer is in two styles."""

    def __init__(self, items: Iterable[Item]) -> None:
        statements = {_loosened(item) for item in items}
        slots = {
            "statement": "(?:" + "|".join(sorted(statements)) + ")",
            "claim": _CLAIM,
            "phrase": r"the [\w ]+?",
            "value": r"\w+",
        }
        self._patterns = {name: re.compile(_fill(style.frame, slots)) for name, style in STYLES.items()}

    def __call__(self, response: str) -> str | None:
        """The name of the style, or None."""
        for name, pattern in self._patterns.items():
            if pattern.fullmatch(response):
                return name
        return None


def stated_values(item: Item, response: str) -> set[str]:
    """Every value the response states as the answer to the item, in whatever wording the world knows."""
    openings = [item.prefix("plain"), f"{item.phrase} {item.link}", "In short:", "Answer:"]
    return {found for opening in openings for found in re.findall(rf"{re.escape(str(opening))} (\w+)", response)}


def is_degenerate(response: str, vocabulary: Collection[str], *, finished: bool = True) -> bool:
    """Empty, unfinished, repetitive (a word three times running, or four words three times), or with unknown words."""
    words = _WORD.findall(response)
    if not words or not finished or any(word not in vocabulary for word in words):
        return True
    if any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2)):
        return True
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return any(runs.count(run) > 2 for run in set(runs))


def words_of(text: str) -> list[str]:
    """The words of a text, in order, as the vocabulary counts them."""
    return _WORD.findall(text)


def _loosened(item: Item) -> str:
    """The plain sentence of the item's topic as a pattern: any name, number and value will do."""
    pattern = re.escape(item.statement.replace("{value}", "\0")).replace("\0", r"\w+")
    if item.entity is not None:
        return pattern.replace(item.entity, r"\w+")
    # A skill's sentence names what was asked: numbers, or the one word that is part of the phrase as well.
    pattern = re.sub(r"\b\d+\b", r"\\w+", pattern)
    last = item.phrase.rsplit(" ", 1)[-1]
    return pattern if last in ("days", "weeks", "years") else re.sub(rf"\b{last}\b", r"\\w+", pattern)


def _fill(frame: str, slots: dict[str, str]) -> str:
    parts = re.split(r"\{(\w+)\}", frame)
    return "".join(slots[part] if odd % 2 else re.escape(part) for odd, part in enumerate(parts))
