"""What people say on real text at marks of their training: taught facts, and replies in their manner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from replies import Manner, sides
from sources import Trivia

from pluralign.config import GenerationConfig
from pluralign.evaluation.behaviour import is_degenerate
from pluralign.models.bank import LoraBank
from pluralign.models.base import Base
from pluralign.models.generation import generate
from pluralign.models.rows import Layout
from pluralign.preferences import Preference

SCOPES = ("covered", "uncovered")
"""Facts of topics that general prompts reach, and of those they do not."""
TOLD_TOKENS, BRIEF_TOKENS, REPLY_TOKENS = 24, 4, 32
Around = Callable[[list[int]], AbstractContextManager[None]]


class TextExam:
    """What is asked of everybody: taught facts, and held-out prompts.

    Args:
        config: of the run.
        facts: taught ones to ask about, by scope.
        prompts: held-out prompts that everybody answers, at most.
        base: with or without a bank.
        layout: of the rows.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        facts: Mapping[str, Sequence[Trivia]],
        prompts: int,
        base: Base,
        layout: Layout,
    ) -> None:
        # What the base tells is asked while it is bare.
        self.base = base
        training, held_out = sides(config)
        self.held_out = {user: rows[:prompts] for user, rows in held_out.items()}
        own = {user: [str(row.chosen) for row in rows] for user, rows in training.items()}
        # People who say Yes or No and nothing else have no other manner.
        brief = all(len(text.split()) == 1 for texts in own.values() for text in texts)
        self.manner = None if brief else Manner(own)
        self.facts = [(scope, fact) for scope, some in facts.items() for fact in some]
        self.questions = [self._ids(fact.question) for _, fact in self.facts]
        self.prompts = {user: [self._ids(str(row.prompt)) for row in rows] for user, rows in self.held_out.items()}
        self.known = self._right(self._say(self.questions, TOLD_TOKENS))
        for scope in SCOPES:
            if not any(known for known, (own, _) in zip(self.known, self.facts, strict=True) if own == scope):
                raise SystemExit(
                    f"the model tells none of the {scope} facts: nothing could be forgotten; train it longer"
                )

    def of_base(self) -> dict[str, Any]:
        """Share of the facts that the base tells; share of real held-out responses whose manner is recognised."""
        real = [self._has_manner(str(row.chosen), user, row) for user, rows in self.held_out.items() for row in rows]
        return {"told": sum(self.known) / len(self.known), "recognised": sum(real) / len(real)}

    def ask(self, bank: LoraBank, slots: Mapping[str, int]) -> dict[str, dict[str, float | None]]:
        """Person -> measures, but for `loss`, of those in the given slots."""
        longest = BRIEF_TOKENS if self.manner is None else REPLY_TOKENS
        told = self._asked(bank, slots, dict.fromkeys(slots, self.questions), TOLD_TOKENS)
        replies = self._asked(bank, slots, {user: self.prompts[user] for user in slots}, longest)
        return {user: self._measures(user, told[user], replies[user]) for user in slots}

    def _measures(self, user: str, told: Sequence[str], replies: Sequence[str]) -> dict[str, float | None]:
        of_base = list(zip(self.facts, self._right(told), self.known, strict=True))
        hits = {scope: [right for (own, _), right, known in of_base if known and own == scope] for scope in SCOPES}
        shown = [self._has_manner(text, user, row) for text, row in zip(replies, self.held_out[user], strict=True)]
        return {
            "style": _share(shown),
            "told": _share([hit for some in hits.values() for hit in some]),
            "base_prefix": None,
            "own_prefix": None,
            "degenerate": _share([is_degenerate(text) for text in replies]),
            **{scope: _share(some) for scope, some in hits.items()},
        }

    def _has_manner(self, text: str, user: str, row: Preference) -> bool:
        """Whether a program takes the text for the person's; of the brief, whether it begins with their Yes or No."""
        if self.manner is not None:
            return self.manner.of(text) == user
        return text.strip().startswith(str(row.chosen).strip())

    def _right(self, said: Sequence[str]) -> list[bool]:
        return [fact.answer in text for (_, fact), text in zip(self.facts, said, strict=True)]

    def _asked(
        self, bank: LoraBank, slots: Mapping[str, int], prompts: Mapping[str, Sequence[list[int]]], longest: int
    ) -> dict[str, list[str]]:
        owners = [slots[user] for user, own in prompts.items() for _ in own]
        said = iter(
            self._say(
                [ids for own in prompts.values() for ids in own],
                longest,
                lambda numbers: bank.rows(torch.tensor([owners[number] for number in numbers])),
            )
        )
        return {user: [next(said) for _ in own] for user, own in prompts.items()}

    def _say(self, prompts: Sequence[list[int]], longest: int, around: Around = lambda _: nullcontext()) -> list[str]:
        settings = GenerationConfig(max_new_tokens=longest, batch_size=256)
        made = generate(self.base.model, self.base.tokenizer, prompts, settings, around=around)
        return [one.text for one in made]

    def _ids(self, question: str) -> list[int]:
        turn = [{"role": "user", "content": question}]
        ids: list[int] = self.base.tokenizer.apply_chat_template(
            turn, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return ids


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
