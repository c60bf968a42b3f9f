"""Hashed words and pairs of words, against their definition."""

from __future__ import annotations

import itertools
import re
import zlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pluralign.fewshot import hashing
from pluralign.fewshot.answers import Question
from pluralign.fewshot.hashing import hashed


def plainly(question: Question, dimensions: int) -> np.ndarray:
    """Hashed options by the definition: every text is made, and its checksum taken."""

    def grams(text: str) -> list[str]:
        words = re.findall(r"\w+", text.lower())
        return [*words, *map(" ".join, itertools.pairwise(words))]

    asked, last = sorted(set(grams(question.text))), len(question.options) - 1
    found = np.zeros((last + 1, dimensions))
    for place, option in enumerate(question.options):
        said = [*grams(option), f"<{place} of {last + 1}>", f"<{round(4 * place / last)} of 4>"]
        both = [(f"{word} | {part}", len(asked) ** -0.5) for word in asked for part in said]
        for text, weight in [*((part, 1.0) for part in said), *both]:
            checksum = zlib.crc32(text.encode())
            found[place, checksum % dimensions] += weight if checksum >> 31 else -weight
    return found


TEXTS = st.text(st.sampled_from("ab cÜ漢 .'_9\ud800"), max_size=30) | st.text(st.sampled_from("aÜ"), min_size=50)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=4), st.sampled_from([2, 7, 512]), st.sampled_from([3, 1 << 20]))
def test_hashed_options_are_those_of_the_definition(
    text: str, options: list[str], dimensions: int, at_once: int
) -> None:
    question = Question(text, tuple(options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_AT_ONCE", at_once)
        found = hashed([question, question], dimensions).vectors
    expected = plainly(question, dimensions)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    # What cancels has no direction.
    assume(lengths.min() > 1e-6)
    np.testing.assert_allclose(found, np.tile(expected / lengths, (2, 1)), atol=1e-9)
