"""Every method in every protocol at every number of answers: figures by group, means with intervals, one JSON file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from pluralign.config import FewshotEvaluateConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Question, Shares
from pluralign.fewshot.embedding import embed
from pluralign.fewshot.features import Points
from pluralign.fewshot.methods import Learn, Told, methods
from pluralign.fewshot.metrics import LEAST_SHARE, alignment, jensen_shannon_alignment, wasserstein_alignment
from pluralign.fewshot.protocols import PROTOCOLS, Split, split
from pluralign.progress import progress_bar
from pluralign.storage import write_json

SCHEMA_VERSION = 1
MEASURES = ("alignment", "wasserstein", "jensen_shannon", "accuracy", "nll", "coverage", "width")
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Two-sided 95% points of Student's t by degrees of freedom."""


@dataclass(frozen=True)
class Cell:
    """A method in a protocol on one split at one number of answers.

    Attributes:
        protocol, method, size, seed: which.
        groups: tested group -> measure -> mean over its targets; a measure that is not defined is left out.
        drawn: groups drawn to be tested; None where that was not noted.
    """

    protocol: str
    method: str
    size: int
    seed: int
    groups: Mapping[str, Mapping[str, float]]
    drawn: int | None = None


@dataclass(frozen=True)
class Summary:
    """A method in a protocol at one number of answers, over splits.

    Attributes:
        protocol, method, size: which.
        splits: how many.
        means: measure -> mean over splits of the mean over groups.
        margins: measure -> half of the 95% interval of that mean; absent with one split.
        worst: mean over splits of the alignment of the worst group.
    """

    protocol: str
    method: str
    size: int
    splits: int
    means: Mapping[str, float]
    margins: Mapping[str, float]
    worst: float


def compare(answers: Answers, config: FewshotEvaluateConfig) -> Iterator[Cell]:
    """Learn and test every method on every split.

    Args:
        answers: of all groups.
        config: sizes, splits, methods, embeddings.

    Raises:
        InputError: a method of another name, or too few groups or answers.
    """
    chosen = _chosen(config)
    points, _ = embed(answers.questions, config.embeddings, cache_dir=config.cache_dir, answers=answers)
    sizes = sorted(set(config.sizes))
    splits = _splits(answers, sizes, config)
    with progress_bar() as bar:
        task = bar.add_task("few-shot comparison", total=len(splits) * len(chosen))
        for one in splits:
            for name, learn in chosen.items():
                yield from cells_of(name, learn, one, points)
                bar.advance(task)


def cells_of(name: str, learn: Learn, one: Split, points: Points) -> Iterator[Cell]:
    """Learn a method of a split's training groups and measure it on the tested ones, a cell a number of answers.

    Args:
        name: what to call the method.
        learn: the method.
        one: the split.
        points: of all questions.
    """
    predict = learn(one.training, points)
    found: dict[int, dict[str, dict[str, float]]] = {}
    for trial in one.trials:
        for size, context in trial.contexts.items():
            said = predict(context, list(trial.targets))
            asked = [(one.training.questions[number], shares) for number, shares in trial.targets.items()]
            told = [(*pair, got) for pair, got in zip(asked, said, strict=True)]
            if means := measured(told):
                found.setdefault(size, {})[trial.group] = means
    for size, groups in sorted(found.items()):
        yield Cell(one.protocol, name, size, one.seed, groups, one.drawn)


def summarise(cells: Iterable[Cell]) -> list[Summary]:
    """Means over groups and splits, in the order of the cells."""
    grouped: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.protocol, cell.method, cell.size), []).append(cell)
    return [_summary(*key, some) for key, some in sorted(grouped.items(), key=lambda item: (item[0][0], item[0][2]))]


def write_comparison(
    path: str | Path, cells: Sequence[Cell], config: FewshotEvaluateConfig, notes: Sequence[str] = ()
) -> None:
    """Cells and summaries as JSON (docs/methods/gpo.md), with what was changed or left out where answers were read."""
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "config": asdict(config), "notes": list(notes)}
    content |= {"summaries": [asdict(one) for one in summarise(cells)], "cells": [asdict(cell) for cell in cells]}
    write_json(path, content)


def tables(summaries: Sequence[Summary]) -> list[Any]:
    """A table a protocol for the terminal: alignment, worst group, accuracy, likelihood, what intervals hold."""
    from rich.table import Table

    found = []
    for protocol in dict.fromkeys(one.protocol for one in summaries):
        shown = Table("answers", "method", "alignment", "worst", "accuracy", "nats", "80% holds", title=protocol)
        for one in summaries:
            if one.protocol == protocol:
                shown.add_row(*_row(one))
        found.append(shown)
    return found


def _row(one: Summary) -> list[str]:
    margin = f" ±{one.margins['alignment']:.3f}" if "alignment" in one.margins else ""
    holds = f"{one.means['coverage']:.0%}" if "coverage" in one.means else ""
    figures = [f"{one.means['alignment']:.3f}{margin}", f"{one.worst:.3f}", f"{one.means['accuracy']:.1%}"]
    return [str(one.size), one.method, *figures, f"{one.means['nll']:.3f}", holds]


def _splits(answers: Answers, sizes: Sequence[int], config: FewshotEvaluateConfig) -> list[Split]:
    """All splits that the table has answers for; warnings say why others are not there, and who is not tested.

    Raises:
        InputError: there is none at all.
    """
    found: list[Split] = []
    reasons = {}
    for protocol in PROTOCOLS:
        for seed in range(config.seed, config.seed + config.splits):
            try:
                found.append(split(answers, protocol, sizes, least=config.least, seed=seed))
            except InputError as error:
                reasons[protocol] = error
    if not found:
        raise next(iter(reasons.values()))
    for protocol in PROTOCOLS:
        there = [one for one in found if one.protocol == protocol]
        tested, drawn = sum(len(one.trials) for one in there), sum(one.drawn for one in there)
        if protocol in reasons:
            count = f"{len(there)} of {config.splits} splits" if there else "no comparison"
            warnings.warn(f"{count} on {protocol}: {reasons[protocol]}", stacklevel=2)
        if tested < drawn:
            few = "the others have too few answers left to predict"
            warnings.warn(f"{protocol}: {tested} of {drawn} groups drawn are tested; {few}", stacklevel=2)
    return found


def _chosen(config: FewshotEvaluateConfig) -> dict[str, Learn]:
    there = methods(config.module, seed=config.seed)
    for name in config.methods:
        if name not in there:
            raise InputError(f"methods has {name!r}", fix=f"There are {', '.join(there)}.")
    return {name: there[name] for name in config.methods}


def measured(told: Sequence[tuple[Question, Shares, Told | None]]) -> dict[str, float]:
    """Means over a group's targets: measure -> mean; one that is not defined is left out.

    Args:
        told: question, what the group answered, and what it is predicted to answer. Nothing comes back where a method
            has nothing to say of one of them.
    """
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for question, shares, got in told:
        if got is None:
            return {}
        predicted, low, high = got
        values["alignment"].append(alignment(question, predicted, shares))
        values["jensen_shannon"].append(jensen_shannon_alignment(predicted, shares))
        if question.ordinals is not None:
            values["wasserstein"].append(wasserstein_alignment(predicted, shares, question.ordinals))
        values["accuracy"].append(_best_share(predicted, shares))
        floored = np.maximum(predicted, LEAST_SHARE)
        values["nll"].append(float(-(shares * np.log(floored / floored.sum())).sum()))
        if low is not None and high is not None:
            values["coverage"].append(float(np.mean((low <= shares) & (shares <= high))))
            values["width"].append(float(np.mean(high - low)))
    # A group whose options all stand at one place has no alignment, and is not compared.
    found = {name: _mean(some) for name, some in values.items()}
    return {} if math.isnan(found["alignment"]) else {n: value for n, value in found.items() if not math.isnan(value)}


def _best_share(predicted: Shares, shares: Shares) -> float:
    """Whether the option that is predicted to be taken most is; of several that are taken alike, any counts."""
    return float(shares[int(predicted.argmax())] == shares.max())


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return mean(defined) if defined else math.nan


def _summary(protocol: str, method: str, size: int, cells: Sequence[Cell]) -> Summary:
    means, margins = {}, {}
    for name in MEASURES:
        by_split = [_mean([own.get(name, math.nan) for own in cell.groups.values()]) for cell in cells]
        by_split = [value for value in by_split if not math.isnan(value)]
        if by_split:
            means[name] = mean(by_split)
        if len(by_split) > 1:
            margins[name] = _t95(len(by_split) - 1) * stdev(by_split) / math.sqrt(len(by_split))
    worst = mean(min(own["alignment"] for own in cell.groups.values()) for cell in cells)
    return Summary(protocol, method, size, len(cells), means, margins, worst)


def _t95(freedom: int) -> float:
    """Two-sided 95% point of Student's t; from ten degrees on by its expansion around the normal one (to 0.003)."""
    if freedom in _T95:
        return _T95[freedom]
    z = 1.96
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
