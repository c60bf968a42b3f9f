"""A function of one's own as an annotator, and the judge of the embedded world."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pluralign.annotators.protocol import AnnotatorError, Request, Verdict
from pluralign.errors import InputError
from pluralign.world import World
from pluralign.world.judging import Judgement


@dataclass(frozen=True)
class FunctionAnnotator:
    """A function: list of requests -> list of verdicts.

    Attributes:
        name: what errors call it.
        function: may raise anything.
    """

    name: str
    function: Callable[[list[Request]], list[Verdict]]

    @classmethod
    def of_path(cls, path: str) -> FunctionAnnotator:
        """From an import path, `package.module:function`.

        Raises:
            InputError: there is no such function.
        """
        module, _, name = path.partition(":")
        fix = "It is 'package.module:function' on the Python path."
        try:
            function = getattr(importlib.import_module(module), name)
        # A path without a module is a ValueError; a module of the user's own may not even be Python.
        except (ImportError, AttributeError, ValueError, SyntaxError) as error:
            raise InputError(f"annotator.function {path!r} cannot be imported ({error})", fix=fix) from None
        if not callable(function):
            raise InputError(f"annotator.function {path!r} is a {type(function).__name__}, not a function", fix=fix)
        return cls(path, function)

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """What the function says.

        Raises:
            AnnotatorError: it raised.
        """
        try:
            return self.function(list(requests))
        except Exception as error:
            kind = type(error).__name__
            raise AnnotatorError(self.name, f"it raised {kind} ({error})", fix="The traceback is above.") from error


@dataclass(frozen=True)
class WorldJudge:
    """The truth about answers on the embedded world: the person's style first, the fact second, language before both.

    Attributes:
        world: whose people are asked for.
    """

    world: World

    @property
    def name(self) -> str:
        """What errors call it."""
        return "world"

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        """Scores from 0 (no language) to 4 (the wanted style and the right fact, or none asked for).

        Raises:
            AnnotatorError: the world has no such person.
        """
        return [self._verdict(request) for request in requests]

    def _verdict(self, request: Request) -> Verdict:
        try:
            judged = [self.world.judge(request.prompt, text, request.user) for text in request.responses]
        except InputError as error:
            raise AnnotatorError(self.name, str(error), row=request.row) from None
        scores = tuple(map(_score, judged))
        return Verdict(scores=scores, tie=len(set(scores)) == 1)


def _score(judged: Judgement) -> float:
    if judged.degenerate:
        return 0.0
    return 1.0 + 2.0 * judged.style + (judged.right is not False)
