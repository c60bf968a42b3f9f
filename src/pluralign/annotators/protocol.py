"""What annotators are asked and what they say, in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pluralign.errors import PluralignError
from pluralign.preferences.schema import Text


class AnnotatorError(PluralignError):
    """An annotator gave what cannot be used, or gave up. What had been annotated before is kept.

    Args:
        annotator: its name.
        found: what it gave, in a clause.
        row: of the request at fault; empty where it is none's.
        fix: what to do, in a sentence.
    """

    exit_code = 1

    def __init__(self, annotator: str, found: str, *, row: str = "", fix: str = "") -> None:
        self.annotator, self.found, self.row = annotator, found, row
        place = f", row {row!r}" if row else ""
        super().__init__(f"annotator {annotator}{place}: {found}" + (f". {fix}" if fix else ""))


@dataclass(frozen=True, slots=True)
class Request:
    """Responses to compare.

    Attributes:
        prompt: text or messages, as the person wrote it.
        responses: at least two, in an order that says nothing.
        user: whose taste decides; None where nobody's in particular.
        row: what errors and files call the request; unique among those that are asked for together.
    """

    prompt: Text
    responses: tuple[str, ...]
    user: str | None
    row: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an annotator says of a request.

    Attributes:
        scores: one a response, higher is better; None where there is only a ranking, or nothing.
        ranking: numbers of the responses, best first; None where there are scores, or nothing.
        tie: the responses are equally good.
        abstained: the annotator does not say; `reason` tells why.
        reason: anything worth keeping.
    """

    scores: tuple[float, ...] | None = None
    ranking: tuple[int, ...] | None = None
    tie: bool = False
    abstained: bool = False
    reason: str | None = None

    def places(self) -> list[float]:
        """A number a response, higher is better, whatever the verdict's form; equal ones are equally good.

        Raises:
            ValueError: the annotator abstained.
        """
        if self.abstained:
            raise ValueError("an abstention has no places")
        if self.scores is not None:
            return list(self.scores)
        if self.ranking is None:
            return []
        places = [0.0] * len(self.ranking)
        for rank, number in enumerate(self.ranking):
            places[number] = float(len(self.ranking) - rank)
        return places


class Annotator(Protocol):
    """Says which responses are better.

    It may have `check(requests)`, which raises for what it will refuse before any of them is asked, and `asks_at_once`,
    true where it wants all requests of a phase together.
    """

    @property
    def name(self) -> str:
        """What errors and files call it."""

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """A verdict for every request, in their order.

        Raises:
            AnnotatorError: it cannot go on.
        """


def checked(annotator: Annotator, requests: Sequence[Request]) -> list[Verdict]:
    """What an annotator says, where it can be used.

    Raises:
        AnnotatorError: another number of verdicts than requests; scores of another number than responses or that are no
            numbers; a ranking that does not name each response once; a verdict that says nothing.
    """
    found = annotator.annotate(requests)
    name = annotator.name
    if not isinstance(found, list) or len(found) != len(requests):
        given = f"{len(found)} verdicts" if isinstance(found, list) else f"a {type(found).__name__}"
        raise AnnotatorError(
            name, f"{given} for {len(requests)} requests", fix="Return a list with one each, in order."
        )
    for request, verdict in zip(requests, found, strict=True):
        fault = _fault(verdict, len(request.responses))
        if fault:
            raise AnnotatorError(name, fault, row=request.row)
    return found


def _fault(verdict: object, responses: int) -> str | None:
    """Why a verdict cannot be used, or None."""
    if not isinstance(verdict, Verdict):
        return f"a {type(verdict).__name__} in place of a Verdict"
    if verdict.abstained:
        return None
    if verdict.scores is not None:
        if len(verdict.scores) != responses:
            return f"{len(verdict.scores)} scores for {responses} responses"
        bad = [score for score in verdict.scores if not math.isfinite(score)]
        return f"the score {bad[0]}" if bad else None
    if verdict.ranking is not None:
        fits = sorted(verdict.ranking) == list(range(responses))
        return None if fits else f"the ranking {list(verdict.ranking)} of {responses} responses"
    return None if verdict.tie else "neither scores nor a ranking, no tie and no abstention"
