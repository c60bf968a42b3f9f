"""What the page shows of a person: every measure with its name, unit and the key it is read from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pluralign.evaluation.results import measure_of

Interval = tuple[float, float]

ACCURACY, KEPT = "pairs.accuracy", "retention.kept"
WIN_RATE = "win_rate.raw"


class Measure(NamedTuple):
    """One measure of a person.

    Attributes:
        key: in `people` of `evaluation.json`, dotted.
        title: what the page calls it.
        unit: `share` (shown in percent), or the unit's name.
        digits: decimals that are carried to the page.
        higher: whether more is better; None where neither end is.
        help: what it says, in a clause.
        interval: key of its 95% interval, if it has one.
        base: key of the base's own value, if it has one.
    """

    key: str
    title: str
    unit: str
    digits: int
    higher: bool | None
    help: str
    interval: str | None = None
    base: str | None = None


MEASURES = (
    Measure(
        ACCURACY,
        "accuracy",
        "share",
        3,
        True,
        "held-out pairs that the adapter judges as the person did",
        interval="pairs.accuracy_interval",
    ),
    Measure(
        WIN_RATE,
        "win rate",
        "share",
        3,
        True,
        "written answers that the judge prefers to the base's, ties counting half",
        interval="win_rate.raw_interval",
    ),
    Measure(
        "win_rate.length_controlled",
        "win rate, equal length",
        "share",
        3,
        True,
        "the same, as it would be if both answers were of one length",
        interval="win_rate.length_controlled_interval",
    ),
    Measure(
        KEPT,
        "kept",
        "share",
        3,
        True,
        "of the probes that the base answers rightly, those that the adapter still does",
        interval="retention.measures.base_sum.all.kept_interval",
    ),
    Measure(
        "retention.kept_own",
        "kept, own manner",
        "share",
        3,
        True,
        "the same, with probes put in the person's own manner",
    ),
    Measure(
        "knowledge.score",
        "knowledge",
        "score",
        3,
        True,
        "tasks of lm-eval, the mean of their headlines",
        base="knowledge.base_score",
    ),
    Measure(
        "distribution.alignment",
        "alignment",
        "share",
        3,
        True,
        "how near the answers to survey questions are to those of the person or group",
        base="distribution.base_alignment",
    ),
    Measure(
        "behaviour.person.style",
        "style",
        "share",
        3,
        True,
        "written answers in the style that the person wants",
        base="behaviour.base.style",
    ),
    Measure(
        "behaviour.person.right",
        "right",
        "share",
        3,
        True,
        "written answers with the right fact, of those that state one",
        base="behaviour.base.right",
    ),
    Measure(
        "behaviour.person.degenerate",
        "degenerate",
        "share",
        3,
        False,
        "written answers without a word, or that repeat themselves",
        base="behaviour.base.degenerate",
    ),
    Measure(
        "pairs.margin",
        "margin",
        "nats",
        2,
        True,
        "how much likelier the adapter makes the preferred response, against the other one and the base",
        interval="pairs.margin_interval",
    ),
    Measure(
        "pairs.ranking_accuracy",
        "ranking accuracy",
        "share",
        3,
        True,
        "held-out pairs whose preferred response is the likelier one",
        base="pairs.base_ranking_accuracy",
    ),
    Measure(
        "cross.others_accuracy",
        "on others",
        "share",
        3,
        None,
        "accuracy of the adapter on other people's pairs",
    ),
    Measure(
        "base_responses.kl_per_token",
        "KL a token",
        "nats a token",
        3,
        False,
        "how far the adapter's next token is from the base's, on the base's own answers",
    ),
    Measure(
        "behaviour.person.kl_per_token",
        "KL a token, own answers",
        "nats a token",
        3,
        False,
        "the same, on the answers that the adapter writes",
    ),
    Measure(
        "behaviour.person.repetition",
        "repetition",
        "share",
        3,
        False,
        "4-grams of a written answer that it has had before",
        base="behaviour.base.repetition",
    ),
    Measure(
        "behaviour.person.base_perplexity",
        "perplexity",
        "of the base",
        2,
        False,
        "how unlikely the base finds the written answers",
        base="behaviour.base.base_perplexity",
    ),
)
BY_KEY = {measure.key: measure for measure in MEASURES}


def values_of(results: Mapping[str, Any]) -> dict[str, float]:
    """A person's measures by key; one without a value is not there."""
    found = {measure.key: measure_of(results, measure.key) for measure in MEASURES}
    return {key: value for key, value in found.items() if value is not None}


def intervals_of(results: Mapping[str, Any]) -> dict[str, Interval]:
    """A person's 95% intervals by the measure's key."""
    found = {measure.key: _interval(results, measure.interval) for measure in MEASURES if measure.interval}
    return {key: interval for key, interval in found.items() if interval is not None}


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """95% interval of a mean of independent estimates from the intervals of each: squares of the arms are added.

    The method of variance estimates recovery (Newcombe 1998; Zou and Donner 2008). With one estimate it is that one's
    own interval, and unlike a bootstrap over few people it has a width where all of them have the same value.
    """
    n = len(values)
    centre = math.fsum(values) / n
    below = math.sqrt(math.fsum((value - low) ** 2 for value, (low, _) in zip(values, intervals, strict=True))) / n
    above = math.sqrt(math.fsum((high - value) ** 2 for value, (_, high) in zip(values, intervals, strict=True))) / n
    return centre - below, centre + above


def _interval(results: Mapping[str, Any], key: str) -> Interval | None:
    value: Any = results
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = value
    numbers = all(isinstance(bound, int | float) and math.isfinite(bound) for bound in value)
    return (float(low), float(high)) if numbers else None
