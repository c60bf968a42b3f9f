"""What any few-shot predictor has to beat: uniform answers, the training groups' mean, their nearest and their best
mixture, and a ridge regression of the group's own answers on the options' vectors.

Each takes what a group answered (its context) and gives shares for other questions; None where it has nothing to say.
The mean, the nearest group and the mixture know only questions that some training group answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pluralign.fewshot.answers import Answers, Shares
from pluralign.fewshot.features import Points

Context = Mapping[int, Shares]
"""Number of a question -> what the group answered."""


def uniform(points: Points, targets: Sequence[int]) -> list[Shares]:
    """The same share for every option."""
    sizes = np.diff(points.starts)
    return [np.full(sizes[number], 1 / sizes[number]) for number in targets]


@dataclass(frozen=True)
class TrainingGroups:
    """The answers of the training groups as a table with gaps.

    Attributes:
        answers: theirs.
        points: of all questions.
        shares: float `[groups, points]`, NaN where a group did not answer.
    """

    answers: Answers
    points: Points
    shares: np.ndarray

    @classmethod
    def of(cls, answers: Answers, points: Points) -> TrainingGroups:
        """The table of some answers."""
        table = np.full((len(answers.groups), points.starts[-1]), np.nan)
        for row, own in zip(table, answers.groups.values(), strict=True):
            for number, shares in own.items():
                row[points.starts[number] : points.starts[number + 1]] = shares
        return cls(answers, points, table)

    def mean(self, targets: Sequence[int]) -> list[Shares | None]:
        """The mean of those who answered, one group one voice."""
        return [self._weighed(number, np.ones(len(self.shares))) for number in targets]

    def spread(self, targets: Sequence[int], level: float) -> list[np.ndarray | None]:
        """How far answers are from the mean, `[options]` each: standard deviations, times what holds a share of them.

        The variance over a few groups is drawn towards that of all points, which counts as one group more. Each group's
        answer is held against the mean and the variance of the others; all questions count alike.

        Args:
            targets: numbers of questions.
            level: that share.
        """
        ratios, weights = self._ratios
        factor = float(np.quantile(ratios, level, weights=weights, method="inverted_cdf")) if len(ratios) else 1.0
        total = _Moments.of(self.shares)
        widths = factor * np.sqrt(total.variances(self._pooled))
        parts = [slice(self.points.starts[number], self.points.starts[number + 1]) for number in targets]
        return [widths[part] if total.counts[part.start] else None for part in parts]

    @cached_property
    def _pooled(self) -> float:
        """Mean variance of a point over the groups that answered."""
        total = _Moments.of(self.shares)
        several = total.counts > 1
        return float((total.around[several] / (total.counts[several] - 1)).mean()) if several.any() else _UNKNOWN

    @cached_property
    def _ratios(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all answers that others gave, too: how far from their mean, in their standard deviations; and weights."""
        total, alike = _Moments.of(self.shares), 1 / np.diff(self.points.starts)[self.points.questions]
        found, weights = [np.zeros(0)], [np.zeros(0)]
        for own in self.shares:
            there = ~np.isnan(own) & (total.counts > 1)
            others = total.without(own, there)
            found.append(np.abs(own[there] - others.means) / np.sqrt(others.variances(self._pooled)))
            weights.append(alike[there])
        return np.concatenate(found), np.concatenate(weights)

    def nearest(self, context: Context, targets: Sequence[int]) -> list[Shares | None]:
        """The answer of the group whose answers to the context are nearest, of those who answered.

        Near is a small mean absolute difference of shares over the context's questions that both answered; groups with
        none in common come last, in their order.
        """
        gaps = self._gaps(context)
        order = np.argsort(np.where(np.isnan(gaps), np.inf, gaps), kind="stable")
        found: list[Shares | None] = []
        for number in targets:
            part = self._part(number)
            there = order[~np.isnan(part[order, 0])]
            found.append(part[there[0]] if len(there) else None)
        return found

    def mixture(self, context: Context, targets: Sequence[int], *, steps: int = 500) -> list[Shares | None]:
        """The convex mixture of the groups that is nearest to the context by squared differences.

        What a group did not answer is taken to be the mean; for a target the weights are those of who answered it.

        Args:
            context: the group's answers.
            targets: numbers of questions.
            steps: of the fit.
        """
        weights = np.full(len(self.shares), 1 / max(len(self.shares), 1))
        at = self.points.of(list(context))
        means = _column_means(self.shares[:, at])
        seen = ~np.isnan(means)
        if seen.any():
            read = np.where(np.isnan(self.shares[:, at]), means, self.shares[:, at])[:, seen]
            said = np.concatenate(list(context.values()))[seen]
            weights = _convex(read, said, steps)
        return [self._weighed(number, weights) for number in targets]

    def _part(self, number: int) -> np.ndarray:
        return self.shares[:, self.points.starts[number] : self.points.starts[number + 1]]

    def _weighed(self, number: int, weights: np.ndarray) -> Shares | None:
        part = self._part(number)
        there = ~np.isnan(part[:, 0])
        if not there.any():
            return None
        # Groups without any weight still have the mean to offer.
        own = weights[there] if weights[there].sum() > 0 else np.ones(int(there.sum()))
        return np.asarray(own @ part[there] / own.sum())

    def _gaps(self, context: Context) -> np.ndarray:
        at = self.points.of(list(context))
        if not len(at):
            return np.full(len(self.shares), np.nan)
        apart = np.abs(self.shares[:, at] - np.concatenate(list(context.values())))
        counts = (~np.isnan(apart)).sum(1)
        return np.where(counts > 0, np.nansum(apart, 1) / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class _Moments:
    """Of shares over groups, `[points]` each: how many, sums, and sums of squares."""

    counts: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray) -> _Moments:
        return cls((~np.isnan(table)).sum(0), np.nansum(table, 0), np.nansum(table**2, 0))

    def without(self, own: np.ndarray, there: np.ndarray) -> _Moments:
        """Of all groups but one, at some points."""
        own = own[there]
        return _Moments(self.counts[there] - 1, self.sums[there] - own, self.squares[there] - own**2)

    @property
    def means(self) -> np.ndarray:
        return np.asarray(self.sums / np.maximum(self.counts, 1))

    @property
    def around(self) -> np.ndarray:
        """Sums of squares around the mean."""
        return np.asarray(np.maximum(self.squares - self.counts * self.means**2, 0.0))

    def variances(self, pooled: float) -> np.ndarray:
        """With one group more, whose variance is the pooled one."""
        return np.asarray(np.maximum((self.around + pooled) / np.maximum(self.counts, 1), _TINY))


_TINY, _UNKNOWN = 1e-6, 0.25
"""The least variance, and the one where no two groups answered the same question."""


def ridge(context: Context, points: Points, targets: Sequence[int], *, penalty: float = 1.0) -> list[Shares]:
    """The group's own answers as a linear function of the options' vectors, less what an even answer has.

    Args:
        context: the group's answers.
        points: of all questions.
        targets: numbers of questions.
        penalty: of the squared weights.

    Returns:
        Shares, cut at 0 and scaled to sum to 1.
    """
    vectors = points.centred
    at = points.of(list(context))
    weights = np.zeros(vectors.shape[1])
    if len(at):
        read = vectors[at]
        said = np.concatenate([shares - 1 / len(shares) for shares in context.values()])
        # As many equations as answers, and not as dimensions.
        weights = read.T @ np.linalg.solve(read @ read.T + penalty * np.eye(len(at)), said)
    found = []
    for number in targets:
        part = vectors[points.starts[number] : points.starts[number + 1]]
        values = np.maximum(part @ weights + 1 / len(part), 0.0)
        found.append(values / values.sum())
    return found


def _column_means(table: np.ndarray) -> np.ndarray:
    counts = (~np.isnan(table)).sum(0)
    return np.where(counts > 0, np.nansum(table, 0) / np.maximum(counts, 1), np.nan)


def _convex(read: np.ndarray, said: np.ndarray, steps: int) -> np.ndarray:
    """Weights on the simplex that come nearest, `[groups]`; `read` is `[groups, n]` and `said` `[n]`.

    Accelerated projected gradients (Beck and Teboulle 2009).
    """
    few = len(read) <= read.shape[1]
    # By the smaller of the two products: many groups are never multiplied with each other.
    gram = read @ read.T if few else read.T @ read
    rate = 1 / max(float(np.linalg.eigvalsh(gram)[-1]), 1e-12)
    target = read @ said
    weights = ahead = np.full(len(read), 1 / len(read))
    pace = 1.0
    for _ in range(steps):
        slope = (gram @ ahead if few else read @ (ahead @ read)) - target
        before, weights = weights, _on_simplex(ahead - rate * slope)
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead = weights + (pace - 1) / faster * (weights - before)
        pace = faster
    return weights


def _on_simplex(values: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex."""
    ordered = np.sort(values)[::-1]
    sums = np.cumsum(ordered) - 1
    kept = int(np.nonzero(ordered * np.arange(1, len(values) + 1) > sums)[0][-1])
    return np.asarray(np.maximum(values - sums[kept] / (kept + 1), 0.0))
