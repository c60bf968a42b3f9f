"""Answers of base and person as one list of pieces: what both say, what only one says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from typing import Any

from pluralign.reporting.gather import Run
from pluralign.reporting.names import visible

LONGEST = 1_200
"""Characters of a text that the page carries."""
_TOKENS = re.compile(r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+|\s+|.", re.DOTALL)
"""Words, runs of space, single signs; scripts that put no space between words go by the character."""

Piece = tuple[str, str]
"""What is done (`=` said by both, `-` by the base only, `+` by the person only), and the text."""


def difference(base: str, person: str) -> list[Piece]:
    """Two texts as pieces, in order.

    The pieces `=` and `-` together are the base's text, character for character, and `=` and `+` the person's.
    """
    before, after = _TOKENS.findall(base), _TOKENS.findall(person)
    pieces: list[Piece] = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("=", "".join(before[a:b])))
        else:
            pieces += [("-", "".join(before[a:b]))] if b > a else []
            pieces += [("+", "".join(after[c:d]))] if d > c else []
    return _without_gaps(pieces)


def answers_of(run: Run, users: Iterable[str], budget: int) -> dict[str, list[dict[str, Any]]]:
    """The kept answers of some people, until so many characters are used up.

    Each is `{prompt, chosen, pieces, style, right, degenerate}`; judgements that nobody could make are None.

    Args:
        run: with the samples of its evaluation.
        users: in the order in which they are wanted.
        budget: characters in all.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for user in users:
        own = [_answer(sample) for sample in (run.people[user].samples if user in run.people else ())]
        used = sum(
            len(text) for one in own for text in (one["prompt"], one["chosen"] or "", *(p[1] for p in one["pieces"]))
        )
        if used > budget:
            break
        budget -= used
        if own:
            found[user] = own
    return found


def _answer(sample: Mapping[str, Any]) -> dict[str, Any]:
    texts = {key: sample.get(key) for key in ("prompt", "chosen", "base", "person")}
    prompt, chosen, base, person = (None if text is None else visible(str(text), LONGEST) for text in texts.values())
    judged = {key: sample.get(key) for key in ("style", "right", "degenerate")}
    return {"prompt": prompt or "", "chosen": chosen, "pieces": difference(base or "", person or ""), **judged}


def _without_gaps(pieces: list[Piece]) -> list[Piece]:
    """A space that both have between two changes is part of the change: one mark over words, not a mark a word."""
    found: list[Piece] = []
    removed, added = "", ""
    for place, (kind, text) in enumerate(pieces):
        inside = kind == "=" and text.isspace() and (removed or added) and place < len(pieces) - 1
        if kind == "-" or inside:
            removed += text
        if kind == "+" or inside:
            added += text
        if kind == "=" and not inside:
            found += _changes(removed, added)
            found.append((kind, text))
            removed, added = "", ""
    return found + _changes(removed, added)


def _changes(removed: str, added: str) -> list[Piece]:
    return [piece for piece in (("-", removed), ("+", added)) if piece[1]]
