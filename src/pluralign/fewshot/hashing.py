"""Options without any model: hashed words and pairs of words, alone and together with those of the question.

Together, every word of the question stands with every word of the option, and there are as many such texts as the
product of their numbers. None is made: the checksum of two texts, one after the other, follows from theirs (CRC-32 is
linear), crc(ab) = crc(a) taken over the length of b, xor crc(b).
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence

import numpy as np

from pluralign.fewshot.answers import Question
from pluralign.fewshot.features import Points, points
from pluralign.progress import progress_bar

HASHED = 512
"""Dimensions of hashed n-grams."""
_STEPS = np.array([zlib.crc32(bytes([byte ^ 0xFF])) ^ 0xFF000000 for byte in range(256)], np.uint32)
"""The checksum's own table: what its last byte becomes where one more byte follows."""
_AT_ONCE = 1 << 20
"""Pairs of words that are looked at together, at most."""


def hashed(questions: Sequence[Question], dimensions: int = HASHED) -> Points:
    """Hashed words and pairs of words: each adds 1 or -1 at a place, both by its checksum.

    Two options are alike that say alike things, the more so where their questions are alike.

    Args:
        questions: any number.
        dimensions: of a vector, at least 2.

    Returns:
        Vectors of length 1, before centring.
    """
    rows = []
    with progress_bar() as bar:
        task = bar.add_task("hashing words", total=len(questions))
        for question in questions:
            asked = sorted(set(_grams(question.text)))
            said = [
                [gram.encode() for gram in (*_grams(option), *_places(place, len(question.options)))]
                for place, option in enumerate(question.options)
            ]
            heads = [b"", *(f"{gram} | ".encode() for gram in asked)]
            weights = np.array([1.0, *[len(asked) ** -0.5 for _ in asked]])
            found = _sums(heads, weights, said, dimensions)
            rows.append(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))
            bar.advance(task)
    return points(questions, np.concatenate(rows) if rows else np.zeros((0, dimensions)))


def _grams(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))]


def _places(place: int, options: int) -> list[str]:
    """Options of a scale are alike by where they stand."""
    return [f"<{place} of {options}>", f"<{round(4 * place / (options - 1))} of 4>"]


def _sums(heads: Sequence[bytes], weights: np.ndarray, tails: Sequence[Sequence[bytes]], dimensions: int) -> np.ndarray:
    """Float `[options, dimensions]`, what every head with every tail of an option behind it adds.

    Args:
        heads: at least one.
        weights: float `[heads]`, what to add or take away.
        tails: of each option, at least one.
        dimensions: of a vector.
    """
    ends = _checksums([tail for own in tails for tail in own])
    lengths = np.array([len(tail) for own in tails for tail in own])
    firsts = np.repeat(np.arange(len(tails)) * dimensions, [len(own) for own in tails])
    sizes, which = np.unique(lengths, return_inverse=True)
    over = _taken_over(_checksums(heads), sizes)
    found, most = np.zeros(len(tails) * dimensions), max(_AT_ONCE // len(heads), 1)
    for part in (slice(first, first + most) for first in range(0, len(ends), most)):
        both = over[which[part]] ^ ends[part, None]
        places, signs = both % dimensions + firsts[part, None], np.where(both >> 31, weights, -weights)
        found += np.bincount(places.ravel(), signs.ravel(), len(found))
    return found.reshape(len(tails), dimensions)


def _taken_over(checksums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Uint32 `[sizes, checksums]`, checksums taken over so many bytes; sizes in increasing order."""
    found = np.empty((len(sizes), len(checksums)), np.uint32)
    for row, more in enumerate(np.diff(sizes, prepend=0)):
        if more > len(checksums):
            # Few texts, many bytes: the checksum of so many zeros behind each.
            zeros = bytes(more)
            after = (zlib.crc32(zeros, one) for one in checksums.tolist())
            checksums = np.fromiter(after, np.uint32, len(checksums)) ^ np.uint32(zlib.crc32(zeros))
        else:
            for _ in range(more):
                checksums = _STEPS[checksums & 0xFF] ^ (checksums >> 8)
        found[row] = checksums
    return found


def _checksums(texts: Sequence[bytes]) -> np.ndarray:
    return np.fromiter(map(zlib.crc32, texts), np.uint32, len(texts))
