"""What groups answered: questions with options, and the share of a group that took each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pluralign.preferences import Preferences
from pluralign.preferences.schema import Place, Text
from pluralign.storage import sha256_of_json

_NAMED = 5
"""Groups that a message names, at most."""
Shares = np.ndarray
"""float64 `[options]`, at least 0, with sum 1."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        text: of the question; of a pair of responses, the prompt.
        options: the answers to choose from, at least two, all different.
        ordinals: where the options stand on a line, in the order of `options`; None where they have no order.
    """

    text: str
    options: tuple[str, ...]
    ordinals: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        """Hex digest of text and options, in whatever order these stand."""
        return sha256_of_json([self.text, sorted(self.options)])

    @property
    def asked(self) -> tuple[str, frozenset[str]]:
        """What makes two questions the same: text and options, whatever their order and where they stand on a line."""
        return self.text, frozenset(self.options)

    @property
    def line(self) -> dict[str, float] | None:
        """Option -> where it stands on the line; None where they have no order."""
        return None if self.ordinals is None else dict(zip(self.options, self.ordinals, strict=True))

    @property
    def ranks(self) -> list[int]:
        """Place of each option among all of them in the order of the alphabet."""
        return [sorted(self.options).index(option) for option in self.options]


@dataclass(slots=True)
class Answers:
    """Who answered what.

    Attributes:
        questions: each distinct one once, as it was first asked; of two with one wording and different options both.
        groups: group -> number of a question -> shares. Groups and their answers are in order of first appearance.
        rescaled: distributions whose sum was not 1, but near enough to be scaled.
        unasked: cells of published tables without an answer, since nobody of the group was asked.
        undecided: rows of preferences that say nothing of which response is better.
        silent: groups of published tables whose every cell is without an answer.
        name: what to call the table in messages.
        places: (group, number of a question) -> the row of the answer; of a pair that was chosen often, the first one.
    """

    questions: list[Question] = field(default_factory=list)
    groups: dict[str, dict[int, Shares]] = field(default_factory=dict)
    rescaled: int = 0
    unasked: int = 0
    undecided: int = 0
    silent: tuple[str, ...] = ()
    name: str = "memory"
    places: dict[tuple[str, int], Place] = field(default_factory=dict)
    _numbers: dict[tuple[str, frozenset[str]], int] = field(default_factory=dict, repr=False)

    def number(self, question: Question) -> int:
        """Number of a question, which joins where it is new; one with its options in another order is the same."""
        found = self._numbers.setdefault(question.asked, len(self.questions))
        if found == len(self.questions):
            self.questions.append(question)
        return found

    def find(self, question: Question) -> int | None:
        """Number of a question, whatever the order of its options; None where it is not there."""
        return self._numbers.get(question.asked)

    def add(self, group: str, question: Question, shares: Shares, place: Place | None = None) -> bool:
        """Note an answer; false where the group has answered the question before, and nothing is changed.

        Args:
            group: who.
            question: what was asked.
            shares: in the order of its options.
            place: the row.
        """
        number = self.number(question)
        there = self.questions[number].options
        if there != question.options:
            shares = shares[[question.options.index(option) for option in there]]
        own = self.groups.setdefault(group, {})
        if number in own:
            return False
        own[number] = shares
        if place is not None:
            self.places[group, number] = place
        return True

    def notes(self) -> list[str]:
        """What was changed or left out where the answers were read, a sentence each."""
        named = f"{', '.join(self.silent[:_NAMED])}{', ...' if len(self.silent) > _NAMED else ''}"
        said = {
            f"distributions whose sum was near 1 and was made 1: {self.rescaled}": self.rescaled,
            f"cells without an answer, where nobody was asked: {self.unasked}": self.unasked,
            f"rows that say nothing of which response is better: {self.undecided}": self.undecided,
            f"groups without any answer, which are left out: {len(self.silent)} ({named})": len(self.silent),
        }
        return [f"{self.name}: {note}" for note, count in said.items() if count]

    def first(self, number: int) -> str | None:
        """The first group that answered a question; None where nobody did."""
        return next((group for group, own in self.groups.items() if number in own), None)

    def place(self, group: str, number: int) -> str:
        """The row of an answer; the table's name where that is not known."""
        return str(self.places.get((group, number), self.name))

    def of(self, groups: Iterable[str]) -> Answers:
        """The same questions with the answers of some groups."""
        return replace(self, groups={group: self.groups[group] for group in groups})

    def without(self, questions: Collection[int]) -> Answers:
        """The same questions without the answers to some; groups that have no other answer are left out."""
        some = {
            group: {number: shares for number, shares in own.items() if number not in questions}
            for group, own in self.groups.items()
        }
        return replace(self, groups={group: own for group, own in some.items() if own})

    def compact(self) -> tuple[Answers, list[int]]:
        """The same without the questions that nobody answered, and the numbers that the others had."""
        numbers = sorted({number for own in self.groups.values() for number in own})
        places = {number: place for place, number in enumerate(numbers)}
        found = Answers(name=self.name)
        for number in numbers:
            found.number(self.questions[number])
        for group, own in self.groups.items():
            found.groups[group] = {places[number]: shares for number, shares in own.items()}
            there = ((number, self.places.get((group, number))) for number in own)
            found.places |= {(group, places[number]): place for number, place in there if place is not None}
        return found, numbers

    def parts(self, most: int, *, least: int = 1) -> Iterator[Answers]:
        """Groups in their order, as many at once as answered questions of no more than so many options together.

        Args:
            most: options of different questions.
            least: groups at once, whatever they answered.
        """
        groups: list[str] = []
        seen: set[int] = set()
        options = 0
        for group, own in self.groups.items():
            more = sum(len(self.questions[number].options) for number in own.keys() - seen)
            if len(groups) >= least and options + more > most:
                yield self.of(groups)
                groups, seen, options = [], set(), 0
                more = sum(len(self.questions[number].options) for number in own)
            groups.append(group)
            seen |= own.keys()
            options += more
        yield self.of(groups)

    def __iter__(self) -> Iterator[tuple[str, int, Shares]]:
        """Group, number of the question, shares."""
        return ((group, number, shares) for group, own in self.groups.items() for number, shares in own.items())

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))


def alike(questions: Sequence[Question], order: Iterable[int]) -> list[list[int]]:
    """Numbers of questions with one text, whatever the options, together: in an order, a text where it first comes.

    Args:
        questions: all.
        order: numbers of some of them.
    """
    found: dict[str, list[int]] = {}
    for number in order:
        found.setdefault(questions[number].text, []).append(number)
    return list(found.values())


def answers_of(preferences: Preferences, *, per: str = "user") -> Answers:
    """Preferences as answers: the question is which of two responses to a prompt is better.

    People who chose differently between the same two responses answered one question. What somebody chose is 1; who
    chose both ways gets the shares of their choices.

    Args:
        preferences: of the library's tables; rows without two different responses say nothing here, and are counted.
        per: `user` or `group`, whose answers they are.
    """
    found = Answers(name=preferences.name, undecided=sum(preferences.ties.values()))
    votes: dict[tuple[str, Question], list[int]] = {}
    places: dict[tuple[str, Question], Place] = {}
    for row in preferences:
        chosen, rejected = (None if side is None else plain_text(side) for side in (row.chosen, row.rejected))
        if chosen is None or rejected is None or chosen == rejected:
            found.undecided += 1
            continue
        first, second = sorted((chosen, rejected))
        key = row.owner(per), Question(plain_text(row.prompt), (first, second))
        votes.setdefault(key, [0, 0])[chosen == second] += 1
        places.setdefault(key, row.place)
    for (owner, question), counts in votes.items():
        found.add(owner, question, np.array(counts, float) / sum(counts), places[owner, question])
    return found


def plain_text(text: Text) -> str:
    """A text as it is; messages as their contents, one below the other."""
    if isinstance(text, str):
        return text
    return "\n\n".join(_content(message.get("content", "")) for message in text)


def _content(content: object) -> str:
    if isinstance(content, Sequence) and not isinstance(content, str):
        return " ".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return str(content)
