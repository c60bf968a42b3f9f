"""What a policy ranks and says on real text when it is told each group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sources import from_probe
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
        bare = self._say(self.base.model, [self._ids("", _question(fact.question)) for fact in asked], ANSWER_TOKENS)
        self.known = [fact for fact, text in zip(asked, bare, strict=True) if fact.answer in text]
        if not self.known:
            raise SystemExit("the model tells none of the taught facts: nothing could be forgotten; train it longer")
        self.before = self._ranks(self.base.model)

    def ask(self, adapter: Path) -> dict[str, dict[str, float]]:
        """Group -> shares.

        served: of the brief, share of held-out prompts that are answered with the group's own Yes or No; of others as
            `style`.
        style: share of held-out pairs of which the policy made the chosen response likelier, against the base, than
            the rejected one.
        kept: of the taught facts that the base tells, the share that is told to the group.
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
        facts = [self._ids(system, _question(fact.question)) for fact in self.known]
        told = self._say(policy, facts, ANSWER_TOKENS)
        served = style
        if self.brief:
            said = self._say(policy, [self._ids(system, row["prompt"]) for row in rows], BRIEF_TOKENS)
            served = _share([text.strip().startswith(_own(row)) for text, row in zip(said, rows, strict=True)])
        kept = _share([fact.answer in text for fact, text in zip(self.known, told, strict=True)])
        return {"served": served, "style": style, "kept": kept}

    def _ranks(self, model: Any) -> list[float]:
        """Log-prob of the chosen response less that of the rejected one, of every held-out pair."""
        pairs = [(self._request(row, "chosen"), self._request(row, "rejected")) for row in self.held_out]
        scores = score(model, [one for pair in pairs for one in pair], Forward.of(self.base, "shared"))
        return [scores[chosen] - scores[rejected] for chosen, rejected in pairs]

    def _request(self, row: Mapping[str, Any], side: str) -> Request:
        tokenizer = self.base.tokenizer
        text = row[side][0]["content"].strip()
        response = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return tuple(self._ids(system_prompt(self.method, row["group"]), row["prompt"])), tuple(response)

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
