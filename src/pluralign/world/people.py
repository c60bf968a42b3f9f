"""The people of the world: any number of them, at graded distance from the base's manner."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pluralign.errors import InputError
from pluralign.world.styles import PLAIN, STYLES

_ORDER = ("formal", "cheerful", "terse", "polite", "bardic", PLAIN, "cautious", "declining", "verbose", "itemised")
_SHARES = (1.0, 0.75, 0.5, 0.25)
_NOISES = (0.0, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class WorldUser:
    """One person and their taste.

    Attributes:
        id: `<style>-<number>`; the number alone fixes the person, so person 7 is the same among 8 and among 8,000.
        style: the style they like (`plain`: they like the base as it is).
        share: share of the topics in which they want that style, in (0, 1].
        other: the style they want in the other topics.
        noise: probability that a comparison of theirs comes out the wrong way round.
    """

    id: str
    style: str
    share: float = 1.0
    other: str = PLAIN
    noise: float = 0.0

    @property
    def group(self) -> str:
        """People who like the same style."""
        return self.style

    @property
    def distance(self) -> float:
        """How far the answers they want are from the base's manner, in [0, 1]; 0 for those who like the base."""
        return self.share * STYLES[self.style].distance + (1 - self.share) * STYLES[self.other].distance

    def wants(self, topic: str, topics: Sequence[str], seed: int) -> str:
        """The style wanted in a topic. The share holds over `topics`; which ones they are is the person's own draw."""
        if self.share >= 1:
            return self.style
        order = sorted(topics)
        random.Random(f"{seed}/wants/{self.id}").shuffle(order)
        return self.style if topic in order[: round(self.share * len(order))] else self.other


def world_user(number: int) -> WorldUser:
    """Person `number` of every world (from 0).

    The first ten like one style each, one of them the base's own; each ten after that repeats the styles with another
    share (1, .75, .5, .25), each forty with another noise (0, .1, .2), each 120 with or without a second style in
    place of the plain one.
    """
    rank, level = number % len(_ORDER), number // len(_ORDER)
    style = _ORDER[rank]
    identity = f"{style}-{number:03d}"
    noise = _NOISES[level // len(_SHARES) % len(_NOISES)]
    if style == PLAIN:
        return WorldUser(identity, style, noise=noise)
    other = PLAIN
    if level // (len(_SHARES) * len(_NOISES)) % 2:
        other = random.Random(f"other/{identity}").choice([name for name in STYLES if name not in (style, PLAIN)])
    return WorldUser(identity, style, _SHARES[level % len(_SHARES)], other, noise)


def find_user(identity: str) -> WorldUser:
    """The person of an id.

    Raises:
        InputError: no world has such a person.
    """
    _, _, number = identity.rpartition("-")
    if number.isascii() and number.isdigit():
        user = world_user(int(number))
        if user.id == identity:
            return user
    raise InputError(f"the world has no person {identity!r}", fix=f"Ids look like {world_user(0).id!r}.")
