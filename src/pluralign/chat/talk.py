"""The talk: lines in, answers out, and commands that change who answers."""

from __future__ import annotations

import difflib
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.chat.screen import Columns, printable
from pluralign.errors import InputError
from pluralign.preferences import Message, named_people, shown

if TYPE_CHECKING:
    from pluralign.chat.asking import Asking
    from pluralign.chat.lines import Lines
    from pluralign.chat.speakers import Speakers

LISTED = 50
"""People that `/people` shows, and Tab offers."""
_NAME = 30
PERSON = "/person"


@dataclass
class Voice:
    """One who answers.

    Attributes:
        name: as it is shown.
        talk: what was said so far, as this one heard and answered it.
    """

    name: str
    talk: list[Message] = field(default_factory=list)


class Talk:
    """One talk with the base and, beside it, a person.

    Each of them has the talk with answers of their own. Whoever is taken in its middle takes it up as the base had it:
    another person's answers would lend them that one's manner.

    Args:
        people: id -> folder of what they own.
        speakers: who answers.
        asking: lays the talk out for them.
        lines: where lines come from.
        run: what messages name.
        skipped: people without an adapter, with the reason.
    """

    def __init__(
        self,
        people: Mapping[str, Path],
        speakers: Speakers,
        asking: Asking,
        lines: Lines,
        *,
        run: str,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        self.people, self.skipped, self.run_name = people, skipped or {}, run
        self.speakers, self.asking, self.lines = speakers, asking, lines
        self.base = Voice("base")
        self.person: Voice | None = None
        self.user: str | None = None
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            PERSON: ("NAME: who answers beside the base from now on (Tab completes the name)", self._other),
            "/base": ("the base alone", lambda _: self._alone()),
            "/people": ("everybody of the run", lambda _: self._list()),
            "/reset": ("begin the talk anew", lambda _: self._reset()),
            "/help": ("this list; a line that begins with // is no command", lambda _: self._help()),
            "/quit": ("leave, as Ctrl-D does; Ctrl-C stops an answer", lambda _: None),
        }
        lines.complete = self.completions

    def greet(self, model: str, first: str | None) -> None:
        """Take the first person, and on a terminal say who is there.

        Raises:
            InputError: that person's adapter cannot be used.
        """
        if first is not None:
            self._take(first)
        if self.lines.terminal:
            beside = f", and {self.person.name} beside it" if self.person else ""
            _say(f"{shown(model)}{beside}; {len(self.people)} people. /help says what can be typed.")
        if not self.people:
            _note(f"{self.run_name}: nobody has an adapter, the base is alone")
        if not self.asking.remembers:
            _note("each line is asked by itself")

    def run(self) -> None:
        """Answer until the lines end or `/quit`."""
        with Interrupts() as interrupts:
            goes_on = True
            while goes_on:
                try:
                    goes_on = self._turn(interrupts)
                except KeyboardInterrupt:
                    if not self.lines.terminal:
                        raise
                    _say("")
                    _note("/quit or Ctrl-D leaves")

    def _turn(self, interrupts: Interrupts) -> bool:
        line = self.lines.read()
        if line is None:
            if self.lines.terminal:
                _say("")
            return False
        with interrupts.held():
            for notice in line.notices:
                _note(notice)
            return self.obey(line.text, interrupts)

    def obey(self, line: str, interrupts: Interrupts) -> bool:
        """Do what a line says; what cannot be done is said, and the talk goes on.

        Returns:
            Whether the talk goes on.
        """
        text = line.strip()
        name, _, rest = text.partition(" ")
        try:
            if name == "/quit":
                return False
            if name.startswith("/") and not name.startswith("//"):
                self._command(name)(rest.strip())
            elif text:
                self._answer(text.removeprefix("/") if name.startswith("//") else line, interrupts)
        except InputError as error:
            _note(str(error))
        return True

    def completions(self, line: str) -> list[str]:
        """Whole lines that a beginning may become: commands, and people behind `/person`."""
        if line.startswith(f"{PERSON} "):
            typed = line.removeprefix(f"{PERSON} ").lstrip().casefold()
            names = (shown(user) for user in self.people)
            return [f"{PERSON} {name}" for name in names if name.casefold().startswith(typed)][:LISTED]
        return [name + " " * (name == PERSON) for name in self.commands if line and name.startswith(line)]

    # ---- commands ----

    def _command(self, name: str) -> Callable[[str], None]:
        if name not in self.commands:
            near = difflib.get_close_matches(name[:_NAME], self.commands, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise InputError(f"there is no command {shown(name, _NAME)}", fix=f"{hint}/help lists them.")
        return self.commands[name][1]

    def _other(self, name: str) -> None:
        if not name:
            who = f"{self.person.name} answers" if self.person else "nobody answers"
            raise InputError(f"{who} beside the base", fix=f"{PERSON} NAME takes another; /people lists them.")
        self._take(name)
        _note(f"{shown(str(self.user), _NAME)} is beside the base")

    def _take(self, name: str) -> None:
        user = person_of(name, self.people, where=self.run_name)
        try:
            self.speakers.take(self.people[user])
        except InputError:
            # Who was there before has gone to make room.
            self._alone()
            raise
        self.user, self.person = user, Voice(shown(user, _NAME), list(self.base.talk))

    def _alone(self) -> None:
        self.speakers.take(None)
        self.user = self.person = None
        _note("the base is alone")

    def _list(self) -> None:
        for user in list(self.people)[:LISTED]:
            _say(f"{'*' if user == self.user else ' '} {shown(user)}")
        if len(self.people) > LISTED:
            _say(f"  and {len(self.people) - LISTED} more: Tab behind the beginning of a name finds them")
        for user, reason in list(self.skipped.items())[:LISTED]:
            _say(f"- {shown(user)}: {shown(reason, 100)}")

    def _reset(self) -> None:
        for voice in self._voices():
            voice.talk.clear()
        _note("the talk begins anew")

    def _help(self) -> None:
        width = max(map(len, self.commands))
        for name, (text, _) in self.commands.items():
            _say(f"{name:<{width}}  {text}")

    # ---- answers ----

    def _voices(self) -> list[Voice]:
        return [self.base, self.person] if self.person else [self.base]

    def _answer(self, line: str, interrupts: Interrupts) -> None:
        voices = self._voices()
        asked = [self.asking.asked(voice.talk, line) for voice in voices]
        if cut := max(one.line_cut for one in asked):
            _note(f"the line has no room: its first {cut} of {len(line)} characters are left out")
        elif any(one.cut for one in asked):
            _note("the talk has no room any more: its beginning is left out (/reset begins anew)")
        for members in self.speakers.together:
            names = [voices[number].name for number in members]
            prompts = [asked[number].tokens for number in members]
            columns = _columns(names)
            said = self.speakers.answer(members, prompts, columns or _unseen, lambda: interrupts.stopped)
            for number, text in zip(members, said, strict=True):
                if columns is None:
                    _say(f"{voices[number].name}: {printable(text)}")
                # An answer of nothing leaves no turn: there are chat templates that refuse one.
                if self.asking.remembers and text.strip():
                    turns = {"user": line, "assistant": text}
                    voices[number].talk += [{"role": role, "content": content} for role, content in turns.items()]
            if interrupts.stopped:
                _note("stopped")
                return


class Interrupts:
    """Ctrl-C while a line is worked on: noted, and for the work to look at; anywhere else it interrupts as usual.

    A context for the main thread; in any other, signals are left alone.

    Attributes:
        stopped: whether there was one since the work began.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._held = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._noticed)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The time of a piece of work."""
        self.stopped, self._held = False, True
        try:
            yield
        finally:
            self._held = False

    def _noticed(self, number: int, frame: Any) -> None:
        if not self._held:
            signal.default_int_handler(number, frame)
        self.stopped = True


def person_of(name: str, people: Collection[str], *, where: str) -> str:
    """The id that somebody typed: as it is, or as it is shown where it holds what no terminal takes.

    Raises:
        InputError: nobody has it; the message names near ones.
    """
    if name not in people:
        name = next((user for user in people if shown(user) == name), name)
    return named_people([name], people, where=where)[0]


def _columns(names: list[str]) -> Callable[[list[str], list[bool]], None] | None:
    """Where answers grow; None where no terminal, or one that is too narrow, would show them."""
    width = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or not Columns.fit(len(names), width):
        return None
    return Columns(names, _write, width).grow


def _unseen(texts: list[str], done: list[bool]) -> None:
    """Nothing to show before the end."""


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    _write(f"{text}\n")


def _note(text: str) -> None:
    """What is said about the talk, apart from it: a pipe has answers and nothing else."""
    print(f"({text})", file=sys.stderr, flush=True)
