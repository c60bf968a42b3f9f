"""What is typed: lines of a terminal, with editing and completion, or of a pipe; always text, never too long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TextIO

MOST = 100_000
"""Characters of a line that are taken."""
PROMPT = "> "
_CHUNK = 1 << 16

Complete = Callable[[str], list[str]]
"""Takes a line as far as it is typed, and returns whole lines that it may become."""


@dataclass(frozen=True)
class Line:
    """A line, and what had to be done to it, in clauses."""

    text: str
    notices: list[str] = field(default_factory=list)


class Lines(Protocol):
    """Where lines come from.

    Attributes:
        terminal: whether somebody sits there.
        complete: what a typed beginning may become; to be set by who knows.
    """

    terminal: bool
    complete: Complete

    def read(self) -> Line | None:
        """The next line without its end; None when there are no more."""


@contextlib.contextmanager
def lines_of(stdin: TextIO, stdout: TextIO) -> Iterator[Lines]:
    """The lines of a process's standard input; typed ones where both streams are a terminal."""
    if not (stdin.isatty() and stdout.isatty()):
        yield PipedLines(stdin.buffer)
        return
    lines = TypedLines()
    with _editing(lambda line: lines.complete(line)):
        yield lines


class TypedLines:
    """Lines of a terminal; `input` edits them where `readline` is there."""

    terminal = True

    def __init__(self) -> None:
        self.complete: Complete = lambda line: []

    def read(self) -> Line | None:
        """See `Lines`.

        Raises:
            KeyboardInterrupt: Ctrl-C; the line is dropped.
        """
        try:
            text = input(PROMPT)
        except EOFError:
            return None
        return _line(text.encode("utf-8", "surrogateescape"))


class PipedLines:
    """Lines of a pipe or a file.

    Args:
        stream: its bytes.
    """

    terminal = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.complete: Complete = lambda line: []

    def read(self) -> Line | None:
        """See `Lines`; of a line of any length only its end is ever in memory."""
        kept = b""
        while chunk := self._stream.readline(_CHUNK):
            # A character has up to four bytes; the cut may go through one that is not taken.
            kept = (kept + chunk)[-4 * MOST - _CHUNK :]
            if chunk.endswith(b"\n"):
                break
        return _line(kept.rstrip(b"\r\n")) if kept else None


def _line(raw: bytes) -> Line:
    """A line from bytes that may be no UTF-8, and longer than is taken: the end of it stays, as with prompts."""
    notices = []
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        bad = sum("\udc80" <= character <= "\udcff" for character in raw.decode("utf-8", "surrogateescape"))
        notices.append(f"bytes of the line that are no UTF-8 were replaced: {bad}")
    if len(text) > MOST:
        notices.append(f"the line is too long, and its last {MOST} characters are taken")
    return Line(text[-MOST:], notices)


@contextlib.contextmanager
def _editing(complete: Complete) -> Iterator[None]:
    """`input` with editing, history and completion, where the standard library has been built with `readline`."""
    try:
        import readline
    except ImportError:
        yield
        return
    before: tuple[Any, str] = (readline.get_completer(), readline.get_completer_delims())
    found: list[str] = []

    def completer(line: str, number: int) -> str | None:
        if number == 0:
            found[:] = complete(line)
        return found[number] if number < len(found) else None

    readline.set_completer(completer)
    # A name may hold what else divides words: the whole line is completed.
    readline.set_completer_delims("\n")
    emulated = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if emulated else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])
