"""A fitted predictor, and what it says of groups from a few of their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pluralign.config import EmbeddingConfig, FewshotFitConfig
from pluralign.errors import InputError
from pluralign.fewshot.active import worth
from pluralign.fewshot.answers import Answers, Question, Shares
from pluralign.fewshot.calibration import LEVELS
from pluralign.fewshot.embedding import KEY, embed
from pluralign.fewshot.features import Points
from pluralign.fewshot.fitting import Fitted, fit

if TYPE_CHECKING:
    from pluralign.fewshot.episodes import TrainedModule


_UNTOLD = "too few groups have answers enough, or all options of a question stand at one place"
PART = 20_000
"""Options of different questions that are looked at together, at most, beside those that are to be predicted."""


@dataclass(frozen=True)
class Answer:
    """A predicted answer of a group.

    Attributes:
        group: whose.
        question: to what.
        shares: float `[options]`, sums to 1.
        low, high: float `[options]` in [0, 1], ends of the intervals; None where the predictor has none.
        known: whether a training group answered the question.
    """

    group: str
    question: Question
    shares: Shares
    low: np.ndarray | None
    high: np.ndarray | None
    known: bool


_Read = Callable[[Mapping[int, Shares], Sequence[int]], list[tuple[Shares, np.ndarray | None, np.ndarray | None]]]
"""A group's context and the numbers of targets -> shares and ends of the intervals."""


@dataclass(frozen=True)
class Predictor:
    """What `fit_predictor` makes.

    Attributes:
        embeddings: of options.
        fingerprint: of what made their vectors.
        fitted: the closed form, or the published module.
        seen: keys of the questions that training groups answered.
        groups: how many these were.
        config: of the fit, as it was resolved.
    """

    embeddings: EmbeddingConfig
    fingerprint: str
    fitted: Fitted | TrainedModule
    seen: frozenset[str]
    groups: int
    config: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """What it was learned of, and how well training groups were predicted without their own answers."""
        of = f"learned of {self.groups} groups and {len(self.seen)} questions"
        if np.isnan(self.fitted.alignment):
            return f"{of}; how good it is cannot be told: {_UNTOLD}"
        return f"{of}; alignment with training groups kept apart: {self.fitted.alignment:.3f}"

    def predict(
        self,
        answers: Answers,
        questions: Sequence[Question],
        *,
        level: float = 0.8,
        cache_dir: str | Path | None = None,
    ) -> list[Answer]:
        """What groups will answer.

        Args:
            answers: of the groups: their contexts.
            questions: to predict for every group.
            level: share of the true answers that an interval should hold: 0.5, 0.8, 0.9 or 0.95.
            cache_dir: of vectors that a model made.

        Raises:
            InputError: a group without answers, or one that has answered a question that is to be predicted; another
                level; the embeddings' model is not the one that the predictor was fitted with.
        """
        if level not in LEVELS:
            raise InputError(f"level is {level:g}", fix=f"It is one of {', '.join(map(str, LEVELS))}.")
        _check(answers, questions)
        return [one for some in answers.parts(PART) for one in self._predicted(some, questions, level, cache_dir)]

    def _predicted(
        self, answers: Answers, questions: Sequence[Question], level: float, cache_dir: str | Path | None
    ) -> list[Answer]:
        answers, _ = answers.compact()
        asked = list(dict.fromkeys([*answers.questions, *questions]))
        points = self._embedded(asked, answers, cache_dir)
        numbers = {question: number for number, question in enumerate(asked)}
        targets = [numbers[question] for question in questions]
        known = [question.key in self.seen for question in asked]
        read = self._reader(asked, points, level)
        return [
            Answer(group, asked[number], *said, known[number])
            for group, own in answers.groups.items()
            for number, said in zip(targets, read(own, targets), strict=True)
        ]

    def ask(
        self,
        answers: Answers,
        pool: Sequence[Question],
        *,
        targets: Sequence[Question] = (),
        cache_dir: str | Path | None = None,
    ) -> list[tuple[Question, float]]:
        """What to ask next, best first, with the variance of predicted shares that an answer would take away.

        Args:
            answers: of one group, or of nobody.
            pool: what could be asked; what has been answered is left out.
            targets: what is to be known, perhaps none of the pool; the pool where there are none.
            cache_dir: of vectors that a model made.

        Raises:
            InputError: answers of several groups; a target that has been answered; nothing left to ask; a
                predictor that does not say how sure it is.
        """
        fitted = self.fitted
        if not isinstance(fitted, Fitted):
            raise InputError("the published module does not say how sure it is", fix="Fit with predictor: taste.")
        if len(answers.groups) > 1:
            raise InputError(f"there are answers of {len(answers.groups)}", where=answers.name, fix="Ask for one.")
        _check(answers, targets)
        own = next(iter(answers.groups.values()), {})
        told = {answers.questions[number].asked for number in own}
        free = {one.asked: one for one in pool if one.asked not in told}
        asked = [*answers.questions, *free.values(), *targets]
        left = list(range(len(answers.questions), len(answers.questions) + len(free)))
        wanted = list(range(len(answers.questions) + len(free), len(asked))) or left
        if not left:
            found = "every question that could be asked has been answered"
            raise InputError(found, where=answers.name, fix="Give others as questions.")
        views = fitted.tastes.view(asked, self._embedded(asked, answers, cache_dir))
        gains = worth(views, own, left, wanted)
        return [(asked[left[place]], float(gains[place])) for place in np.argsort(-gains, kind="stable")]

    def _embedded(self, asked: Sequence[Question], answers: Answers, cache_dir: str | Path | None) -> Points:
        """Vectors of questions, those that are answered first."""
        points, fingerprint = embed(asked, self.embeddings, cache_dir=cache_dir, answers=answers)
        if fingerprint != self.fingerprint:
            found = f"{self.embeddings.model!r} is not the model that the predictor was fitted with"
            raise InputError(found, where=KEY, fix="Bring that model back, or fit again.")
        return points

    def _reader(self, asked: Sequence[Question], points: Points, level: float) -> _Read:
        """What does not depend on the group is done once."""
        fitted = self.fitted
        if not isinstance(fitted, Fitted):
            from pluralign.fewshot.episodes import predict

            module = fitted.module
            return lambda own, targets: [(shares, None, None) for shares in predict(module, points, own, targets)]
        views, calibration = fitted.tastes.view(asked, points), fitted.calibration

        def read(
            own: Mapping[int, Shares], targets: Sequence[int]
        ) -> list[tuple[Shares, np.ndarray | None, np.ndarray | None]]:
            reading = views.read(own)
            if calibration is None:
                return [(shares, None, None) for shares in reading.shares(targets)]
            return [
                (one.shares, *calibration.interval(one, views.kind(number), level, len(own)))
                for number, one in zip(targets, reading.predict(targets), strict=True)
            ]

        return read


def fit_predictor(answers: Answers, config: FewshotFitConfig) -> Predictor:
    """Learn from groups what a few answers say of the others.

    Args:
        answers: of the training groups.
        config: which predictor, and which vectors.

    Raises:
        InputError: there are no answers to learn from.
    """
    if not any(len(own) > 1 for own in answers.groups.values()):
        found = f"{len(answers.groups)} groups, and none has two answers"
        raise InputError(found, where=answers.name, fix="A predictor learns how a group's answers go together.")
    points, fingerprint = embed(answers.questions, config.embeddings, cache_dir=config.cache_dir, answers=answers)
    fitted: Fitted | TrainedModule
    if config.predictor == "taste":
        fitted = fit(answers, points, seed=config.seed)
    else:
        from pluralign.fewshot.episodes import train_module

        fitted = train_module(answers, points, config.module, seed=config.seed)
    seen = frozenset(answers.questions[number].key for _, number, _ in answers)
    return Predictor(config.embeddings, fingerprint, fitted, seen, len(answers.groups), asdict(config))


def _check(answers: Answers, questions: Iterable[Question]) -> None:
    asked = {question.asked for question in questions}
    for group, own in answers.groups.items():
        if not own:
            raise InputError(f"group {group!r} has no answers", where=answers.name, fix="Give one, or leave it out.")
        for number in own:
            if (question := answers.questions[number]).asked in asked:
                found = f"group {group!r} has answered {question.text!r}, which is to be predicted"
                place = answers.place(group, number)
                raise InputError(found, where=place, fix="Take it out of the answers, or of the questions.")
