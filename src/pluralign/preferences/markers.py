"""Markup that a value in a prompt must not forge: found however it is disguised, and broken where one can see it."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, repeat
from typing import Any, NamedTuple

_WITHOUT_WIDTH = {"Cf", "Cn", "Me", "Mn"}
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Letters of Hangul that show nothing."""
_UNSEEN = "\0"
"""Stands for the inside of a long text; no folded text holds it."""
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_MARKUP = frozenset("<>[]{}|#:")
_SIGNS = 3
_SENTINEL = "plain words"
_ASCII = {
    code: " " if chr(code).isspace() else chr(code).lower() if chr(code).isprintable() else None for code in range(128)
}


class Part(NamedTuple):
    """A piece of a prompt: the text, and whether it is somebody's value (else a template's, or the prompt itself)."""

    text: str
    is_value: bool


class Markers:
    """Strings that mean something to a tokenizer or stand in a template, and what keeps values clear of them.

    A marker is found whatever its case, with or without accents, in compatibility forms (full-width letters,
    ligatures), with any white space for its own, and with characters between its letters that have no width. It is
    broken by a space behind its first character; one of a single character becomes U+FFFD. Nothing is taken away, so
    no marker can be hidden in the halves of another one, and a text without markers stays byte for byte as it is.

    Args:
        anywhere: markers that count wherever they stand (special tokens, as tokenizers find them inside words too).
        words: markers that count as words: where one begins or ends with a letter or a digit, no other adjoins it, or
            "As" would be found in "Asia".
    """

    def __init__(self, anywhere: Iterable[str] = (), words: Iterable[str] = ()) -> None:
        markers = dict.fromkeys(map(_as_marker, words), True) | dict.fromkeys(map(_as_marker, anywhere), False)
        markers.pop("", None)
        self._by_first: dict[str, list[tuple[str, bool]]] = {}
        for marker, is_word in markers.items():
            self._by_first.setdefault(marker[0], []).append((marker, is_word))
        self._starts = re.compile(f"[{re.escape(''.join(self._by_first))}]") if markers else None
        self._reach = max(map(len, markers), default=0)
        self._replacement = next(sign for sign in "\ufffd?_" if sign not in markers or sign == "_")
        self._escaped: dict[str, str] = {}

    def escape(self, value: str) -> str:
        """A value without a marker; the same again for what it returns."""
        known = self._escaped.get(value)
        if known is None:
            known = self._escaped[value] = self._broken([Part(value, True)], sys.maxsize)[0].text
        return known

    def join(self, parts: Sequence[Part]) -> str:
        """The parts as one text, in which no character of a value is part of a marker, also where parts meet.

        Markers that lie in the other parts alone stay. Only values are changed.
        """
        parts = [Part(self.escape(part.text), True) if part.is_value else part for part in parts]
        if len(parts) > 1:
            # Alone, values are clear: what is left lies where parts meet.
            parts = self._broken(parts, self._reach)
        return "".join(part.text for part in parts)

    def _broken(self, parts: list[Part], reach: int) -> list[Part]:
        """The parts with no marker in a value, as far as the first and last `reach` signs of each part tell."""
        # Breaking one marker may complete another that has a space in it; each time the gap has grown by a space, so no
        # gap is visited more often than the longest marker has characters.
        while (broken := self._broken_once(parts, reach)) is not None:
            parts = broken
        return parts

    def _broken_once(self, parts: list[Part], reach: int) -> list[Part] | None:
        """The parts with every marker of now broken; None where there is none."""
        signs, origins = _folded(parts, reach)
        gaps: dict[int, set[int]] = {}
        replaced: dict[int, set[int]] = {}
        for start, end in self._matches(signs):
            touched = dict.fromkeys(number for number, _ in origins[start:end])
            first = next((number for number in touched if parts[number].is_value), None)
            if first is None:
                continue
            if len(touched) > 1:
                # Where it meets its neighbour a value is changed, and not inside, where it is clear already.
                gaps.setdefault(first, set()).add(len(parts[first].text) if first == origins[start][0] else 0)
            elif len(parts) > 1:
                # The part alone is clear: only the end of what is looked at makes a word of a part of one.
                continue
            elif origins[start] == origins[end - 1]:
                replaced.setdefault(first, set()).add(origins[start][1])
            else:
                gaps.setdefault(first, set()).add(origins[start][1] + 1)
        if not gaps and not replaced:
            return None
        return [
            part._replace(text=self._rewritten(part.text, gaps.get(number, ()), replaced.get(number, ())))
            for number, part in enumerate(parts)
        ]

    def _rewritten(self, text: str, gaps: Iterable[int], replaced: Iterable[int]) -> str:
        characters = list(text)
        for index in replaced:
            characters[index] = self._replacement
        cuts = [0, *sorted(gaps), len(text)]
        return " ".join("".join(characters[start:end]) for start, end in pairwise(cuts))

    def _matches(self, signs: str) -> Iterator[tuple[int, int]]:
        for candidate in self._starts.finditer(signs) if self._starts else ():
            start = candidate.start()
            for marker, is_word in self._by_first[signs[start]]:
                if signs.startswith(marker, start) and not (is_word and _in_a_word(signs, start, start + len(marker))):
                    yield start, start + len(marker)


def pieces_of(literal: str, *, prose: bool = True) -> list[str]:
    """What of a template's own text a value could forge: its lines, and the tags in them.

    Args:
        literal: text between two fields.
        prose: whether lines of words alone count. Those of fewer than three signs without a letter never do.
    """
    found: list[str] = []
    for line in map(str.strip, literal.splitlines()):
        found += _TAG.findall(line)
        tells = any(map(str.isalpha, line)) or len("".join(line.split())) >= _SIGNS
        if tells and (prose or not _MARKUP.isdisjoint(line)):
            found.append(line)
    return found


def markers_of(tokenizer: Any) -> list[str]:
    """What a tokenizer and its chat template treat as markup.

    Special tokens; other added tokens that are no words of a language; and of what the chat template writes around the
    turns of a conversation, lines with a sign of markup in them and tags.

    Args:
        tokenizer: of transformers.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = [token.content for token in added if token.special or _TAG.search(token.content)]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *tokens, *_turn_markers(tokenizer)]))


def _turn_markers(tokenizer: Any) -> Iterator[str]:
    if not getattr(tokenizer, "chat_template", None):
        return
    from jinja2.exceptions import TemplateError

    turns = [{"role": role, "content": _SENTINEL} for role in ("system", "user", "assistant", "user")]
    # Many templates know no system message, and some write something else in its place.
    for conversation in (turns, turns[1:]):
        try:
            text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
            continue
        for literal in str(text).split(_SENTINEL):
            yield from pieces_of(literal, prose=False)


def _folded(parts: Sequence[Part], reach: int) -> tuple[str, list[tuple[int, int]]]:
    """What the parts look like together, and where each sign comes from: the part, and its character there."""
    signs: list[str] = []
    origins: list[tuple[int, int]] = []
    for number, part in enumerate(parts):
        for start, end in _seen(part.text, reach):
            if start < 0:
                signs.append(_UNSEEN)
                origins.append((number, start))
                continue
            text = part.text[start:end]
            plain = text.translate(_ASCII) if text.isascii() else ""
            if len(plain) == len(text):
                signs.append(plain)
                origins += zip(repeat(number), range(start, end), strict=False)
                continue
            for index, character in enumerate(text, start):
                found = _fold(character)
                signs.append(found)
                origins += [(number, index)] * len(found)
    return "".join(signs), origins


def _seen(text: str, reach: int) -> list[tuple[int, int]]:
    """Ranges of a text that are looked at; (-1, -1) stands between them where something is left out."""
    if len(text) <= 2 * reach:
        return [(0, len(text))]
    head = seen = 0
    while head < len(text) and seen < reach:
        seen += len(_fold(text[head]))
        head += 1
    tail, seen = len(text), 0
    while tail > head and seen < reach:
        tail -= 1
        seen += len(_fold(text[tail]))
    return [(0, head), (-1, -1), (tail, len(text))]


@lru_cache(maxsize=1 << 16)
def _fold(character: str) -> str:
    """What a character looks like: no case, no accent, one space for any white space, nothing for what has no width."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", character).casefold())
    return "".join(map(_sign, folded))


def _sign(character: str) -> str:
    # Tokenizers write U+2581 for a space.
    if character.isspace() or character == "\u2581":
        return " "
    category = unicodedata.category(character)
    return "" if category in _WITHOUT_WIDTH or category == "Cc" or character in _FILLERS else character


def _as_marker(text: str) -> str:
    return "".join(map(_fold, text)).strip()


def _in_a_word(signs: str, start: int, end: int) -> bool:
    """Whether a match is only a part of a word."""
    before = start > 0 and signs[start].isalnum() and signs[start - 1].isalnum()
    after = end < len(signs) and signs[end - 1].isalnum() and signs[end].isalnum()
    return before or after
