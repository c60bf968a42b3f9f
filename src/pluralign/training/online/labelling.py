"""From candidates to verdicts to pairs: what was said is kept as it is said, and nothing is asked for twice."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pluralign.annotators.protocol import Annotator, Request, Verdict, checked
from pluralign.progress import progress_bar
from pluralign.training.online.files import Candidates, Pair, Response, VerdictLog

Form = Literal["best_worst", "all", "sampled"]


def annotate(
    annotator: Annotator, candidates: Sequence[Candidates], log: VerdictLog, *, batch_size: int
) -> list[Verdict]:
    """A verdict for every prompt's responses; see `annotate_requests`."""
    return annotate_requests(annotator, [one.request() for one in candidates], log, batch_size=batch_size)


def annotate_requests(
    annotator: Annotator, requests: Sequence[Request], log: VerdictLog, *, batch_size: int
) -> list[Verdict]:
    """A verdict for every request, from the log or the annotator.

    Responses that are all the same text are a tie that nobody is asked for.

    Args:
        annotator: asked in batches; what it says of one is on the disk before it is asked for the next.
        requests: in their order.
        log: what was said before; it grows.
        batch_size: requests of a batch.

    Raises:
        AnnotatorError: the annotator failed, or gave what cannot be used; what it said before is kept.
    """
    asked = [one for one in requests if log.get(one) is None and len(set(one.responses)) > 1]
    if (check := getattr(annotator, "check", None)) is not None:
        # What it will refuse is found before anything is paid for.
        check(asked)
    if getattr(annotator, "asks_at_once", False):
        batch_size = max(1, len(asked))
    with progress_bar() as bar:
        task = bar.add_task("annotating", total=len(asked))
        for start in range(0, len(asked), batch_size):
            some = asked[start : start + batch_size]
            log.add(some, checked(annotator, some))
            bar.advance(task, len(some))
    return [verdict for one in requests if (verdict := said_of(one, log)) is not None]


def said_of(request: Request, log: VerdictLog) -> Verdict | None:
    """What was said of a request, or follows from its responses being the same; None where nothing has been said."""
    if len(set(request.responses)) == 1:
        return log.get(request) or Verdict(tie=True, reason="the responses are the same")
    return log.get(request)


@dataclass
class Labelled:
    """Pairs of a phase, and why prompts gave none.

    Attributes:
        pairs: in the order of the candidates.
        without: reason -> prompts that gave no pair: `tie`, `abstained`.
    """

    pairs: list[Pair] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)


def pairs_of_verdicts(candidates: Sequence[Candidates], verdicts: Sequence[Verdict], form: Form) -> Labelled:
    """The pairs that verdicts make.

    Args:
        candidates: with at least two responses each.
        verdicts: one each.
        form: `best_worst`: the first of the best and the first of the worst; `all`: every two of which one is better,
            the better places first; `sampled`: the only two.
    """
    found = Labelled()
    for one, verdict in zip(candidates, verdicts, strict=True):
        if verdict.abstained:
            found.without["abstained"] += 1
            continue
        made = _pairs(one, verdict, form)
        if not made:
            found.without["tie"] += 1
        found.pairs += made
    return found


def _pairs(one: Candidates, verdict: Verdict, form: Form) -> list[Pair]:
    places = [] if verdict.tie else verdict.places()
    if len(set(places)) < 2:
        return []
    numbers = range(len(places))
    if form == "all":
        order = sorted(numbers, key=lambda number: (-places[number], number))
        several = [(a, b) for a, b in itertools.combinations(order, 2) if places[a] > places[b]]
    else:
        several = [(max(numbers, key=places.__getitem__), min(numbers, key=places.__getitem__))]
    return [_pair(one, one.responses[a], one.responses[b]) for a, b in several if _differ(one, a, b)]


def _pair(one: Candidates, chosen: Response, rejected: Response) -> Pair:
    return Pair(one.row, one.owner, one.user, one.prompt, chosen, rejected, one.policy_version, columns=one.columns)


def _differ(one: Candidates, a: int, b: int) -> bool:
    """Whether two responses are two: equal ones may be told apart by whoever scores by chance, and teach nothing."""
    return one.responses[a].text != one.responses[b].text
