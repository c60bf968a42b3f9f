"""Vectors in a space where what is linear holds products of three of their directions: what an option says in the light
of what is asked.

A ridge regression on it is one with the kernel ((1 + cos) / 2) ^ 3, from landmarks (Williams and Seeger 2000, "Using
the Nystroem method to speed up kernel machines").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from pluralign.fewshot.features import Points

MARKS = 1000
"""Landmarks, at most: so many dimensions the space has."""
POWER = 3
"""Of the kernel; chosen, as `fitting.LIFTED` was, on splits that are not reported (docs/methods/gpo.md)."""
_SEED = 0
_BLOCK = 512
_LEAST = 1e-6


@dataclass(frozen=True)
class Lift:
    """The way from vectors into the space.

    Attributes:
        middle: float `[d]`, mean of the vectors that it was made of.
        marks: float `[m, d]`, landmarks less the middle, of length 1.
        weights: float `[m, r]`, from products with landmarks to coordinates.
    """

    middle: np.ndarray
    marks: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray) -> Lift:
        """The space of some vectors.

        Args:
            vectors: float `[n, d]`, of options that were answered.
        """
        middle = vectors.mean(0) if len(vectors) else np.zeros(vectors.shape[1])
        order = np.random.default_rng(_SEED).permutation(len(vectors))[:MARKS]
        marks = _directions(vectors[np.sort(order)] - middle)
        values, turns = np.linalg.eigh(_kernel(marks, marks))
        kept = values > _LEAST * values.max(initial=0.0)
        return cls(middle, marks, turns[:, kept] / np.sqrt(values[kept]))

    def __call__(self, points: Points) -> Points:
        """Options in the space, float `[points, r]`, less the mean of their question."""
        found = self.coordinates(points.vectors)
        sizes = np.diff(points.starts)
        found -= np.repeat(np.add.reduceat(found, points.starts[:-1], axis=0) / sizes[:, None], sizes, axis=0)
        return Points(found, points.starts, even=True)

    def coordinates(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors in the space, float `[n, r]`.

        Args:
            vectors: float `[n, d]`.
        """
        found = np.empty((len(vectors), self.weights.shape[1]))
        # In blocks: products with all landmarks are many times the vectors, and slow where they leave the cache.
        for start in range(0, len(found), _BLOCK):
            block = _directions(vectors[start : start + _BLOCK] - self.middle)
            found[start : start + _BLOCK] = _kernel(block, self.marks) @ self.weights
        return found


def _directions(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))


def _kernel(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    half = (1 + some @ others.T) / 2
    # By products: the power of an array is several times slower, and most of a fit on many answers is here.
    return np.asarray(reduce(np.multiply, [half] * POWER))
