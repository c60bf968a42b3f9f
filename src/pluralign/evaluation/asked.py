"""What everybody is asked beside held-out pairs: probes, survey questions, tasks of lm-eval."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pluralign.config import EvaluationConfig
from pluralign.errors import InputError
from pluralign.evaluation.distribution import Opinions, load_opinions
from pluralign.evaluation.knowledge import Knowledge, check_knowledge, prepared
from pluralign.evaluation.people import Person
from pluralign.evaluation.policies import Policies
from pluralign.evaluation.probes import ProbeSet
from pluralign.evaluation.retention import BASE, OWN, ProbeBook, ProbeQuestion
from pluralign.fewshot.answers import Answers
from pluralign.models.anchoring import Anchored
from pluralign.models.base import Base
from pluralign.models.encoding import Encoded, Encoder
from pluralign.models.scoring import Request

SHOWN_PROBLEMS = 10

BaseLogps = Callable[[Sequence[Encoded]], list[dict[str, float]]]
"""Log-probs under the base, by branch."""


@dataclass
class Asked:
    """Questions in tokens, and tasks, with what the base says to them.

    Attributes:
        book: the probes.
        opinions: survey questions; None without any.
        knowledge: tasks of lm-eval; None without any.
    """

    book: ProbeBook
    opinions: Opinions | None
    knowledge: Knowledge | None

    @classmethod
    def of(
        cls,
        base: Base,
        encoder: Encoder,
        settings: EvaluationConfig,
        sets: Sequence[ProbeSet],
        answers: Answers | None,
        held_out: Sequence[Anchored],
    ) -> Asked:
        """Lay all questions out as training prompts are; the base answers the tasks.

        Raises:
            InputError: a question or task cannot be put to the model.
        """
        messages = encoder.chat_template == "always" or any(
            not isinstance(row.preference.prompt, str) for row in held_out
        )
        # Without limits of its own: half a question has no answer, so one that does not fit is left out and counted.
        whole = Encoder(
            base.tokenizer,
            max_prompt_length=sys.maxsize,
            max_response_length=sys.maxsize,
            context_length=None,
            chat_template=encoder.chat_template,
        )
        room = encoder.context_length
        book = ProbeBook(sets, base.tokenizer, whole.prompts_ids, messages, room)
        opinions = None if answers is None else Opinions.of(answers, whole, messages=messages, room=room)
        return cls(book, opinions, prepared(settings.knowledge, base))

    def check(self, people: Mapping[str, Person]) -> None:
        """Raise an `InputError` where the survey answers are nobody's of these people."""
        if self.opinions:
            self.opinions.check(people)

    def probes(self, person: Person) -> dict[str, list[ProbeQuestion]]:
        """The probes as they are put to a person's policy, behind each prefix."""
        return {BASE: self.book.behind_base(), OWN: self.book.behind_own(person.manner)}

    def requests(self, person: Person) -> list[Request]:
        """What a person's policy has to score."""
        found = [request for part in self.probes(person).values() for one in part for request in one.requests]
        return found + (self.opinions.asked(person) if self.opinions else [])

    def base_scores(self, people: Sequence[Person], logps: BaseLogps) -> dict[Request, float]:
        """Log-prob under the base of everything that these people's policies have to score."""
        # People of one manner share the very list.
        parts = {id(part): part for person in people for part in self.probes(person).values()}
        requests = dict.fromkeys(request for part in parts.values() for one in part for request in one.requests)
        if self.opinions:
            requests |= dict.fromkeys(request for person in people for request in self.opinions.asked(person))
        options: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for prompt, option in requests:
            options.setdefault(prompt, []).append(option)
        rows = [
            Encoded(list(prompt), {f"o{number}": list(option) for number, option in enumerate(some)})
            for prompt, some in options.items()
        ]
        found = logps(rows) if rows else []
        return {
            (prompt, option): own[f"o{number}"]
            for (prompt, some), own in zip(options.items(), found, strict=True)
            for number, option in enumerate(some)
        }

    def distribution(self, person: Person, scores: Any, base: Any) -> dict[str, Any] | None:
        """The `distribution` of one person; None where nobody is asked for opinions."""
        return self.opinions.results(person, scores, base) if self.opinions else None

    def told(self, policies: Policies, number: int) -> dict[str, Any] | None:
        """The `knowledge` of the people of one policy; None without tasks."""
        return self.knowledge.of(policies, number) if self.knowledge else None

    def facts(self) -> dict[str, Any]:
        """The part of `base` in `evaluation.json` that says what was asked."""
        return {
            "probes": [
                {
                    "source": found.name,
                    "used": len(found.probes),
                    "available": found.available,
                    "too_long": sum(place.startswith(f"{found.name}: ") for place in self.book.too_long),
                    "problems": len(found.problems),
                    "first_problems": [str(problem) for problem in found.problems[:SHOWN_PROBLEMS]],
                }
                for found in self.book.sets
            ],
            "knowledge": self.knowledge.facts() if self.knowledge else None,
            "distribution": self.opinions.facts() if self.opinions else None,
        }


def check_asked(settings: EvaluationConfig) -> None:
    """Find out, before the long work, whether survey answers can be read and tasks are there.

    Raises:
        InputError: they are not.
    """
    load_opinions(settings.distribution)
    check_knowledge(settings.knowledge)


def check_questions(sets: Sequence[ProbeSet], encoder: Encoder) -> None:
    """Find out, before the long work, whether every probe can be put to the model.

    Raises:
        InputError: a question is messages, and the tokenizer has no chat template, or one that refuses them.
    """
    for probe in (probe for found in sets for probe in found.probes if not isinstance(probe.question, str)):
        try:
            encoder.prompt_ids(probe.question)
        except InputError as error:
            raise InputError(f"the question cannot be asked ({error.found})", where=str(probe.place)) from None
