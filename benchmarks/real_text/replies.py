"""What people's models say when they are asked: has the reply the person's manner, is a taught fact still told.

Adapters are read by PEFT alone, as anybody would read them. Replies are greedy. Log-probs of held-out pairs say that a
model *ranks* as its person does; only replies say that it *speaks* so, and the two come apart (docs/real-text.md).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import measure
import peft
import sources
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pluralign.config import DataConfig
from pluralign.preferences import Preference, load_preferences, split_preferences

TOLD_PROBES = 200
"""Taught questions that each person answers in words."""
PROMPTS = 60
"""Held-out prompts that each person answers."""
LONGEST = 48


class Manner:
    """Tells whose manner a text has: naive Bayes on the first words and pairs of words, from the people's own choices.

    Args:
        texts: person -> texts in that person's manner.
    """

    WORDS = 24

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self.counts = {person: Counter(p for text in own for p in self._parts(text)) for person, own in texts.items()}
        self.kinds = len(set().union(*self.counts.values()))

    def of(self, text: str) -> str | None:
        """The likeliest person, all being equally likely beforehand; None for a text without a word."""
        if not self._parts(text):
            return None
        return max(self.counts, key=lambda person: self._score(text, person))

    def _score(self, text: str, person: str) -> float:
        counts = self.counts[person]
        total = counts.total() + self.kinds
        return sum(math.log((counts[part] + 1) / total) for part in self._parts(text))

    @classmethod
    def _parts(cls, text: str) -> list[str]:
        words = re.findall(r"[a-z']+|[^\sa-z']", text.lower())[: cls.WORDS]
        return words + [f"{first} {second}" for first, second in zip(["^", *words], words, strict=False)]


def replies(task: str, config: Mapping[str, Any], adapters: Mapping[str, Path]) -> dict[str, dict[str, float | None]]:
    """Person -> `told`, `told_of`, `manner`, `manner_of`, `manner_base`, `manner_real`.

    `told`: of the taught facts that the base tells when asked, the share that the person's model tells: the answer's
    words stand in the reply, whatever else does. `manner`: the share of replies to held-out prompts that have the
    person's manner. On DSP that is what `Manner` says, which finds the person behind a share `manner_real` of the real
    held-out responses; on personas, that the reply begins with the person's own Yes or No; on HH no program can tell.
    `manner_base` is the share of the base's replies.

    Args:
        task: the population's name.
        config: of the run.
        adapters: person -> folder.
    """
    base, tokenizer, known = _base(Path(config["model"]))
    training, held_out = sides(config)
    prompts = {user: rows[:PROMPTS] for user, rows in held_out.items()}
    own_texts = {user: [str(row.chosen) for row in rows] for user, rows in training.items()}
    manner = Manner(own_texts) if task == "dsp" else None

    def shown(policy: Any, user: str) -> float | None:
        if task == "hh":
            return None
        said = _said(policy, tokenizer, [str(row.prompt) for row in prompts[user]])
        if manner is not None:
            return _share([manner.of(text) == user for text in said])
        wanted = [str(row.chosen).strip() for row in prompts[user]]
        return _share([text.strip().startswith(own) for text, own in zip(said, wanted, strict=True)])

    found: dict[str, dict[str, float | None]] = {}
    for user, folder in adapters.items():
        found[user] = {"manner_base": shown(base, user), "manner_of": len(prompts[user]), "told_of": len(known)}
        if manner is not None:
            found[user]["manner_real"] = _share([manner.of(str(row.chosen)) == user for row in held_out[user]])
        policy = peft.PeftModel.from_pretrained(base, folder)
        found[user]["told"] = _share(measure.answer_greedily(policy, tokenizer, known, inside=True))
        found[user]["manner"] = shown(policy, user)
        policy.unload()
    return found


@cache
def _base(model: Path) -> tuple[Any, Any, list[sources.Trivia]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    lines = (model / "learned.jsonl").read_text(encoding="utf-8").splitlines()[:TOLD_PROBES]
    facts = [sources.from_probe(json.loads(line)) for line in lines]
    told = measure.answer_greedily(base, tokenizer, facts, inside=True)
    return base, tokenizer, [fact for fact, right in zip(facts, told, strict=True) if right]


def sides(config: Mapping[str, Any]) -> tuple[dict[str, list[Preference]], dict[str, list[Preference]]]:
    """Training and held-out rows by person, split as the run split them."""
    data = DataConfig(**config["data"])
    rows = load_preferences(data, config["seed"])
    sides = split_preferences(
        rows, validation=data.validation, by=data.split_by, per="user", seed=config["seed"], data=data
    )
    return sides[0].by("user"), sides[1].by("user")


@torch.inference_mode()
def _said(policy: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    ids = [measure.question_ids(tokenizer, prompt) for prompt in prompts]
    return measure.greedy(policy, tokenizer, ids, LONGEST)


def _share(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right), 5)
