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
        bare = [("", fact) for fact in asked]
        right = zip(asked, self._told(self.base.model, bare), self._chosen(self.base.model, bare), strict=True)
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
        groups = [str(row["group"]) for row in self.held_out]
        style = [after > before for after, before in zip(self._ranks(policy), self.before, strict=True)]
        served = self._serves(policy) if self.brief else style
        systems = {group: system_prompt(self.method, group) for group in dict.fromkeys(groups)}
        # Everybody's in the same batches.
        asked = [(system, fact) for system in systems.values() for fact in self.known]
        owners = [group for group in systems for _ in self.known]
        kept, told = self._chosen(policy, asked), self._told(policy, asked)
        detach_adapter(policy)
        named = {"served": (groups, served), "style": (groups, style), "kept": (owners, kept), "told": (owners, told)}
        return {group: {name: _share(hits, of, group) for name, (of, hits) in named.items()} for group in systems}

    def _serves(self, policy: Any) -> list[bool]:
        """Whether a held-out prompt is answered with the group's own Yes or No."""
        prompts = [self._ids(system_prompt(self.method, row["group"]), row["prompt"]) for row in self.held_out]
        said = self._say(policy, prompts, BRIEF_TOKENS)
        return [text.strip().startswith(_own(row)) for text, row in zip(said, self.held_out, strict=True)]

    def _told(self, model: Any, asked: Sequence[tuple[str, Trivia]]) -> list[bool]:
        """Whether the greedy answer has the right one in it, behind each system prompt."""
        said = self._say(model, [self._ids(system, _question(fact.question)) for system, fact in asked], ANSWER_TOKENS)
        return [fact.answer in text for (_, fact), text in zip(asked, said, strict=True)]

    def _chosen(self, model: Any, asked: Sequence[tuple[str, Trivia]]) -> list[bool]:
        """Whether the right answer is the likeliest of the options."""
        options = [
            {option: self._answer(system, _question(fact.question), option) for option in fact.options}
            for system, fact in asked
        ]
        scores = score(model, [one for own in options for one in own.values()], Forward.of(self.base, "shared"))
        return [
            max(own, key=lambda option: scores[own[option]]) == fact.answer
            for (_, fact), own in zip(asked, options, strict=True)
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


def _share(hits: Sequence[bool], owners: Sequence[str], group: str) -> float:
    own = [hit for hit, owner in zip(hits, owners, strict=True) if owner == group]
    return sum(own) / len(own)
