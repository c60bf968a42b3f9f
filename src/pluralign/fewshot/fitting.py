"""Choosing the scales of a taste, and how wide its intervals are: training groups are predicted from the others.

Groups and questions are cut into parts. Each part of the groups is predicted from the answers of the other groups to
the other questions, so that every round has both kinds of target: questions that others have answered, and new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from pluralign.fewshot.answers import Answers, Question, Shares
from pluralign.fewshot.calibration import KNOWN, NEW, Calibration, Sample, calibrated
from pluralign.fewshot.features import Points
from pluralign.fewshot.metrics import alignment
from pluralign.fewshot.taste import Reading, Scales, Taste, taste
from pluralign.progress import progress_bar

PARTS = 4
CONTEXTS = (5, 20, 50)
"""Answers that a group is predicted from, at most."""
TARGETS = 40
"""Answers of each kind that are predicted of a group, at most."""
LEAST = 6
"""Answers that a group needs to be predicted."""
SEARCHED = 120
"""Groups that the scales are chosen on, at most."""
GRID: dict[str, tuple[float, ...]] = {
    "vectors": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "own": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
    "together": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "mean_own": (0.1, 0.3, 1.0, 3.0),
    "mean_vectors": (0.1, 0.3, 1.0, 3.0, 10.0),
    "blend": (0.0, 0.15, 0.3, 0.5),
}
"""What each scale may be; the search begins with the defaults and moves one step at a time."""


@dataclass(frozen=True)
class Fitted:
    """A taste with what it was chosen by.

    Attributes:
        taste: of all training groups, at the chosen scales.
        calibration: of its intervals; None where too few groups have answers enough to tell.
        alignment: mean over training groups predicted from others, at the chosen scales; NaN likewise.
    """

    taste: Taste
    calibration: Calibration | None
    alignment: float


def fit(answers: Answers, points: Points, *, seed: int = 0) -> Fitted:
    """A taste at the scales with which training groups are best predicted from others.

    Args:
        answers: of the training groups.
        points: vectors of all their questions.
        seed: of the parts.
    """
    rounds = list(_rounds(answers, points, seed))
    if not rounds:
        return Fitted(taste(answers, points, Scales()), None, float("nan"))
    scales, score = _search(rounds)
    return Fitted(taste(answers, points, scales), _calibrated(rounds, scales), score)


@dataclass(frozen=True)
class _Trial:
    """A group's context and targets."""

    context: dict[int, Shares]
    targets: dict[str, dict[int, Shares]]


@dataclass(frozen=True)
class _Round:
    """Answers to learn from, and groups to predict."""

    questions: Sequence[Question]
    points: Points
    learned: Answers
    trials: Sequence[_Trial]

    def read(self, scales: Scales) -> Iterator[tuple[str, Reading, dict[int, Shares]]]:
        """Kind of question, what a group's context says, the group's answers to questions of the kind."""
        view = taste(self.learned, self.points, scales).view(self.questions, self.points)
        for trial in self.trials:
            reading = view.read(trial.context)
            yield from ((kind, reading, targets) for kind, targets in trial.targets.items())


def _rounds(answers: Answers, points: Points, seed: int) -> Iterator[_Round]:
    draw = np.random.default_rng(seed)
    ample = [group for group, own in answers.groups.items() if len(own) >= LEAST]
    tried = [ample[place] for place in draw.permutation(len(ample))[:SEARCHED]]
    if len(tried) < PARTS:
        return
    questions = draw.permutation(len(answers.questions))
    for part in range(PARTS):
        out, new = tried[part::PARTS], set(questions[part::PARTS].tolist())
        learned = answers.of(group for group in answers.groups if group not in out).without(new)
        known = {number for own in learned.groups.values() for number in own}
        trials = [trial for group in out for trial in _trials(answers.groups[group], known, new, draw)]
        if trials:
            yield _Round(answers.questions, points, learned, trials)


def _trials(own: Mapping[int, Shares], known: set[int], new: set[int], draw: np.random.Generator) -> Iterator[_Trial]:
    order = [list(own)[place] for place in draw.permutation(len(own))]
    old = [number for number in order if number not in new]
    for size in sorted({min(size, len(old) // 2) for size in CONTEXTS}):
        read = old[:size]
        kinds = {KNOWN: [number for number in old[len(read) :] if number in known], NEW: [n for n in order if n in new]}
        targets = {kind: {number: own[number] for number in some[:TARGETS]} for kind, some in kinds.items() if some}
        if read and targets:
            yield _Trial({number: own[number] for number in read}, targets)


def _search(rounds: Sequence[_Round]) -> tuple[Scales, float]:
    """One step at a time in the direction of a better score, until no step is better."""
    best = Scales()
    scores = {best: _score(rounds, best)}
    with progress_bar() as bar:
        task = bar.add_task("choosing scales", total=None)
        while (better := _better(rounds, best, scores, lambda: bar.advance(task))) is not None:
            best = better
    return best, scores[best]


def _better(
    rounds: Sequence[_Round], best: Scales, scores: dict[Scales, float], tried: Callable[[], None]
) -> Scales | None:
    for scales in _neighbours(best):
        if scales not in scores:
            scores[scales] = _score(rounds, scales)
            tried()
        if scores[scales] > scores[best] + _TINY:
            return scales
    return None


_TINY = 1e-5


def _neighbours(scales: Scales) -> Iterator[Scales]:
    for name, values in GRID.items():
        place = values.index(getattr(scales, name))
        for step in (-1, 1):
            if 0 <= place + step < len(values):
                yield replace(scales, **{name: values[place + step]})


def _score(rounds: Sequence[_Round], scales: Scales) -> float:
    """Mean alignment with questions of either kind, each kind half."""
    found: dict[str, list[float]] = {}
    for one in rounds:
        for kind, reading, targets in one.read(scales):
            predicted = reading.shares(list(targets))
            found.setdefault(kind, []).extend(
                alignment(one.questions[number], shares, said)
                for (number, said), shares in zip(targets.items(), predicted, strict=True)
            )
    return mean(float(np.nanmean(values)) for values in found.values())


def _calibrated(rounds: Sequence[_Round], scales: Scales) -> Calibration:
    return calibrated(
        [
            Sample.of(kind, reading.read, predicted, said)
            for one in rounds
            for kind, reading, targets in one.read(scales)
            for said, predicted in zip(targets.values(), reading.predict(list(targets)), strict=True)
        ]
    )
