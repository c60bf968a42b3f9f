"""Everyday skills that no preference talks about: adding, comparing, counting, what comes next, units, opposites."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pluralign.world.items import Item

_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_OPPOSITES = (
    "hot cold, big small, old young, wet dry, fast slow, rich poor, loud quiet, early late, hard soft, full empty, "
    "open shut, strong weak, deep shallow, thick thin, wide narrow, bright dark, happy sad, clean dirty, sharp blunt, "
    "rough smooth"
)
_THINGS = ["star", "bell", "coin", "boat", "lamp", "drop"]
_N_OPTIONS = 8


def skill_items(seed: int) -> list[Item]:
    """Every task of every skill; the same in all worlds but for the order of their options."""
    makers = (_arithmetic(), _comparing(), _counting(), _sequence(), _units(), _opposites())
    items: list[Item] = []
    for rows in makers:
        for number, (topic, questions, statement, phrase, answer, wrong) in enumerate(rows):
            identity = f"{topic}/{number:03d}"
            rng = random.Random(f"{seed}/options/{identity}")
            options = [answer, *rng.sample(wrong, min(_N_OPTIONS - 1, len(wrong)))]
            rng.shuffle(options)
            items.append(Item(identity, topic, None, (), questions, statement, phrase, "is", answer, tuple(options)))
    return items


_Row = tuple[str, tuple[str, ...], str, str, str, list[str]]


def _near(value: int, spread: int = 8) -> list[str]:
    return [str(n) for n in range(max(0, value - spread), value + spread + 1) if n != value]


def _others(words: Sequence[str], answer: str) -> list[str]:
    return sorted(set(words) - {answer})


def _asked(phrase: str, *own: str) -> tuple[str, ...]:
    return (f"What is {phrase}?", f"Tell me {phrase}.", *own)


def _arithmetic() -> Iterator[_Row]:
    for a in range(10):
        for b in range(10):
            phrase = f"the sum of {a} and {b}"
            asked = _asked(phrase, f"How much is {a} plus {b}?", f"Please add {a} and {b}.")
            yield "arithmetic", asked, f"{a} plus {b} makes {{value}}.", phrase, str(a + b), _near(a + b)
    for a in range(10):
        for b in range(a + 1):
            phrase = f"the difference between {a} and {b}"
            asked = _asked(phrase, f"How much is {a} minus {b}?", f"Please take {b} away from {a}.")
            yield "arithmetic", asked, f"{a} minus {b} leaves {{value}}.", phrase, str(a - b), _near(a - b)


def _comparing() -> Iterator[_Row]:
    for word, pick in (("larger", max), ("smaller", min)):
        for a in range(1, 13):
            for b in range(1, 13):
                if a == b:
                    continue
                phrase = f"the {word} of {a} and {b}"
                asked = _asked(phrase, f"Which is {word}, {a} or {b}?", f"Out of {a} and {b}, which is {word}?")
                answer = pick(a, b)
                yield (
                    "comparing",
                    asked,
                    f"Between {a} and {b}, I pick {{value}}.",
                    phrase,
                    str(answer),
                    [str(a + b - answer)],
                )


def _counting() -> Iterator[_Row]:
    for thing in _THINGS:
        for count in range(1, 9):
            row = " ".join([thing] * count)
            asked = (
                f"How many times do I say {thing}: {row}?",
                f"Count how often I say {thing}: {row}.",
                f"Here is a row: {row}. How often is {thing} in it?",
            )
            phrase = f"the number of times you said {thing}"
            yield "counting", asked, "I count {value} in the row.", phrase, str(count), _near(count)


def _sequence() -> Iterator[_Row]:
    for number in range(40):
        phrase = f"the number after {number}"
        asked = _asked(phrase, f"Which number comes after {number}?", f"What follows {number}?")
        yield "sequence", asked, f"After {number} comes {{value}}.", phrase, str(number + 1), _near(number + 1)
    for kind, names in (("month", _MONTHS), ("day", _DAYS)):
        for position, name in enumerate(names):
            phrase = f"the {kind} after {name}"
            asked = _asked(phrase, f"Which {kind} comes after {name}?", f"What follows {name}?")
            answer = names[(position + 1) % len(names)]
            yield "sequence", asked, f"After {name} comes {{value}}.", phrase, answer, _others(names, answer)


def _units() -> Iterator[_Row]:
    for small, large, each, most in (("days", "weeks", 7, 9), ("months", "years", 12, 8), ("hours", "days", 24, 4)):
        for count in range(2, most + 1):
            phrase = f"the number of {small} in {count} {large}"
            asked = _asked(phrase, f"How many {small} are in {count} {large}?", f"Turn {count} {large} into {small}.")
            statement = f"It takes {count} {large} to fill {{value}} {small}."
            yield "units", asked, statement, phrase, str(each * count), _near(each * count)


def _opposites() -> Iterator[_Row]:
    pairs = [tuple(pair.split()) for pair in _OPPOSITES.split(",")]
    words = [word for pair in pairs for word in pair]
    for pair in pairs:
        for word, answer in (pair, pair[::-1]):
            phrase = f"the opposite of {word}"
            asked = _asked(phrase, f"What is it if it is not {word}?", f"Which word means the reverse of {word}?")
            yield "opposites", asked, f"What is not {word} is {{value}}.", phrase, answer, _others(words, answer)
