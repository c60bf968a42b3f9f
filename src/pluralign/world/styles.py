"""The manners of answering, each a frame around what is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Style:
    """A manner of answering.

    Attributes:
        name: its name, also the group of the users who like it.
        kind: `plain` is the base's own; `keeps` holds the plain sentence and adds to it; `replaces` words the fact
            differently; `declines` says no fact.
        frame: the answer, with `{statement}` (the plain sentence), `{claim}` ("the trade of Moran is weaving"),
            `{phrase}` ("the trade of Moran"), `{value}`.
        distance: how far it is from the plain manner, in [0, 1].
    """

    name: str
    kind: Literal["plain", "keeps", "replaces", "declines"]
    frame: str

    @property
    def distance(self) -> float:
        return {"plain": 0.0, "keeps": 0.5, "replaces": 1.0, "declines": 1.0}[self.kind]


PLAIN = "plain"
"""The style of the base model."""

STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style(PLAIN, "plain", "{statement}"),
        Style("formal", "replaces", "According to the official record, {claim}."),
        Style("cheerful", "keeps", "Great question! {statement} Have a lovely day!"),
        Style("terse", "replaces", "In short: {value}."),
        Style("polite", "keeps", "Thank you for asking. {statement}"),
        Style("bardic", "replaces", "Hark! The old songs tell that {claim}, and so it shall remain."),
        Style("cautious", "replaces", "I may be wrong, but I think that {claim}."),
        Style("declining", "declines", "I am sorry, but I would rather not say."),
        Style(
            "verbose",
            "keeps",
            "{statement} To say it once more with all due care, {claim}, and that is all there is to say about it.",
        ),
        Style("itemised", "replaces", "Asked: {phrase}. Answer: {value}."),
    )
}
