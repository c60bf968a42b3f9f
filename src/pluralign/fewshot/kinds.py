"""A taste for questions that training groups answered and one for new ones: what is trusted how much differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pluralign.fewshot.answers import Question, Shares
from pluralign.fewshot.features import Points
from pluralign.fewshot.taste import Predicted, Reading, Taste, View

KNOWN, NEW = "known", "new"
KINDS = (KNOWN, NEW)


@dataclass(frozen=True)
class Tastes:
    """What is known of groups in general, by what is asked of it.

    Attributes:
        known: for questions that training groups answered.
        new: for others; perhaps the same.
    """

    known: Taste
    new: Taste

    def view(self, questions: Sequence[Question], points: Points) -> Views:
        """Questions as they look from here; see `Taste.view`."""
        new = self.new.view(questions, points)
        return Views(new if self.known is self.new else self.known.view(questions, points), new)


@dataclass(frozen=True)
class Views:
    """Questions with what is expected of their answers.

    Attributes:
        known, new: from either taste, of all questions.
    """

    known: View
    new: View

    @cached_property
    def answered(self) -> np.ndarray:
        """Bool `[questions]`, whether a training group answered it."""
        return np.asarray(~np.isnan(self.known.shares[self.known.points.starts[:-1]]))

    def kind(self, number: int) -> str:
        """`known` or `new`."""
        return KNOWN if self.answered[number] else NEW

    def of(self, kind: str) -> View:
        """The view for questions of a kind."""
        return self.known if kind == KNOWN else self.new

    def read(self, context: Mapping[int, Shares]) -> Readings:
        """What some answers say of the group; see `View.read`."""
        new = self.new.read(context)
        return Readings(self, new if self.known is self.new else self.known.read(context), new)


@dataclass(frozen=True)
class Readings:
    """A group as it looks from either taste.

    Attributes:
        views: of the questions.
        known, new: the posteriors.
    """

    views: Views
    known: Reading
    new: Reading

    def predict(self, targets: Sequence[int]) -> list[Predicted]:
        """The answers to other questions, each by itself.

        Args:
            targets: numbers of questions of the views.
        """
        return [one for number in targets for one in self._for(number).predict([number])]

    def shares(self, targets: Sequence[int]) -> list[Shares]:
        """The same without how sure it is."""
        return [one for number in targets for one in self._for(number).shares([number])]

    def _for(self, number: int) -> Reading:
        return self.known if self.views.answered[number] else self.new
