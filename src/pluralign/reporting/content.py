"""What the page's program is given: one JSON value, with people and groups by number and figures as whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pluralign.preferences import ALL
from pluralign.reporting.answers import answers_of
from pluralign.reporting.cross import cross_maps
from pluralign.reporting.curves import QUANTILES, Curve, Log
from pluralign.reporting.gather import Run
from pluralign.reporting.glance import group_rows
from pluralign.reporting.measures import MEASURES, Measure
from pluralign.reporting.names import Names, visible
from pluralign.reporting.provenance import method_name
from pluralign.reporting.selection import fixed_sample, selected

_REASON = 200
"""Characters of a reason why somebody was skipped."""
_SKIPPED = 200
"""People of whom it is said why they were skipped."""


@dataclass(frozen=True)
class Budget:
    """How much of a population is on the page.

    Attributes:
        rows: figures of people, a row a person and run.
        singles: curves of a run's worst people, and as many of a fixed sample.
        positions: on the axis of a curve.
        texts: characters of prompts and answers, of all runs together.
    """

    rows: int
    singles: int
    positions: int
    texts: int


@dataclass
class Labels:
    """What runs, their methods, people and groups are called."""

    runs: list[str]
    methods: list[str]
    people: Names
    groups: Names


def labels_of(runs: Sequence[Run], *, pseudonyms: bool) -> Labels:
    """Names as they are, or numbers: people by their place, worst first, so that a number tells nothing new."""
    people = [user for run in runs for user in (*run.people, *run.evaluation.skipped)]
    groups = [person.group for run in runs for person in run.people.values() if person.group is not None]
    methods = [method_name(run, pseudonyms=pseudonyms) for run in runs]
    numbered = [f"run {number} ({method})" for number, method in enumerate(methods, 1)]
    plain = Names(())
    return Labels(
        runs=numbered if pseudonyms else [plain.label(run.name) for run in runs],
        methods=methods,
        people=Names(people, "person" if pseudonyms else None),
        groups=Names(groups, "group" if pseudonyms else None),
    )


def content(
    runs: Sequence[Run], logs: Sequence[Log], labels: Labels, budget: Budget, *, pseudonyms: bool
) -> dict[str, Any]:
    """The value, for a budget.

    `people` and `groups` are labels, everywhere else numbers into them. A figure is an integer: the value times ten to
    the measure's `digits`; None where there is none. Rows of a run are worst first.
    """
    people, groups = labels.people.fresh(), labels.groups.fresh()
    shown = selected(runs, budget.rows)
    share = max(len(runs), 1)
    parts = []
    for run, name, method, log in zip(runs, labels.runs, labels.methods, logs, strict=True):
        few = _few(run, budget.singles)
        parts.append(
            {
                "name": name,
                "method": method,
                "measured": len(run.people),
                "results": _results(run, shown, people, groups),
                "groups": _groups(run, people, groups),
                "cross": cross_maps(run, people, groups),
                "curves": _curves(run, log, few, people, groups, budget.positions),
                "answers": [] if pseudonyms else _answers(run, few, people, budget.texts // share),
                "identities": _identities(run, groups),
                "skipped": _skipped(run, people, pseudonyms),
            }
        )
    return {
        "measures": [_measure(measure) for measure in MEASURES],
        "quantiles": QUANTILES,
        "pseudonyms": pseudonyms,
        "runs": parts,
        "people": people.labels,
        "groups": groups.labels,
    }


def _few(run: Run, singles: int) -> list[str]:
    """The people who are shown closely, the worst before a fixed sample."""
    return list(dict.fromkeys((*list(run.people)[:singles], *fixed_sample(run.people, singles))))


def _measure(measure: Measure) -> dict[str, Any]:
    kept = ("key", "title", "unit", "digits", "higher", "help")
    return {name: getattr(measure, name) for name in kept}


def _results(run: Run, shown: set[str], people: Names, groups: Names) -> dict[str, Any]:
    rows = [(user, person) for user, person in run.people.items() if user in shown]
    columns: dict[str, Any] = {"values": {}, "low": {}, "high": {}}
    for measure in MEASURES:
        scale = 10**measure.digits
        values = [person.values.get(measure.key) for _, person in rows]
        if any(value is not None for value in values):
            columns["values"][measure.key] = [_scaled(value, scale) for value in values]
        bounds = [person.intervals.get(measure.key) for _, person in rows]
        if any(bound is not None for bound in bounds):
            columns["low"][measure.key] = [_scaled(bound and bound[0], scale) for bound in bounds]
            columns["high"][measure.key] = [_scaled(bound and bound[1], scale) for bound in bounds]
    return {
        "person": [people.index(user) for user, _ in rows],
        "group": [-1 if person.group is None else groups.index(person.group) for _, person in rows],
        "pairs": [person.pairs for _, person in rows],
        **columns,
    }


def _groups(run: Run, people: Names, groups: Names) -> list[dict[str, Any]]:
    scales = {measure.key: 10**measure.digits for measure in MEASURES}
    return [
        {
            "group": groups.index(row["group"]),
            "people": row["people"],
            "values": {
                key: [*(_scaled(figure, scales[key]) for figure in figures), -1 if who is None else people.index(who)]
                for key, (*figures, who) in row["values"].items()
            },
        }
        for row in group_rows(run)
    ]


def _curves(run: Run, log: Log, few: list[str], people: Names, groups: Names, positions: int) -> dict[str, Any] | None:
    every = run.config.get("training.logging_steps")
    curves = log.curves([*few, ALL], every=every if isinstance(every, int | float) else 1, positions=positions)
    if curves is None:
        return None
    return {
        "steps": curves.steps,
        "people": curves.people,
        "shared": ALL in log.users,
        "metrics": {name: _curve(curve, people) for name, curve in curves.metrics.items()},
        "groups": [[groups.label(group), values] for group, values in curves.groups.items()],
        "groups_left_out": curves.groups_left_out,
    }


def _curve(curve: Curve, people: Names) -> dict[str, Any]:
    singles = [[-1 if user == ALL else people.index(user), values] for user, values in curve.singles.items()]
    return {"bands": curve.bands, "count": curve.count, "singles": singles, "validation": curve.validation}


def _answers(run: Run, few: list[str], people: Names, budget: int) -> list[list[Any]]:
    return [[people.index(user), answers] for user, answers in answers_of(run, few, budget).items()]


def _skipped(run: Run, people: Names, pseudonyms: bool) -> list[list[Any]]:
    """Who has no result and why; reasons may quote what people wrote."""
    reasons = list(run.evaluation.skipped.items())[:_SKIPPED]
    return [[people.index(user), "" if pseudonyms else visible(str(reason), _REASON)] for user, reason in reasons]


def _identities(run: Run, groups: Names) -> list[list[Any]]:
    """Pairs under the right identity, another one and none: of all, then of groups, the least attentive first."""
    found = run.evaluation.identities
    if not found:
        return []
    others = sorted(found["groups"].items(), key=lambda item: _or_last(item[1].get("accuracy_difference")))
    lines = [("all", found["all"]), *((groups.label(group), one) for group, one in others)]
    return [
        [
            name,
            one.get("n"),
            *(_scaled((one.get(identity) or {}).get("accuracy"), 1000) for identity in ("right", "random", "missing")),
            _scaled(one.get("accuracy_difference"), 1000),
            *(_scaled(bound, 1000) for bound in one.get("accuracy_difference_interval") or (None, None)),
        ]
        for name, one in lines[:_SKIPPED]
    ]


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _scaled(value: float | None, scale: int) -> int | None:
    return None if value is None else round(value * scale)
