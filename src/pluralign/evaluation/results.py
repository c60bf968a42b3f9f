"""The result of an evaluation: a dictionary with a documented schema, a file, a table."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.config import EvaluationConfig, GenerationConfig
from pluralign.errors import InputError
from pluralign.evaluation.statistics import finite, mean
from pluralign.storage import read_json, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1

HIGHER_IS_BETTER: dict[str, bool] = {
    "pairs.accuracy": True,
    "pairs.margin": True,
    "pairs.ranking_accuracy": True,
    "base_responses.log_ratio_per_token": True,
    "base_responses.kl_per_token": False,
    "retention.kept": True,
    "retention.kept_own": True,
    "retention.accuracy": True,
    "knowledge.score": True,
    "knowledge.difference": True,
    "distribution.alignment": True,
    "distribution.difference": True,
    "behaviour.person.style": True,
    "behaviour.person.right": True,
    "behaviour.person.degenerate": False,
    "behaviour.person.repetition": False,
    "behaviour.person.kl_per_token": False,
    "behaviour.person.base_perplexity": False,
    "win_rate.raw": True,
    "win_rate.length_controlled": True,
}
"""Measures of a person, by their keys in `people`, that are summarised with mean, worst, best and gap."""

MEAN_ONLY = (
    "pairs.base_ranking_accuracy",
    "pairs.chosen_log_ratio",
    "pairs.rejected_log_ratio",
    "cross.others_accuracy",
    "retention.base_accuracy",
    "knowledge.base_score",
    "distribution.base_alignment",
    "behaviour.base.style",
    "behaviour.base.right",
    "behaviour.base.degenerate",
    *(
        f"behaviour.{who}.{measure}"
        for who in ("person", "base")
        for measure in ("tokens", "characters", "distinct_1", "distinct_2", "distinct_3")
    ),
    "behaviour.base.repetition",
    "behaviour.base.base_perplexity",
    "win_rate.first_place",
)
"""Measures of a person of which neither end is worse, or that belong to the base."""


TASKS = "knowledge.tasks."
"""Before the name of a task of lm-eval, its headline is a measure of its own, and better when higher."""


@dataclass
class Evaluation:
    """What each person won, and what it cost; the schema is in docs/evaluation.md.

    Attributes:
        base: the base model, the probes and the settings.
        people: id -> results.
        groups: group -> summary of its people.
        summary: flat keys over all people, such as `retention.kept.mean`.
        skipped: id -> why there is no result.
        identities: pairs under other identities in the prompt, where they were asked for.
        win_rate: of a file of win rates, what was compared and how, and the figures over everybody.
        path: the file it was written to or read from.
    """

    base: dict[str, Any]
    people: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    skipped: dict[str, str] = field(default_factory=dict)
    identities: dict[str, Any] | None = None
    win_rate: dict[str, Any] | None = None
    path: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The content of `evaluation.json`: JSON values only; what is undefined is None."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "base": self.base,
            "people": self.people,
            "groups": self.groups,
            "summary": self.summary,
            "skipped": self.skipped,
        }
        if self.identities is not None:
            content["identities"] = self.identities
        if self.win_rate is not None:
            content["win_rate"] = self.win_rate
        return {key: _json_value(value) for key, value in content.items()}

    def is_like(self, fingerprint: str, settings: EvaluationConfig, generation: GenerationConfig, seed: int) -> bool:
        """Whether it was made on a base and with settings: only then can results be added to it."""
        asked = {"fingerprint": fingerprint, "settings": asdict(settings), "generation": asdict(generation)}
        return all(self.base.get(key) == value for key, value in {**asked, "seed": seed}.items())

    def write(self, path: Path | str) -> Path:
        """Write `evaluation.json`, whole or not at all."""
        self.path = Path(path)
        write_json(self.path, self.as_dict())
        return self.path

    def table(self) -> RenderableType:
        """For a terminal of 100 columns: the worst people first, at most twenty; answers as texts; `identities`."""
        from rich.console import Group

        from pluralign.evaluation.table import evaluation_table, identities_table, text_table

        if self.win_rate is not None:
            from pluralign.evaluation.win_rate_table import win_rate_table

            return win_rate_table(self)
        listening = None if self.identities is None else identities_table(self.identities)
        return Group(*filter(None, (evaluation_table(self), text_table(self), listening)))


def read_evaluation(path: Path | str) -> Evaluation:
    """Read a file of `Evaluation.write`.

    Raises:
        InputError: it is missing, is no evaluation, or has another schema.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        version = content.get("schema_version") if isinstance(content, dict) else None
        fix = "Run `pluralign evaluate` again."
        raise InputError(f"schema_version is {version!r}, not {SCHEMA_VERSION}", where=str(path), fix=fix)
    parts = {name: content.get(name) for name in ("base", "people", "groups", "summary", "skipped")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise InputError(
                f"{name!r} is missing or no object", where=str(path), fix="Run `pluralign evaluate` again."
            )
    pooled = {name: content.get(name) for name in ("identities", "win_rate")}
    pooled = {name: part if isinstance(part, dict) else None for name, part in pooled.items()}
    return Evaluation(**parts, **pooled, path=Path(path))  # type: ignore[arg-type]


def read_run(folder: Path | str) -> Evaluation:
    """The `evaluation.json` of a run's folder, with its people's win rates against the base where they were measured.

    Raises:
        InputError: as `read_evaluation`, of either file.
    """
    evaluation = read_evaluation(Path(folder) / "evaluation.json")
    if not (path := Path(folder) / "winrate" / "base.json").is_file():
        return evaluation
    rates = read_evaluation(path)
    people = {
        person: {**results, "win_rate": (rates.people.get(person) or {}).get("win_rate")}
        for person, results in evaluation.people.items()
    }
    summary = {**evaluation.summary, **_of_win_rates(summarize(people))}
    groups = {name: {**evaluation.groups.get(name, {}), **_of_win_rates(one)} for name, one in by_group(people).items()}
    return replace(evaluation, people=people, groups=groups, summary=summary, win_rate=rates.win_rate)


def _of_win_rates(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key.startswith("win_rate.")}


def merged(before: Evaluation, new: Evaluation, *, order: Iterable[str]) -> Evaluation:
    """An evaluation with the results of some people added or replaced, groups and summary made anew from everybody.

    `identities`, which pools everybody's pairs, is left out.

    Args:
        before: of the others, measured in the same way; their entries stay as they are.
        new: of the added people, with the reasons of everybody who has no result.
        order: of people; who is not in it is left out.
    """
    found = {**before.people, **new.people}
    people = {person: found[person] for person in order if person in found}
    return Evaluation(new.base, people, by_group(people), summarize(people, new.skipped), new.skipped)


def without(evaluation: Evaluation, removed: Collection[str]) -> Evaluation:
    """An evaluation as if some people had never been in it: neither they nor a column of others' cross tables.

    `identities` and `win_rate`, which pool everybody's, are left out.
    """
    people = {
        person: results | ({"cross": _cross_without(person, results["cross"], removed)} if "cross" in results else {})
        for person, results in evaluation.people.items()
        if person not in removed
    }
    skipped = {person: reason for person, reason in evaluation.skipped.items() if person not in removed}
    return Evaluation(evaluation.base, people, by_group(people), summarize(people, skipped), skipped)


def _cross_without(person: str, cross: dict[str, Any] | None, removed: Collection[str]) -> dict[str, Any] | None:
    if cross is None:
        return None
    table = {other: cell for other, cell in cross["people"].items() if other not in removed}
    accuracies = [cell["accuracy"] for other, cell in table.items() if other != person]
    return {**cross, "others_accuracy": mean(accuracies), "people": table}


def summarize(people: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Flat summary of some people: `<measure>.mean`, `.worst`, `.worst_person`, `.best`, `.gap`; None if nobody has it.

    Args:
        people: id -> results.
        skipped: people without any; counted only.
    """
    summary: dict[str, Any] = {"people": len(people), "skipped": len(skipped or {})}
    for measure, higher in measures_of(people).items():
        values = {person: value for person, value in _values(people, measure) if value is not None}
        ranked = sorted(values, key=lambda person: values[person], reverse=not higher)
        worst, best = (values[ranked[0]], values[ranked[-1]]) if ranked else (None, None)
        summary |= {
            f"{measure}.mean": mean(values.values()),
            f"{measure}.worst": worst,
            f"{measure}.worst_person": ranked[0] if ranked else None,
            f"{measure}.best": best,
            f"{measure}.gap": abs(best - worst) if best is not None and worst is not None else None,
        }
    for measure in MEAN_ONLY:
        summary[f"{measure}.mean"] = mean(value for _, value in _values(people, measure))
    return summary


def by_group(people: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summary of each group's people; those without a group are in none."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for person, results in people.items():
        if results.get("group") is not None:
            groups.setdefault(results["group"], {})[person] = results
    return {group: summarize(members) for group, members in sorted(groups.items())}


def measures_of(people: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Measures with a worst person, and whether higher is better: `HIGHER_IS_BETTER`, and every task with a headline.

    Args:
        people: id -> results.
    """
    tasks = dict.fromkeys(
        task
        for results in people.values()
        for task, found in _mapping(results, "knowledge", "tasks").items()
        if isinstance(found, Mapping) and isinstance(found.get("headline"), str)
    )
    return HIGHER_IS_BETTER | dict.fromkeys((f"{TASKS}{task}" for task in tasks), True)


def path_of(results: Mapping[str, Any], measure: str) -> list[str]:
    """The keys, one below the other, that lead to a person's value of a measure."""
    if not measure.startswith(TASKS):
        return measure.split(".")
    # A task may have dots in its name.
    above = [*TASKS.rstrip(".").split("."), measure.removeprefix(TASKS)]
    return [*above, "metrics", str(_mapping(results, *above).get("headline")), "value"]


def measure_of(results: Mapping[str, Any], measure: str) -> float | None:
    """A person's value by its dotted key; None where it is undefined."""
    *above, key = path_of(results, measure)
    return next(iter(finite([_mapping(results, *above).get(key)])), None)


def _mapping(value: Any, *keys: str) -> Mapping[str, Any]:
    """What stands below keys; nothing where one is missing, or what stands there has no keys."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _values(people: Mapping[str, Mapping[str, Any]], measure: str) -> Iterable[tuple[str, float | None]]:
    return ((person, measure_of(results, measure)) for person, results in people.items())


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
