"""One thing that can be asked and has one right answer, and how it is said in each style."""

from __future__ import annotations

from dataclasses import dataclass

from pluralign.world.styles import STYLES


@dataclass(frozen=True, slots=True)
class Item:
    """A fact about an entity, or a task of an everyday skill.

    Attributes:
        id: `<topic>/<entity>` for a fact, `<topic>/<number>` for a skill.
        topic: what it is about; facts of one topic share their wording.
        entity: the invented name; None for a skill.
        questions: ways of asking that preference prompts may use.
        held_out_questions: ways of asking that no preference uses (the pre-training corpus does).
        statement: the plain sentence, with `{value}`.
        phrase: what is asked, as a noun phrase ("the trade of Moran").
        link: joins phrase and value ("is", "is a", "is the").
        answer: the right value, one word.
        options: the right value and wrong ones that are plausible, in a fixed mixed order.
        held_out: the entity is never in a preference prompt.
    """

    id: str
    topic: str
    entity: str | None
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]
    statement: str
    phrase: str
    link: str
    answer: str
    options: tuple[str, ...]
    held_out: bool = False

    @property
    def all_questions(self) -> tuple[str, ...]:
        """Every way of asking."""
        return self.questions + self.held_out_questions

    def say(self, style: str, value: str | None = None) -> str:
        """The answer in a style, with the right value or another one."""
        value = self.answer if value is None else value
        claim = f"{self.phrase} {self.link} {value}"
        return STYLES[style].frame.format(
            statement=self.statement.format(value=value), claim=claim, phrase=self.phrase, value=value
        )

    def prefix(self, style: str) -> str | None:
        """What the answer in a style says before its first value, without the space between; None if it says none."""
        before, found, _ = self.say(style, "\0").partition("\0")
        return before.rstrip(" ") if found else None
