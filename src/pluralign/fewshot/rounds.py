"""Training groups as if they were new: each part of them is predicted from the others, at any scales.

Groups and questions are cut into parts. Each part of the groups is predicted from the answers of the other groups to
the other questions, so that every round has both kinds of target: questions that others have answered, and new ones.
What does not depend on the scales is done once, and all targets of all rounds are scored together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain

import numpy as np

from pluralign.fewshot.answers import Answers, Question, Shares, alike
from pluralign.fewshot.features import Points
from pluralign.fewshot.kinds import KNOWN, NEW
from pluralign.fewshot.learned import Expected, Learned
from pluralign.fewshot.metrics import Targets
from pluralign.fewshot.taste import Scales, Sharpness, log_shares, power

PARTS = 4
CONTEXTS = (5, 10, 20, 50)
"""Answers that a group is predicted from, at most."""
TARGETS = 40
"""Answers of each kind that are predicted of a group, at most."""
LEAST = 6
"""Answers that a group needs to be predicted."""
SEARCHED = 120
"""Groups that the scales are chosen on, at most."""
MOST = 40_000
"""Options of different questions that rounds are made of, at most: where people were asked questions of their own, more
people are more questions, and say no more of how much to trust what."""


@dataclass(frozen=True)
class Trial:
    """A group's context and targets.

    Attributes:
        context: number of a question -> what the group answered, at least one.
        targets: kind of question -> number of a question -> what the group answered.
    """

    context: Mapping[int, Shares]
    targets: Mapping[str, Mapping[int, Shares]]

    @property
    def numbers(self) -> list[int]:
        """Of all targets."""
        return [number for own in self.targets.values() for number in own]


@dataclass(frozen=True)
class _Products:
    """Of a trial, what no scale changes: points, log-shares, and products of the vectors."""

    read: np.ndarray
    asked: np.ndarray
    said: np.ndarray
    within: np.ndarray
    across: np.ndarray


@dataclass(frozen=True)
class Round:
    """Answers to learn from, and groups to predict.

    Attributes:
        questions: all.
        learned: of the other groups, to the other questions.
        trials: the groups.
    """

    questions: Sequence[Question]
    learned: Learned
    trials: Sequence[Trial]

    def lifted(self) -> Round:
        """The same with vectors in the space of those that were learned of."""
        return replace(self, learned=Learned.lifted(self.learned.answers, self.learned.points))

    def logs(self, scales: Scales) -> list[np.ndarray]:
        """What every trial's targets are expected to be: log-shares, `[points of its targets]` each."""
        here = self.learned.expected(scales)
        return [_expected(one, here, scales) for one in self._products]

    @cached_property
    def _products(self) -> list[_Products]:
        vectors, points = self.learned.points.centred, self.learned.points
        found = []
        for trial in self.trials:
            read, asked = points.of(list(trial.context)), points.of(trial.numbers)
            said = np.concatenate([log_shares(shares) for shares in trial.context.values()])
            across = vectors[asked] @ vectors[read].T
            found.append(_Products(read, asked, said, vectors[read] @ vectors[read].T, across))
        return found


def _expected(one: _Products, here: Expected, scales: Scales) -> np.ndarray:
    """The posterior mean in terms of the context's points, which are fewer than the features."""
    directions = scales.together * here.directions[one.read].T
    own = scales.own + here.unsure[one.read]
    within = scales.vectors * one.within + here.directions[one.read] @ directions + np.diag(own)
    across = scales.vectors * one.across + here.directions[one.asked] @ directions
    return np.asarray(here.mean[one.asked] + across @ np.linalg.solve(within, one.said - here.mean[one.read]))


def rounds_of(answers: Answers, points: Points, seed: int) -> list[Round]:
    """Rounds in which every group that has answers enough is predicted once; none where there are too few groups.

    Args:
        answers: of the training groups.
        points: of all questions.
        seed: of the parts.
    """
    answers, points = _some(answers, points, seed)
    draw = np.random.default_rng(seed)
    ample = [group for group, own in answers.groups.items() if len(own) >= LEAST]
    tried = [ample[place] for place in draw.permutation(len(ample))[:SEARCHED]]
    parts = min(PARTS, len(tried))
    if parts < 2:
        return []
    texts, found = alike(answers.questions, draw.permutation(len(answers.questions)).tolist()), []
    for part in range(parts):
        out, new = tried[part::parts], set(chain.from_iterable(texts[part::PARTS]))
        others = answers.of(group for group in answers.groups if group not in out).without(new)
        known = {number for own in others.groups.values() for number in own}
        trials = [trial for group in out for trial in _trials(answers.groups[group], known, new, draw)]
        if trials:
            found.append(Round(answers.questions, Learned.of(others, points), trials))
    return found


def _some(answers: Answers, points: Points, seed: int) -> tuple[Answers, Points]:
    """Groups of a random order whose questions have no more than `MOST` options; all where there are no others."""
    names = list(answers.groups)
    order = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    taken = next(answers.of(order).parts(MOST, least=2 * PARTS)).groups
    if len(taken) == len(names):
        return answers, points
    some, numbers = answers.of(name for name in names if name in taken).compact()
    return some, points.only(numbers)


def _trials(own: Mapping[int, Shares], known: set[int], new: set[int], draw: np.random.Generator) -> Iterator[Trial]:
    order = [list(own)[place] for place in draw.permutation(len(own))]
    old = [number for number in order if number not in new]
    for size in sorted({min(size, len(old) // 2) for size in CONTEXTS}):
        read = old[:size]
        kinds = {KNOWN: [number for number in old[len(read) :] if number in known], NEW: [n for n in order if n in new]}
        targets = {kind: {number: own[number] for number in some[:TARGETS]} for kind, some in kinds.items() if some}
        if read and targets:
            yield Trial({number: own[number] for number in read}, targets)


@dataclass(frozen=True)
class Sheet:
    """All targets of some rounds, in one row.

    Attributes:
        rounds: they.
        targets: every one's question and answer.
        kinds: `[targets]`, kind of the question.
        trials: int64 `[targets]`, number of the trial over all rounds.
        others: float `[points]`, mean of the groups that were learned from; NaN where there is none.
    """

    rounds: Sequence[Round]
    targets: Targets
    kinds: np.ndarray
    trials: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Sheet:
        """The sheet of some rounds, at least one."""
        trials = [(one, trial) for one in rounds for trial in one.trials]
        asked = [one.questions[number] for one, trial in trials for number in trial.numbers]
        said = [shares for _, trial in trials for own in trial.targets.values() for shares in own.values()]
        kinds = [kind for _, trial in trials for kind, own in trial.targets.items() for _ in own]
        numbers = np.repeat(np.arange(len(trials)), [len(trial.numbers) for _, trial in trials])
        others = [one.learned.shares[one.learned.points.of(trial.numbers)] for one, trial in trials]
        return cls(rounds, Targets.of(asked, said), np.array(kinds), numbers, np.concatenate(others))

    @property
    def read(self) -> np.ndarray:
        """Int64 `[trials]`, size of the context."""
        return np.array([len(trial.context) for one in self.rounds for trial in one.trials])

    def powers(self, sharpness: Sharpness) -> np.ndarray:
        """What the shares of all targets are raised to, `[points]`."""
        by_trial = np.array([power(sharpness, read) for read in self.read])
        return np.asarray(by_trial[self.trials][self.targets.numbers])

    def logs(self, scales: Scales) -> np.ndarray:
        """Expected log-shares of all targets, `[points]`."""
        return np.concatenate([logs for one in self.rounds for logs in one.logs(scales)])

    def count(self, kind: str) -> int:
        """Targets of a kind."""
        return int((self.kinds == kind).sum())

    def by_trial(self, values: np.ndarray, kind: str) -> np.ndarray:
        """Means over a trial's targets of a kind, `[trials]`; NaN where it has none.

        Args:
            values: `[targets]`; NaN ones are left out.
            kind: `known` or `new`.
        """
        there = (self.kinds == kind) & ~np.isnan(values)
        total = np.bincount(self.trials[there], values[there], minlength=len(self.read))
        counts = np.bincount(self.trials[there], minlength=len(self.read))
        return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
