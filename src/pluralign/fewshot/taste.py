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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pluralign.fewshot.answers import Answers, Question, Shares
from pluralign.fewshot.features import Points

SMOOTHING = 0.01
"""Added to every share before its logarithm: what nobody said is rare, and not impossible."""
DIRECTIONS = 32
"""In which the training groups differ, at most."""


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


@dataclass(frozen=True)
class Known:
    """What the training groups say of a question that some of them answered.

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
    """

    scales: Scales
    known: Mapping[str, Known]
    mean_weights: np.ndarray
    direction_weights: np.ndarray

    def view(self, questions: Sequence[Question], points: Points) -> View:
        """Questions as they look from here.

        Args:
            questions: to be read or predicted; known ones and new ones.
            points: their options' vectors, of the dimensions that the training groups' had.
        """
        vectors = points.centred
        mean, directions = vectors @ self.mean_weights, vectors @ self.direction_weights
        unsure = np.full(len(vectors), self.scales.mean_own)
        shares = np.full(len(vectors), np.nan)
        for number, question in enumerate(questions):
            if (there := self.known.get(question.key)) is not None:
                part = points.slice(number)
                mean[part], unsure[part] = there.mean, there.unsure
                directions[part], shares[part] = there.directions, there.shares
        scaled = [np.sqrt(self.scales.together) * directions, np.sqrt(self.scales.vectors) * vectors]
        features = np.concatenate(scaled, 1)
        return View(points, mean, self.scales.own + unsure, features, shares, self.scales.blend)


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
    """

    points: Points
    mean: np.ndarray
    spread: np.ndarray
    features: np.ndarray
    shares: np.ndarray
    blend: float

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
        return _softmax(self.view.mean[part] + self.view.features[part] @ self.mean)

    def _deviations(self, number: int) -> np.ndarray:
        part, shares = self.view.points.slice(number), self._shares(number)
        features = self.view.features[part]
        taken = features @ self.whitened.T
        among = features @ features.T - taken @ taken.T + np.diag(self.view.spread[part])
        # How shares move with log-shares, times how unsure the latter are (delta method).
        slope = np.diag(shares) - np.outer(shares, shares)
        return np.asarray(np.sqrt(np.maximum(np.diag(slope @ among @ slope), 0.0)))


def log_shares(shares: Shares) -> np.ndarray:
    """Centred logarithms of smoothed shares, `[options]`."""
    values = np.log(shares + SMOOTHING)
    return np.asarray(values - values.mean())


def taste(answers: Answers, points: Points, scales: Scales) -> Taste:
    """Put together what the training groups say.

    Args:
        answers: theirs.
        points: vectors of all questions of `answers`.
        scales: how much is taken from where.
    """
    vectors = points.centred
    table = _Totals.of(answers, points)
    weights = _mean_weights(vectors, table, scales)
    mean, unsure = _mean(vectors, table, weights, scales)
    deviations, own_weights = _deviations(answers, points, vectors, mean, table.counts, scales)
    turn = _leading(deviations)
    directions = deviations @ turn
    known = {}
    for number, question in enumerate(answers.questions):
        part = points.slice(number)
        if table.counts[part.start]:
            shares = table.shares[part] / table.counts[part]
            known[question.key] = Known(mean[part], unsure[part], directions[part], shares)
    return Taste(scales, known, weights, own_weights @ turn)


@dataclass(frozen=True)
class _Totals:
    """Sums over groups, `[points]` each."""

    counts: np.ndarray
    logs: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, answers: Answers, points: Points) -> _Totals:
        counts, logs, sums = (np.zeros(points.starts[-1]) for _ in range(3))
        for _, number, shares in answers:
            part = points.slice(number)
            counts[part] += 1
            logs[part] += log_shares(shares)
            sums[part] += shares
        return cls(counts, logs, sums)

    @property
    def means(self) -> np.ndarray:
        """Of the log-shares; 0 where nobody answered."""
        return np.asarray(self.logs / np.maximum(self.counts, 1))


def _among(vectors: np.ndarray, table: _Totals, scales: Scales) -> np.ndarray:
    """Variance of the mean of so many groups around that of all, `[points]`."""
    return np.asarray((scales.own + scales.vectors * (vectors**2).sum(1)) / np.maximum(table.counts, 1))


def _mean_weights(vectors: np.ndarray, table: _Totals, scales: Scales) -> np.ndarray:
    there = table.counts > 0
    noise = np.sqrt(scales.mean_own + _among(vectors, table, scales)[there])
    return _ridge(vectors[there] / noise[:, None], table.means[there] / noise, 1 / scales.mean_vectors)


def _mean(vectors: np.ndarray, table: _Totals, weights: np.ndarray, scales: Scales) -> tuple[np.ndarray, np.ndarray]:
    """The mean over groups, between what vectors say and what was answered, and its variance, `[points]` each."""
    guess, among = vectors @ weights, _among(vectors, table, scales)
    share = np.where(table.counts > 0, scales.mean_own / (scales.mean_own + among), 0.0)
    return guess + share * (table.means - guess), scales.mean_own * (1 - share)


def _deviations(
    answers: Answers,
    points: Points,
    vectors: np.ndarray,
    mean: np.ndarray,
    counts: np.ndarray,
    scales: Scales,
) -> tuple[np.ndarray, np.ndarray]:
    """How each training group deviates from the mean, `[points, groups]`, and by its vectors, `[d, groups]`.

    Where a group did not answer, its deviation is what its other answers and the vectors say.
    """
    columns, weights = [], []
    for own in answers.groups.values():
        at = points.of(list(own))
        error = np.concatenate([log_shares(shares) for shares in own.values()]) - mean[at]
        # The mean holds the group's own answer, too: less of it is left the fewer others there are.
        apart = 1 - scales.mean_own / (scales.mean_own * counts[at] + scales.own)
        error = np.where(counts[at] > 1, error / np.maximum(apart, _LEAST_APART), error)
        weights.append(_ridge(vectors[at], error, scales.own / scales.vectors))
        column = vectors @ weights[-1]
        column[at] = error
        columns.append(column)
    if not columns:
        return np.zeros((len(mean), 0)), np.zeros((vectors.shape[1], 0))
    return np.stack(columns, 1), np.stack(weights, 1)


_LEAST_APART = 0.2


def _leading(columns: np.ndarray) -> np.ndarray:
    """From columns to their leading directions, `[groups, k]`; the directions' squares add up to the columns' mean."""
    groups = columns.shape[1]
    values, turns = np.linalg.eigh(columns.T @ columns)
    kept = [place for place in np.argsort(-values)[:DIRECTIONS] if values[place] > _NOTHING]
    return np.asarray(turns[:, kept] / np.sqrt(max(groups, 1)))


_NOTHING = 1e-12


def _ridge(read: np.ndarray, said: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of the ridge regression, `[d]`, by the smaller of its two systems of equations."""
    rows, columns = read.shape
    if rows < columns:
        return np.asarray(read.T @ np.linalg.solve(read @ read.T + penalty * np.eye(rows), said))
    return np.asarray(np.linalg.solve(read.T @ read + penalty * np.eye(columns), read.T @ said))


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())
