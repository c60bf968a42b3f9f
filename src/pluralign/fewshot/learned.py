"""What training groups say, put together: their mean, how they differ together, and what vectors say of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pluralign.fewshot.answers import Answers
from pluralign.fewshot.features import Points
from pluralign.fewshot.lifting import Lift
from pluralign.fewshot.taste import Known, Scales, Taste, log_shares

DIRECTIONS = 32
"""In which the training groups differ, at most."""
COMPARED = 256
"""Training groups whose deviations from the mean tell these directions, at most; the mean is that of all."""
FILLED = 128
"""Leading directions of the vectors from which a group's gaps are filled, at most."""
_SEED = 0


def taste(answers: Answers, points: Points, scales: Scales) -> Taste:
    """Put together what the training groups say.

    Args:
        answers: theirs.
        points: vectors of all questions of `answers`.
        scales: how much is taken from where.
    """
    return Learned.of(answers, points).taste(scales)


@dataclass(frozen=True)
class Expected:
    """What is expected of a new group at the points of some training groups' table.

    Attributes:
        mean: float `[points]`, m.
        unsure: float `[points]`, variance of what is not known of the mean.
        directions: float `[points, k]`, in which groups differ.
        mean_weights: float `[d]`, from vectors to the mean.
        direction_weights: float `[d, k]`, from vectors to the directions.
    """

    mean: np.ndarray
    unsure: np.ndarray
    directions: np.ndarray
    mean_weights: np.ndarray
    direction_weights: np.ndarray


@dataclass(frozen=True)
class _Group:
    """A training group: its points, products of the vectors' leading directions there, and its log-shares."""

    at: np.ndarray
    gram: np.ndarray
    logs: np.ndarray


@dataclass(frozen=True)
class Learned:
    """The training groups' table, prepared so that many scales can be tried on it.

    Attributes:
        answers: theirs.
        points: of all questions.
        counts: float `[points]`, groups that answered.
        logs: float `[points]`, mean log-shares; 0 where nobody answered.
        shares: float `[points]`, mean shares; NaN where nobody answered.
        length: mean square of the vectors' lengths.
        basis: float `[d, r]`, the vectors' leading directions where groups answered.
        reduced: float `[points, r]`, the vectors in them.
        lift: into the space of `points`; None where they are vectors as they came.
    """

    answers: Answers
    points: Points
    counts: np.ndarray
    logs: np.ndarray
    shares: np.ndarray
    length: float
    basis: np.ndarray
    reduced: np.ndarray
    _groups: Sequence[_Group]
    _products: Mapping[float, tuple[np.ndarray, np.ndarray]]
    lift: Lift | None = None

    @classmethod
    def lifted(cls, answers: Answers, points: Points) -> Learned:
        """Prepare a table with vectors in the space of those that were answered."""
        answered = sorted({number for _, number, _ in answers})
        lift = Lift.of(points.vectors[points.of(answered)])
        return replace(cls.of(answers, lift(points)), lift=lift)

    @classmethod
    def of(cls, answers: Answers, points: Points) -> Learned:
        """Prepare a table."""
        vectors, groups = points.centred, []
        counts, logs, sums = (np.zeros(points.starts[-1]) for _ in range(3))
        for own in answers.groups.values():
            at = points.of(list(own))
            said = np.concatenate([log_shares(shares) for shares in own.values()]) if own else np.zeros(0)
            counts[at] += 1
            logs[at] += said
            sums[at] += np.concatenate(list(own.values())) if own else 0.0
            groups.append((at, said))
        means = logs / np.maximum(counts, 1)
        products = {
            count: _summed(vectors, means, np.flatnonzero(counts == count)) for count in np.unique(counts[counts > 0])
        }
        basis = _basis(sum((gram for gram, _ in products.values()), np.zeros((vectors.shape[1],) * 2)))
        reduced = vectors @ basis
        some = np.random.default_rng(_SEED).permutation(len(groups))[:COMPARED]
        compared = [groups[place] for place in np.sort(some)]
        # Groups that answered the same questions share their products.
        grams = {at.tobytes(): at for at, _ in compared}
        made = {key: _products(reduced[at]) for key, at in grams.items()}
        owned = [_Group(at, made[at.tobytes()], said) for at, said in compared]
        shares = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        length = float(np.einsum("pd,pd->", vectors, vectors)) / max(len(vectors), 1)
        return cls(answers, points, counts, means, shares, length, basis, reduced, owned, products)

    def taste(self, scales: Scales) -> Taste:
        """What is known of groups in general at some scales."""
        here, known = self.expected(scales), {}
        for number, question in enumerate(self.answers.questions):
            part = self.points.slice(number)
            if self.counts[part.start]:
                # By the alphabet, in whatever order the options are asked for again.
                order = np.argsort(question.ranks)
                told = here.mean[part], here.unsure[part], here.directions[part], self.shares[part]
                known[question.key] = Known(*(values[order] for values in told))
        return Taste(scales, known, here.mean_weights, here.direction_weights, lift=self.lift)

    def expected(self, scales: Scales) -> Expected:
        """The same at the table's own points."""
        vectors, weights = self.points.centred, self._mean_weights(scales)
        among = self._among(scales) / np.maximum(self.counts, 1)
        share = np.where(self.counts > 0, scales.mean_own / (scales.mean_own + among), 0.0)
        guess = vectors @ weights
        mean = guess + share * (self.logs - guess)
        deviations, own_weights = self._deviations(mean, scales)
        turn = _leading(deviations[self.counts > 0])
        directions = self.basis @ (own_weights @ turn)
        return Expected(mean, scales.mean_own * (1 - share), deviations @ turn, weights, directions)

    def _among(self, scales: Scales) -> float:
        """Variance of one group around the mean of all, at a point."""
        return scales.own + scales.vectors * self.length

    def _mean_weights(self, scales: Scales) -> np.ndarray:
        """Ridge regression of the mean on the vectors; the mean of fewer groups counts less."""
        dimensions = self.points.vectors.shape[1]
        left, right = np.eye(dimensions) / scales.mean_vectors, np.zeros(dimensions)
        for count, (gram, product) in self._products.items():
            noise = scales.mean_own + self._among(scales) / count
            left, right = left + gram / noise, right + product / noise
        return np.asarray(np.linalg.solve(left, right))

    def _deviations(self, mean: np.ndarray, scales: Scales) -> tuple[np.ndarray, np.ndarray]:
        """How each training group deviates from the mean, `[points, groups]`, and by its vectors, `[r, groups]`.

        Where a group did not answer, its deviation is what its other answers and the vectors say.
        """
        # The mean holds the group's own answer, too: less of it is left the fewer others there are.
        apart = 1 - scales.mean_own / (scales.mean_own * self.counts + scales.own)
        apart = np.where(self.counts > 1, np.maximum(apart, _LEAST_APART), 1.0)
        weights, errors = np.zeros((self.reduced.shape[1], len(self._groups))), []
        for place, group in enumerate(self._groups):
            errors.append((group.logs - mean[group.at]) / apart[group.at])
            weights[:, place] = _ridge(self.reduced[group.at], group.gram, errors[-1], scales.own / scales.vectors)
        columns = self.reduced @ weights
        for place, (group, error) in enumerate(zip(self._groups, errors, strict=True)):
            columns[group.at, place] = error
        return columns, weights


_LEAST_APART = 0.2


def _leading(columns: np.ndarray) -> np.ndarray:
    """From columns to their leading directions, `[groups, k]`; the directions' squares add up to the columns' mean."""
    points, groups = columns.shape
    # By the smaller of the two products, so that many groups cost what they add.
    values, turns = np.linalg.eigh(columns.T @ columns if groups <= points else columns @ columns.T)
    kept = [place for place in np.argsort(-values)[:DIRECTIONS] if values[place] > _NOTHING]
    turns = turns[:, kept] if groups <= points else columns.T @ (turns[:, kept] / np.sqrt(values[kept]))
    return np.asarray(turns / np.sqrt(max(groups, 1)))


_NOTHING = 1e-12


def _summed(vectors: np.ndarray, means: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Products of some rows with themselves, `[d, d]`, and with their means, `[d]`."""
    gram, product = np.zeros((vectors.shape[1],) * 2), np.zeros(vectors.shape[1])
    # In blocks: there may be as many rows as memory just holds.
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        own = vectors[some]
        gram += own.T @ own
        product += own.T @ means[some]
    return gram, product


_BLOCK = 4096


def _basis(gram: np.ndarray) -> np.ndarray:
    """Leading directions of vectors, `[d, r]`, from their products `[d, d]`."""
    if len(gram) <= FILLED:
        return np.eye(len(gram))
    return np.asarray(np.linalg.eigh(gram)[1][:, -FILLED:])


def _products(read: np.ndarray) -> np.ndarray:
    """Of the vectors with each other, by rows or by columns, whichever are fewer."""
    return np.asarray(read @ read.T if len(read) < read.shape[1] else read.T @ read)


def _ridge(read: np.ndarray, gram: np.ndarray, said: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of the ridge regression, `[d]`, by the smaller of its two systems of equations (`_products`)."""
    penalised = gram + penalty * np.eye(len(gram))
    if len(read) < read.shape[1]:
        return np.asarray(read.T @ np.linalg.solve(penalised, said))
    return np.asarray(np.linalg.solve(penalised, read.T @ said))
