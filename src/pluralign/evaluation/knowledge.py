"""What people's policies still know by tasks of lm-eval, beside the base; that package is imported where it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from pluralign.errors import InputError
from pluralign.evaluation.statistics import mean
from pluralign.seats import KnowledgeConfig

if TYPE_CHECKING:
    from pluralign.evaluation.policies import Policies
    from pluralign.models.base import Base


@dataclass(frozen=True)
class Figure:
    """What a task says of a model by one metric.

    Attributes:
        value: in the metric's own unit.
        stderr: its standard error over documents, as the task gives it; None where it gives none.
    """

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Told:
    """What all tasks say of one model.

    Attributes:
        figures: task or group -> metric -> figure.
        documents: task or group -> documents that were asked.
        higher: task or group -> metric (without a filter's name) -> whether higher is better, or None.
        inside: tasks and groups whose figures are in those of a group.
        undefined: log-probs that were no numbers: no figure then says anything.
    """

    figures: Mapping[str, Mapping[str, Figure]]
    documents: Mapping[str, int]
    higher: Mapping[str, Mapping[str, bool | None]]
    inside: frozenset[str] = frozenset()
    undefined: int = 0

    def headline(self, task: str) -> str | None:
        """The metric that stands for a task: its first one that is better when higher."""
        better = self.higher.get(task, {})
        return next((name for name in self.figures[task] if better.get(name.partition(",")[0])), None)

    @property
    def headlines(self) -> dict[str, str]:
        """Task -> its headline, for those that count in the score: what a group sums up counts once, in the group."""
        found = {task: self.headline(task) for task in self.figures if task not in self.inside}
        return {task: metric for task, metric in found.items() if metric is not None}

    def score(self) -> float | None:
        """Mean of the headlines."""
        if self.undefined:
            return None
        return mean(self.figures[task][metric].value for task, metric in self.headlines.items())


class Asks(Protocol):
    """Puts all tasks to one policy; see `Harness`."""

    tasks: dict[str, dict[str, Any]]

    def ask(self, policies: Policies, person: int = 0) -> Told:
        """See `Harness.ask`."""


class Knowledge:
    """Tasks, what the base says to them, and what people's policies do.

    Args:
        harness: puts the tasks.
        bare: the base alone.

    Raises:
        InputError: the base gives a log-prob that is no number, or a task cannot be put to it.
    """

    def __init__(self, harness: Asks, bare: Policies) -> None:
        self.harness = harness
        self.base = harness.ask(bare)
        if self.base.undefined:
            fix = "Its weights are broken, or its activations overflow: try --dtype float32."
            raise InputError(f"the base gives {self.base.undefined} log-probs that are no numbers", fix=fix)

    def of(self, policies: Policies, person: int) -> dict[str, Any]:
        """The `knowledge` of one person, as in `evaluation.json`."""
        return knowledge(self.base, self.harness.ask(policies, person))

    def facts(self) -> dict[str, Any]:
        """`base.knowledge` of `evaluation.json`: how the tasks were put."""
        from pluralign.evaluation.harness import VERSION

        return {"lm_eval": VERSION, "tasks": self.harness.tasks}


def prepared(settings: KnowledgeConfig, base: Base) -> Knowledge | None:
    """The tasks that are asked for, answered by the base; None without any.

    Raises:
        InputError: as `check_knowledge`, `Harness`, `Knowledge`.
    """
    if not settings.names:
        return None
    _require()
    from pluralign.evaluation.harness import Harness
    from pluralign.evaluation.policies import bare

    return Knowledge(Harness(base, settings), bare(base))


def check_knowledge(settings: KnowledgeConfig) -> None:
    """Find out, before the long work, whether the tasks can be asked.

    Raises:
        InputError: lm-eval is not installed, or has no such task; or a setting is out of its range.
    """
    if settings.limit is not None and not settings.limit > 0:
        raise InputError(f"evaluation.knowledge.limit is {settings.limit}", fix="It must be greater than 0.")
    if settings.batch_size < 1:
        raise InputError(f"evaluation.knowledge.batch_size is {settings.batch_size}", fix="It must be at least 1.")
    if settings.num_fewshot is not None and settings.num_fewshot < 0:
        raise InputError(f"evaluation.knowledge.num_fewshot is {settings.num_fewshot}", fix="It must be at least 0.")
    if not settings.names:
        return
    _require()
    from pluralign.evaluation.harness import check_tasks

    check_tasks(settings)


def knowledge(base: Told, person: Told) -> dict[str, Any]:
    """The `knowledge` of one person, as in `evaluation.json`.

    Args:
        base: what the base says.
        person: what the person's policy says to the same.
    """
    score, base_score = person.score(), base.score()
    return {
        "score": score,
        "base_score": base_score,
        "difference": None if score is None or base_score is None else score - base_score,
        "undefined": person.undefined,
        "tasks": {
            task: {
                "documents": base.documents[task],
                "headline": base.headline(task),
                "in_score": task in base.headlines,
                "metrics": {
                    metric: _compared(figure, person.figures[task].get(metric), person.undefined)
                    for metric, figure in figures.items()
                },
            }
            for task, figures in base.figures.items()
        },
    }


def _compared(base: Figure, person: Figure | None, undefined: int) -> dict[str, float | None]:
    if undefined or person is None:
        person = Figure(math.nan, None)
    known = math.isfinite(person.value)
    return {
        "value": person.value if known else None,
        "stderr": person.stderr if known else None,
        "base": base.value,
        "base_stderr": base.stderr,
        "difference": person.value - base.value if known else None,
    }


def _require() -> None:
    if find_spec("lm_eval") is None:
        raise InputError(
            "evaluation.knowledge.tasks is set, and lm-eval is not installed", fix="pip install 'pluralign[knowledge]'"
        )
