"""What a group will answer, in closed form: what others answered, how they differ together, and what options say.

An answer is a vector of log-shares, centred within its question. A new group's is taken as

    z(x) = m(x) + f(x) v + e,    v ~ N(0, I),    e ~ N(0, s(x)),

with m the mean over groups (of a question that nobody answered, what its options' vectors say), f(x) the features in
which groups differ (how the training groups deviate from the mean at x, in a few directions, and the options' vectors),
and e what is the group's own at x. Given some answers, v has a Gaussian posterior that takes one small linear solve.
The form is ours. The mean of the training groups and a ridge regression on the vectors are special cases of it, and so
is, but for its bounds, a mixture of the training groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pluralign.fewshot.answers import Question, Shares
from pluralign.fewshot.features import Points
from pluralign.fewshot.lifting import Lift

SMOOTHING = 0.01
"""Added to every share before its logarithm: what nobody said is rare, and not impossible."""


@dataclass(frozen=True)
class Scales:
    """What is chosen by how well training groups are predicted from others (`fitting.fit`); variances of log-shares.

    Attributes:
        mean_vectors: variance of the mean's weights on vectors.
        mean_own: variance of the part of the mean that is a question's own.
        together: weight of the directions in which the training groups differ.
        vectors: variance of a group's weights on vectors.
        own: variance of what is a group's own at a point.
        blend: share of the training groups' plain mean in a prediction, where there is one; in [0, 1].
    """

    mean_vectors: float = 3.0
    mean_own: float = 1.0
    together: float = 1.0
    vectors: float = 0.1
    own: float = 0.5
    blend: float = 0.3


Sharpness = Mapping[int, float]
"""Answers read -> the power that shares are raised to; between two of them over their logarithm."""


@dataclass(frozen=True)
class Known:
    """What the training groups say of a question that some of them answered, its options in the alphabet's order.

    Attributes:
        mean: float `[options]`, of log-shares.
        unsure: float `[options]`, variance of what is not known of the mean.
        directions: float `[options, k]`.
        shares: float `[options]`, mean over the groups that answered.
    """

    mean: np.ndarray
    unsure: np.ndarray
    directions: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True)
class Taste:
    """What is known of groups in general.

    Attributes:
        scales: as chosen.
        known: key of a question -> what is known of it.
        mean_weights: float `[d]`, from vectors to the mean.
        direction_weights: float `[d, k]`, from vectors to the directions.
        sharpness: of what is predicted; none leaves it as it is.
        lift: into the space that d counts the dimensions of; None leaves vectors as they come.
    """

    scales: Scales
    known: Mapping[str, Known]
    mean_weights: np.ndarray
    direction_weights: np.ndarray
    sharpness: Sharpness = field(default_factory=dict)
    lift: Lift | None = None

    def view(self, questions: Sequence[Question], points: Points) -> View:
        """Questions as they look from here.

        Args:
            questions: to be read or predicted; known ones and new ones.
            points: their options' vectors, of the dimensions that the training groups' had.
        """
        vectors = (self.lift(points) if self.lift else points).centred
        mean, directions = vectors @ self.mean_weights, vectors @ self.direction_weights
        unsure = np.full(len(vectors), self.scales.mean_own)
        shares = np.full(len(vectors), np.nan)
        for number, question in enumerate(questions):
            if (there := self.known.get(question.key)) is not None:
                part, ranks = points.slice(number), question.ranks
                mean[part], unsure[part] = there.mean[ranks], there.unsure[ranks]
                directions[part], shares[part] = there.directions[ranks], there.shares[ranks]
        scaled = [np.sqrt(self.scales.together) * directions, np.sqrt(self.scales.vectors) * vectors]
        features = np.concatenate(scaled, 1)
        return View(points, mean, self.scales.own + unsure, features, shares, self.scales.blend, self.sharpness)


@dataclass(frozen=True)
class View:
    """Questions with what is expected of their answers.

    Attributes:
        points: of the questions.
        mean: float `[points]`, m.
        spread: float `[points]`, s: variance of what is a group's own, and of what is not known of the mean.
        features: float `[points, k]`, f.
        shares: float `[points]`, mean of the training groups; NaN where there is none.
        blend: share of that mean in a prediction.
        sharpness: of a taste.
    """

    points: Points
    mean: np.ndarray
    spread: np.ndarray
    features: np.ndarray
    shares: np.ndarray
    blend: float
    sharpness: Sharpness = field(default_factory=dict)

    def read(self, context: Mapping[int, Shares]) -> Reading:
        """What some answers say of the group.

        Args:
            context: number of a question -> what the group answered; none leaves what is expected of anybody.
        """
        at = self.points.of(list(context))
        if not len(at):
            return Reading(self, np.zeros(self.features.shape[1]), np.zeros((0, self.features.shape[1])), 0)
        read = self.features[at]
        lower = np.linalg.cholesky(read @ read.T + np.diag(self.spread[at]))
        error = np.concatenate([log_shares(shares) for shares in context.values()]) - self.mean[at]
        whitened = np.linalg.solve(lower, np.concatenate([read, error[:, None]], 1))
        return Reading(self, whitened[:, :-1].T @ whitened[:, -1], whitened[:, :-1], len(context))


@dataclass(frozen=True)
class Predicted:
    """A predicted answer.

    Attributes:
        shares: float `[options]`, sums to 1.
        deviations: float `[options]`, standard deviations of the shares, before any calibration.
    """

    shares: Shares
    deviations: np.ndarray


@dataclass(frozen=True)
class Reading:
    """The posterior of a group's v.

    Attributes:
        view: of the questions.
        mean: float `[k]`.
        whitened: float `[n, k]`; the covariance is I less its square.
        read: answers that it was read from.
    """

    view: View
    mean: np.ndarray
    whitened: np.ndarray
    read: int

    def predict(self, targets: Sequence[int]) -> list[Predicted]:
        """The answers to other questions, each by itself.

        Args:
            targets: numbers of questions of the view.
        """
        return [Predicted(self._blended(number), self._deviations(number)) for number in targets]

    def shares(self, targets: Sequence[int]) -> list[Shares]:
        """The same without how sure it is."""
        return [self._blended(number) for number in targets]

    def _blended(self, number: int) -> Shares:
        shares, others = self._shares(number), self.view.shares[self.view.points.slice(number)]
        return shares if np.isnan(others[0]) else (1 - self.view.blend) * shares + self.view.blend * others

    def _shares(self, number: int) -> Shares:
        part = self.view.points.slice(number)
        return _softmax(self._power * (self.view.mean[part] + self.view.features[part] @ self.mean))

    @cached_property
    def _power(self) -> float:
        return power(self.view.sharpness, self.read)

    def slopes(self, number: int) -> np.ndarray:
        """How a question's shares move with its log-shares, `[options, options]`."""
        shares = self._shares(number)
        return np.asarray(self._power * (np.diag(shares) - np.outer(shares, shares)))

    def _deviations(self, number: int) -> np.ndarray:
        part, slope = self.view.points.slice(number), self.slopes(number)
        features = self.view.features[part]
        taken = features @ self.whitened.T
        among = features @ features.T - taken @ taken.T + np.diag(self.view.spread[part])
        # How shares move with log-shares, times how unsure the latter are (delta method).
        return np.asarray(np.sqrt(np.maximum(np.diag(slope @ among @ slope), 0.0)))


def power(sharpness: Sharpness, read: int) -> float:
    """What shares are raised to after so many answers; below the least number and above the largest it stays."""
    if not sharpness:
        return 1.0
    return float(np.interp(math.log(max(read, 1)), list(map(math.log, sharpness)), list(sharpness.values())))


def log_shares(shares: Shares) -> np.ndarray:
    """Centred logarithms of smoothed shares, `[options]`."""
    values = np.log(shares + SMOOTHING)
    return np.asarray(values - values.mean())


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())
