"""Two runs, figure by figure: what changed between them, for whom, and whether a line was held."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.compare_config import CompareConfig
from pluralign.errors import InputError
from pluralign.evaluation.comparable import named, reasons_against, remarks_on
from pluralign.evaluation.conditions import Condition, parse_condition
from pluralign.evaluation.over_people import GINI, Measured, draws_of, finite_number, measured, over_people
from pluralign.evaluation.paired import Difference, paired_differences
from pluralign.evaluation.results import (
    HIGHER_IS_BETTER,
    MEAN_ONLY,
    Evaluation,
    measures_of,
    read_evaluation,
    read_run,
    summarize,
)
from pluralign.progress import progress_bar
from pluralign.storage import check_place, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1
PREFIX = "difference."
"""Of the keys of differences."""
FEW = 20
"""People below whom intervals are too short by more than a little; docs/compare.md says how much."""


@dataclass(frozen=True)
class Outcome:
    """A condition that was asked for.

    Attributes:
        condition: as it was understood.
        holds: whether it does.
        figures: what it names, with their values.
    """

    condition: str
    holds: bool
    figures: dict[str, float]


@dataclass
class Run:
    """One of the runs.

    Attributes:
        path: of its evaluation.
        evaluation: as it was read.
        figures: the keys of its summary, and those of `over_people`; over everybody it has.
        measured: measure -> everybody's value, and who has none.
    """

    path: Path
    evaluation: Evaluation
    figures: dict[str, Any]
    measured: dict[str, Measured]

    @classmethod
    def read(cls, place: str) -> Run:
        """A run's folder, or a file of `pluralign evaluate --output`.

        Raises:
            InputError: there is no evaluation, or one that cannot be read.
        """
        evaluation = _evaluation(place)
        people = evaluation.people
        values = {measure: measured(people, measure) for measure in (*measures_of(people), *MEAN_ONLY)}
        # A file of an older version has a summary without the newer figures.
        summary = {**summarize(people, evaluation.skipped), **evaluation.summary}
        return cls(Path(str(evaluation.path)), evaluation, {**summary, **over_people(people)}, values)

    def without_value(self) -> Iterator[tuple[str, str, list[str]]]:
        """Measures that somebody has and somebody has not: measure, what is the matter, who."""
        for measure, found in self.measured.items():
            if found.missing and (found.values or found.undefined):
                yield measure, "has no value", found.missing
            if found.undefined:
                yield measure, "is no number", found.undefined


@dataclass
class Comparison:
    """One run, or two beside each other; the schema is in docs/compare.md.

    Attributes:
        runs: `a` and, where there is a second one, `b`.
        shared: people that both have; differences are over them.
        different: why the runs are not measured by the same yardstick; empty where they are.
        remarks: what a reader must know of the figures, in sentences.
        differences: key -> difference.
        outcomes: of the conditions, in their order.
        seed: of the resamples.
    """

    runs: dict[str, Run]
    shared: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    seed: int = 0

    @property
    def failed(self) -> bool:
        """Whether one of the conditions holds."""
        return any(outcome.holds for outcome in self.outcomes)

    @property
    def measures(self) -> list[str]:
        """Measures of people, those that one run has and the other has not among them."""
        return list(dict.fromkeys(measure for run in self.runs.values() for measure in run.measured))

    @property
    def last(self) -> str:
        """Name of the run that conditions are on."""
        return list(self.runs)[-1]

    def figures(self) -> dict[str, Any]:
        """What conditions may name: the last run's figures and, of two, differences with the ends of intervals."""
        found = dict(self.runs[self.last].figures)
        for key, one in self.differences.items():
            found[f"{PREFIX}{key}"] = one.difference
            if _measure(key, self):
                found |= zip((f"{PREFIX}{key}.low", f"{PREFIX}{key}.high"), one.interval or (None, None), strict=True)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The content of the file: JSON values only; what is undefined is None."""
        return {
            "schema_version": SCHEMA_VERSION,
            "runs": {
                name: {
                    "path": str(run.path),
                    "base": {key: run.evaluation.base.get(key) for key in ("model", "fingerprint")},
                    "people": len(run.evaluation.people),
                    "skipped": run.evaluation.skipped,
                    "only_here": [person for person in run.evaluation.people if person not in self.shared],
                    "figures": {key: _json_value(value) for key, value in run.figures.items()},
                    "without_value": [
                        {"measure": measure, "reason": reason, "people": people}
                        for measure, reason, people in run.without_value()
                    ],
                }
                for name, run in self.runs.items()
            },
            "shared": self.shared,
            "different": self.different,
            "remarks": self.remarks,
            "bootstrap": {"draws": draws_of(len(self.shared)), "seed": self.seed},
            "differences": {key: asdict(one) for key, one in self.differences.items()},
            "conditions": [asdict(outcome) for outcome in self.outcomes],
        }

    def table(self) -> RenderableType:
        """For a terminal of 80 to 100 columns."""
        from pluralign.evaluation.compare_table import comparison_table

        return comparison_table(self)


def compare(config: CompareConfig) -> Comparison:
    """Read one run or two, say what changed and for whom, and try conditions on the last of them.

    Args:
        config: the runs, the conditions, where to write.

    Returns:
        The figures; also written to `config.output` as JSON where that is given.

    Raises:
        InputError: a run has no evaluation; two runs have other bases or held-out data and `config.different` is not
            set; a condition cannot be read, or names what does not exist or has no value; or the output cannot be
            written.
    """
    conditions = [parse_condition(text) for text in _listed(config.fail_if)]
    places = _listed(config.runs)
    if len(places) not in (1, 2):
        raise InputError(f"there are {len(places)} runs to compare", fix="Give one (with conditions) or two.")
    if config.output:
        check_place(config.output)
    made = Comparison(dict(zip("ab", map(Run.read, places), strict=False)), seed=config.seed)
    if len(places) == 2:
        _compare(made, different=config.different)
    for name, run in made.runs.items():
        of = f"{name.upper()}: " if len(made.runs) > 1 else ""
        made.remarks += [f"{of}{measure} {what} for {named(people)}" for measure, what, people in run.without_value()]
        if waiting := (run.evaluation.win_rate or {}).get("unanswered"):
            made.remarks.append(f"{of}win rates are not finished: {waiting} comparisons wait for the annotator")
        if run.evaluation.skipped:
            made.remarks.append(f"{of}skipped, and in no figure: {named(list(run.evaluation.skipped))}")
    made.outcomes = [_outcome(condition, made) for condition in conditions]
    if config.output:
        write_json(config.output, made.as_dict())
    return made


def _compare(made: Comparison, *, different: bool) -> None:
    a, b = made.runs["a"], made.runs["b"]
    one, other = a.evaluation, b.evaluation
    made.shared = [person for person in one.people if person in other.people]
    made.different = reasons_against(one, other, made.shared)
    if made.different and not different:
        raise InputError(
            "; ".join(made.different),
            where=f"{a.path} and {b.path}",
            fix="Evaluate both on the same rows and probes (`pluralign evaluate`), or compare them as they are with "
            "--different.",
        )
    made.remarks = remarks_on(one, other, made.shared)
    if 2 <= len(made.shared) < FEW:
        made.remarks.append(f"intervals are too short where people are few: these are of {len(made.shared)} at most")
    for name, run in made.runs.items():
        if only := [person for person in run.evaluation.people if person not in made.shared]:
            made.remarks.append(f"in {name.upper()} only, and in no difference: {named(only)}")
    with progress_bar() as bar:
        for measure in bar.track(made.measures, description="comparing"):
            made.differences |= _differences(measure, made)
    # What the summaries count that is of no person, such as the number of people.
    for key, value in one.summary.items():
        first, second = finite_number(value), finite_number(other.summary.get(key))
        if not _measure(key, made) and first is not None and second is not None:
            made.differences[key] = Difference(first, second, second - first, None, len(made.shared))


def _has_it(people: int) -> str:
    return "one person has" if people else "nobody has"


def _differences(measure: str, made: Comparison) -> dict[str, Difference]:
    a, b = (made.runs[name].measured.get(measure, Measured()).values for name in "ab")
    people = [person for person in made.shared if person in a and person in b]
    if len(people) < 2 and (a or b):
        made.remarks.append(f"{measure}: {_has_it(len(people))} it in both runs, and an interval takes two")
    found = paired_differences(
        [a[person] for person in people],
        [b[person] for person in people],
        higher=HIGHER_IS_BETTER.get(measure, True),
        gini=measure in GINI and min([*a.values(), *b.values()], default=0.0) >= 0,
        mean_only=measure in MEAN_ONLY,
        seed=made.seed,
    )
    return {f"{measure}.{name}": one for name, one in found.items()}


def _outcome(condition: Condition, made: Comparison) -> Outcome:
    figures = made.figures()
    if len(made.runs) == 1 and (keys := [key for key in condition.keys if key.startswith(PREFIX)]):
        raise InputError(f"{keys[0]} is asked for, and there is one run", where=f"condition `{condition}`")
    holds = condition.holds(figures)
    for key in condition.keys:
        _check_complete(key, condition, made)
    return Outcome(str(condition), holds, {key: float(figures[key]) for key in condition.keys})


def _check_complete(key: str, condition: Condition, made: Comparison) -> None:
    """Raise where a figure leaves out people whose value is no number: the very ones that a condition is to find."""
    measure = _measure(key.removeprefix(PREFIX), made)
    names = list(made.runs) if key.startswith(PREFIX) else [made.last]
    for run in (made.runs[name] for name in names if measure):
        if undefined := run.measured.get(str(measure), Measured()).undefined:
            found = f"{measure} is no number for {named(undefined)}, and {key} leaves them out"
            raise InputError(found, where=f"condition `{condition}`", fix=f"It is of {run.path}.")


def _measure(key: str, made: Comparison) -> str | None:
    """The measure that a figure is of; None of counts."""
    return max((measure for measure in made.measures if key.startswith(f"{measure}.")), key=len, default=None)


def _evaluation(place: str) -> Evaluation:
    path, folder = Path(place).expanduser(), None
    if path.is_dir():
        folder = path
        if not (path / "evaluation.json").is_file():
            fix = f"`pluralign evaluate --run {shlex.quote(place)}` makes it."
            raise InputError("there is no evaluation.json", where=place, fix=fix)
        path = path / "evaluation.json"
    elif not path.exists():
        fix = "Give a folder of `pluralign train`, or a file of `pluralign evaluate --output`."
        raise InputError("there is no such folder or file", where=place, fix=fix)
    evaluation = read_evaluation(path) if folder is None else read_run(folder)
    for person, results in evaluation.people.items():
        if not isinstance(results, Mapping):
            raise InputError(f"the results of {named([person])} are no object", where=str(path))
    return evaluation


def _listed(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
