"""How people, groups and runs are called on the page: as they are, made fit to be seen, or by number."""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterable

from pluralign.preferences import shown

LONGEST = 48
_SIDEWAYS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that turn the direction of the text after them: what follows a quoted text must not be turned by it."""


class Names:
    """Numbers and labels of ids; an id has a number once the page needs one.

    Args:
        order: all ids; by their places in it people are numbered where they are not to be told from the page.
        word: what a number stands behind, `person` or `group`; None to call everybody by the id.
    """

    def __init__(self, order: Iterable[str], word: str | None = None) -> None:
        self._numbered: dict[str, int] | None = None
        if word is not None:
            self._numbered = {one: number for number, one in enumerate(dict.fromkeys(order), 1)}
        self._word, self._digits = word, len(str(len(self._numbered or ())))
        self._index: dict[str, int] = {}
        self._taken: dict[str, str] = {}
        self.labels: list[str] = []

    def index(self, one: str) -> int:
        """The number of an id in `labels`."""
        if one not in self._index:
            self._index[one] = len(self.labels)
            self.labels.append(self.label(one))
        return self._index[one]

    def label(self, one: str) -> str:
        """What the page calls an id: one line, no two ids the same."""
        if self._numbered is not None:
            number = self._numbered.setdefault(one, len(self._numbered) + 1)
            return f"{self._word} {number:0{self._digits}}"
        label = text = shown(one, LONGEST)
        number = 2
        while self._taken.setdefault(label, one) != one:
            label, number = f"{text} ({number})", number + 1
        return label

    def fresh(self) -> Names:
        """The same labels with no number given out yet."""
        names = copy.copy(self)
        names._index, names.labels = {}, []
        return names


def visible(text: str, longest: int) -> str:
    """A text of several lines with what does not print made visible, cut behind `longest` characters."""
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(one if _prints(one) else ascii(one)[1:-1] for one in cut)


def _prints(one: str) -> bool:
    return one in "\n\t" or (unicodedata.category(one) not in ("Cc", "Cs", "Zl", "Zp") and one not in _SIDEWAYS)
