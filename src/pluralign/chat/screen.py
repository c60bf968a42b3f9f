"""What is shown: answers without control characters, in columns that grow side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

_JOINERS = "\u200c\u200d"
"""Characters without a width of their own that scripts and emoji need; they do nothing to a terminal."""
_BETWEEN = " │ "
_TAB = 4
NARROWEST = 20
"""Cells of a column."""


def printable(text: str) -> str:
    """A model's text as a terminal may have it: what does not print is written as its escape, but for line breaks.

    A model may say whatever its tokens allow: moves of the cursor, another title of the window, colours without end.
    """
    found = []
    for character in text.replace("\r\n", "\n").expandtabs(_TAB):
        if character.isprintable() or character == "\n" or character in _JOINERS:
            found.append(character)
        else:
            found.append(" " if character.isspace() else ascii(character)[1:-1])
    return "".join(found)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many cells, broken at spaces where there are any.

    When a text grows at its end, all lines but the last stay as they are.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in re.findall(r" *[^ ]+", paragraph):
            if cell_len(line) + cell_len(word) > width:
                if line:
                    lines.append(line)
                    word = word.lstrip(" ")
                *full, word = chop_cells(word, width) or [""]
                lines += full
                line = ""
            line += word
        lines.append(line)
    return lines


class Columns:
    """Texts side by side that grow at once; a line is left behind when all have reached the next one.

    The line that grows is written over and over from its left edge, and nothing above it is touched: answers of any
    length scroll as usual, and a terminal needs to know no more than a carriage return.

    Args:
        names: of the columns.
        write: takes what goes to the terminal, control characters none but line breaks and carriage returns.
        width: cells of the terminal.
    """

    def __init__(self, names: Sequence[str], write: Callable[[str], None], width: int) -> None:
        # The last cell stays free: some terminals break the line as soon as it is filled.
        self.width = max(NARROWEST, (width - 1 - cell_len(_BETWEEN) * (len(names) - 1)) // len(names))
        self._write = write
        self._left = 0
        self._growing = ""
        write(f"{self._row(names).rstrip()}\n{'─┼─'.join('─' * self.width for _ in names)}\n")

    @classmethod
    def fit(cls, columns: int, width: int) -> bool:
        """Whether a terminal has room for so many columns."""
        return (NARROWEST + cell_len(_BETWEEN)) * columns <= width

    def grow(self, texts: Sequence[str], done: Sequence[bool]) -> None:
        """Show what has been said so far.

        Args:
            texts: one a column; each begins with what it was before.
            done: which of them are whole; with all of them, the last line is ended.
        """
        lines = [wrapped(printable(text), self.width) for text in texts]
        longest = max(map(len, lines))
        ready = min((len(own) - 1 for own, whole in zip(lines, done, strict=True) if not whole), default=longest)
        for number in range(self._left, ready):
            self._write(f"\r{self._line(lines, number)}\n")
        self._left = max(self._left, ready)
        growing = "" if all(done) else self._line(lines, self._left)
        if growing not in ("", self._growing):
            self._write(f"\r{growing}")
        self._growing = growing

    def _line(self, lines: Sequence[Sequence[str]], number: int) -> str:
        return self._row([own[number] if number < len(own) else "" for own in lines])

    def _row(self, cells: Sequence[str]) -> str:
        return _BETWEEN.join(set_cell_size(cell, self.width) for cell in cells)
