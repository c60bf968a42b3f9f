"""From the folders of runs to plain data: who was measured, how they fare, and whether runs can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pluralign.errors import InputError
from pluralign.evaluation.results import Evaluation, measure_of, read_run
from pluralign.preferences import ALL
from pluralign.reporting.measures import Interval, intervals_of, values_of
from pluralign.resolve import flat, read_yaml
from pluralign.storage import read_json
from pluralign.training.index import index_path, read_index
from pluralign.training.runs import CALLS_FILE, CONFIG_FILE, ONLINE_FILE, UNFINISHED_FILE, RunFolder

MOST_RUNS = 8
"""A chart tells no more marks than that apart."""


@dataclass
class Person:
    """One person's results in one run.

    Attributes:
        group: of the person, or None.
        pairs: held-out pairs.
        held_out: digest of them, or None where an older version did not record it.
        values: measure's key -> value; what was not measured is not there.
        intervals: measure's key -> 95% interval.
        cross: others' ids -> the cell of the cross table; empty without one.
        samples: answers that the evaluation kept.
    """

    group: str | None
    pairs: int
    held_out: str | None
    values: dict[str, float]
    intervals: dict[str, Interval]
    cross: dict[str, Any]
    samples: list[dict[str, Any]]


@dataclass
class Run:
    """One run, as its folder tells of it.

    Attributes:
        folder: its places.
        name: what tells it from the others, the end of its path.
        config: dotted keys of the whole configuration, with presets and defaults.
        made_with: hashes and versions.
        evaluation: what was measured, less the people.
        people: id -> results, worst first.
        unmeasured: people with an adapter and without a result.
        finished: whether everybody is decided.
        calls: what each call of `pluralign train` or `online` took; empty where an older version did not record it.
    """

    folder: RunFolder
    name: str
    config: dict[str, Any]
    made_with: dict[str, Any]
    evaluation: Evaluation
    people: dict[str, Person]
    unmeasured: int
    finished: bool
    calls: list[dict[str, Any]]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Read evaluated runs, in the order given.

    Raises:
        InputError: none or too many are given, one twice; one is no run, has no evaluation or cannot be read.
    """
    if not paths:
        raise InputError("no run is given", fix="Give the output folder of `pluralign train`, or several.")
    if len(paths) > MOST_RUNS:
        raise InputError(f"{len(paths)} runs are given, and a page tells {MOST_RUNS} apart", fix="Leave some out.")
    folders = [RunFolder(path) for path in paths]
    for place, folder in enumerate(folders):
        if any(folder.path == other.path for other in folders[:place]):
            raise InputError("the run is given twice", where=paths[place])
    return [_read(folder, given, name) for folder, given, name in zip(folders, paths, _names(folders), strict=True)]


def differences(runs: Sequence[Run]) -> list[str]:
    """What makes runs no comparison of methods, each in a sentence; empty where data and base are the same."""
    found = []
    for title, values in (
        ("data", [run.made_with.get("data_hash") for run in runs]),
        ("base model", [_fingerprint(run) for run in runs]),
        ("tokenizer", [run.evaluation.base.get("tokenizer_fingerprint") for run in runs]),
    ):
        if len(set(values)) > 1:
            each = ", ".join(f"{run.name} {_short(value)}" for run, value in zip(runs, values, strict=True))
            found.append(f"the {title} is not the same ({each})")
    return found


def cautions(runs: Sequence[Run]) -> list[str]:
    """What a reader has to know before figures of runs on one table and base are compared, each in a sentence."""
    first, *others = runs
    found = []
    for key, what in (
        ("seed", "Seeds differ: other pairs may be held out, and other probes drawn."),
        ("settings", "The evaluations have different settings: probes and prompts may not be the same."),
        ("generation", "Answers were generated with different settings."),
        ("world", "Answers were judged by different worlds, or not by one."),
    ):
        if any(run.evaluation.base.get(key) != first.evaluation.base.get(key) for run in others):
            found.append(what)
    if any(_judge(run) != _judge(first) for run in others):
        found.append("Win rates are not of the same judge, or were not measured in every run.")
    shared = set(first.people).intersection(*(run.people for run in others))
    apart = sum(len({run.people[user].held_out for run in runs} - {None}) > 1 for user in shared)
    if apart:
        found.append(
            f"Not the same pairs are held out of {apart} of {len(shared)} people, whose accuracies may differ by that."
        )
    elif any(_rows(run) != _rows(first) for run in others) and "Seeds" not in "".join(found):
        found.append("The number of held-out pairs differs.")
    if any(set(run.people) != set(first.people) for run in others):
        found.append(f"Not everybody was measured in every run: {len(shared)} people were.")
    return found


def standing(person: Person) -> tuple[float, ...]:
    """Ascending: least accurate first, then who kept least, then by style and margin; the unmeasured last."""
    keys = ("pairs.accuracy", "retention.kept", "behaviour.person.style", "pairs.margin")
    return tuple(person.values.get(key, float("inf")) for key in keys)


def _read(folder: RunFolder, given: str, name: str) -> Run:
    if not (folder.path / CONFIG_FILE).is_file():
        fix = "Give the output folder of `pluralign train`."
        raise InputError(f"there is no {CONFIG_FILE}", where=given, fix=fix)
    if not folder.evaluation.is_file():
        fix = f"Make it with `pluralign evaluate --run {given}`."
        raise InputError(
            f"the run has no {folder.evaluation.name}, so there is nothing to report", where=given, fix=fix
        )
    online = folder.path / ONLINE_FILE
    evaluation = read_run(folder.path)
    people = _people(evaluation, str(folder.evaluation))
    measured = set(people) | set(evaluation.skipped)
    trained = read_index(folder.path).people if index_path(folder.path).is_file() else {}
    # One policy for everybody has one adapter, and results of people who have none.
    own = ALL not in trained
    evaluation.people = {}
    return Run(
        folder=folder,
        name=name,
        config=flat(read_yaml(online if online.is_file() else folder.path / CONFIG_FILE)),
        made_with=folder.made_with(),
        evaluation=evaluation,
        people=people,
        unmeasured=sum(user not in measured for user in trained) if own else 0,
        finished=not (folder.path / UNFINISHED_FILE).exists(),
        calls=_calls(folder.path / CALLS_FILE),
    )


def _calls(path: Path) -> list[dict[str, Any]]:
    content = read_json(path) if path.exists() else {}
    calls = content.get("calls") if isinstance(content, dict) else None
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _people(evaluation: Evaluation, where: str) -> dict[str, Person]:
    found = {}
    for user, results in evaluation.people.items():
        if not isinstance(results, Mapping):
            raise InputError(f"the entry of {user!r} is no object", where=where, fix="Run `pluralign evaluate` again.")
        group = results.get("group")
        found[user] = Person(
            group=None if group is None else str(group),
            pairs=int(measure_of(results, "pairs.n") or 0),
            held_out=digest if isinstance(digest := results.get("held_out"), str) else None,
            values=values_of(results),
            intervals=intervals_of(results),
            cross=_object(_object(results, "cross"), "people"),
            samples=[one for one in _object(results, "behaviour").get("samples") or () if isinstance(one, dict)],
        )
    return dict(sorted(found.items(), key=lambda item: standing(item[1])))


def _object(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _judge(run: Run) -> Any:
    return (run.evaluation.win_rate or {}).get("annotator")


def _fingerprint(run: Run) -> str | None:
    return run.evaluation.base.get("fingerprint") or run.made_with.get("base_fingerprint")


def _rows(run: Run) -> Any:
    return _object(run.evaluation.base, "held_out").get("rows")


def _short(value: Any) -> str:
    return str(value)[:12] if value else "unknown"


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """The last part of each path, with as many before it as make all different."""
    longest = max(len(folder.path.parts) for folder in folders)
    for count in range(1, longest + 1):
        names = ["/".join(folder.path.parts[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names
