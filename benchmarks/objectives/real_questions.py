"""What a policy ranks and says on real text when it is told each group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sources import Trivia, from_probe
from two_stages import system_prompt, turns

from pluralign.config import GenerationConfig, ModelConfig
from pluralign.models.adapters import detach_adapter, load_adapter
from pluralign.models.base import load_base
from pluralign.models.generation import generate
from pluralign.models.scoring import Forward, Request, score

ANSWER_TOKENS, BRIEF_TOKENS = 24, 4


class Questions:
    """Held-out pairs and taught facts, for one method.

    Args:
        model: the base.
        method: decides what stands before a question.
        held_out: pairs of all groups, as messages.
        facts: taught ones that each group is asked.
        brief: whether a response is Yes or No.
    """

    def __init__(
        self, model: Path, method: str, held_out: Sequence[Mapping[str, Any]], facts: int, brief: bool
    ) -> None:
        self.base = load_base(ModelConfig(model=str(model)))
        self.method, self.held_out, self.brief = method, held_out, brief
        lines = (model / "learned.jsonl").read_text(encoding="utf-8").splitlines()[:facts]
        asked = [from_probe(json.loads(line)) for line in lines]
        right = zip(
            asked, self._told(self.base.model, asked, ""), self._chosen(self.base.model, asked, ""), strict=True
        )
        self.known = [fact for fact, told, chosen in right if told and chosen]
        if not self.known:
            raise SystemExit("the model knows none of the taught facts: nothing could be forgotten; train it longer")
        self.before = self._ranks(self.base.model)

    def ask(self, adapter: Path) -> dict[str, dict[str, float]]:
        """Group -> shares.

        served: of the brief, share of held-out prompts that are answered with the group's own Yes or No; of others as
            `style`.
        style: share of held-out pairs of which the policy made the chosen response likelier, against the base, than
            the rejected one.
        kept: of the taught facts that the base knows, the share whose answer is the likeliest of its four options
            when the group asks; by chance 0.25.
        told: the share that is told when the group asks. Who has learned to say Yes or No tells nothing, and may know
            as much as before.
        """
        policy = load_adapter(self.base, adapter)
        ranked = [after > before for after, before in zip(self._ranks(policy), self.before, strict=True)]
        found = {
            group: self._of(policy, group, ranked) for group in dict.fromkeys(row["group"] for row in self.held_out)
        }
        detach_adapter(policy)
        return found

    def _of(self, policy: Any, group: str, ranked: Sequence[bool]) -> dict[str, float]:
        system = system_prompt(self.method, group)
        rows = [row for row in self.held_out if row["group"] == group]
        style = _share([right for right, row in zip(ranked, self.held_out, strict=True) if row["group"] == group])
        served = style
        if self.brief:
            said = self._say(policy, [self._ids(system, row["prompt"]) for row in rows], BRIEF_TOKENS)
            served = _share([text.strip().startswith(_own(row)) for text, row in zip(said, rows, strict=True)])
        kept = _share(self._chosen(policy, self.known, system))
        return {"served": served, "style": style, "kept": kept, "told": _share(self._told(policy, self.known, system))}

    def _told(self, model: Any, facts: Sequence[Trivia], system: str) -> list[bool]:
        """Whether the greedy answer has the right one in it."""
        said = self._say(model, [self._ids(system, _question(fact.question)) for fact in facts], ANSWER_TOKENS)
        return [fact.answer in text for fact, text in zip(facts, said, strict=True)]

    def _chosen(self, model: Any, facts: Sequence[Trivia], system: str) -> list[bool]:
        """Whether the right answer is the likeliest of the options."""
        options = [
            {option: self._answer(system, _question(fact.question), option) for option in fact.options}
            for fact in facts
        ]
        scores = score(model, [one for own in options for one in own.values()], Forward.of(self.base, "shared"))
        return [
            max(own, key=lambda option: scores[own[option]]) == fact.answer
            for fact, own in zip(facts, options, strict=True)
        ]

    def _ranks(self, model: Any) -> list[float]:
        """Log-prob of the chosen response less that of the rejected one, of every held-out pair."""
        pairs = [(self._request(row, "chosen"), self._request(row, "rejected")) for row in self.held_out]
        scores = score(model, [one for pair in pairs for one in pair], Forward.of(self.base, "shared"))
        return [scores[chosen] - scores[rejected] for chosen, rejected in pairs]

    def _request(self, row: Mapping[str, Any], side: str) -> Request:
        return self._answer(system_prompt(self.method, row["group"]), row["prompt"], row[side][0]["content"].strip())

    def _answer(self, system: str, prompt: Sequence[Mapping[str, str]], text: str) -> Request:
        tokenizer = self.base.tokenizer
        response = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return tuple(self._ids(system, prompt)), tuple(response)

    def _say(self, model: Any, prompts: Sequence[list[int]], longest: int) -> list[str]:
        settings = GenerationConfig(max_new_tokens=longest, batch_size=256)
        return [one.text for one in generate(model, self.base.tokenizer, prompts, settings)]

    def _ids(self, system: str, prompt: Sequence[Mapping[str, str]]) -> list[int]:
        ids: list[int] = self.base.tokenizer.apply_chat_template(
            turns(system, prompt), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return ids


def _question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _own(row: Mapping[str, Any]) -> str:
    return str(row["chosen"][0]["content"]).strip()


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
