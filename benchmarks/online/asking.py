"""What people's policies say at the end: judged against written answers, and against what they said at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import setting
import torch

from pluralign.annotators.function import WorldJudge
from pluralign.annotators.protocol import Annotator, Request
from pluralign.config import GenerationConfig, ModelConfig, ParametersConfig
from pluralign.models.bank import NONE, LoraBank
from pluralign.models.base import Base, load_base
from pluralign.models.generation import Generated, generate
from pluralign.models.layout import choose_layout
from pluralign.models.scoring import Forward, score, score_owned
from pluralign.training.index import read_index

ANSWERS = GenerationConfig(max_new_tokens=28, batch_size=256)


@dataclass(frozen=True)
class Exam:
    """The questions of a seed, asked of one base.

    Attributes:
        base: bare, or with a bank.
        seed: of the questions.
        prompts: tokens of each question.
    """

    base: Base
    seed: int
    prompts: Sequence[list[int]]

    @classmethod
    def of(cls, seed: int, cache: Path) -> Exam:
        """With a base of its own."""
        base = load_base(ModelConfig(model=setting.MODEL, cache_dir=str(cache)))
        turns = [[{"role": "user", "content": one.text}] for one in setting.questions(seed)]
        asked = [
            base.tokenizer.apply_chat_template(turn, tokenize=True, add_generation_prompt=True, return_dict=False)
            for turn in turns
        ]
        return cls(base, seed, asked)

    @property
    def inside(self) -> list[int]:
        """Numbers of the questions that people have wishes for."""
        return [number for number, one in enumerate(setting.questions(self.seed)) if one.inside]

    @property
    def sampled(self) -> list[int]:
        """Every other one of them: what policies sample to."""
        return self.inside[::2]

    def answers(
        self, bank: LoraBank, slots: Sequence[int], numbers: Sequence[int], settings: GenerationConfig = ANSWERS
    ) -> list[list[Generated]]:
        """Of every slot, to the questions of some numbers."""
        owners = [slot for slot in slots for _ in numbers]

        def around(rows: list[int]) -> AbstractContextManager[None]:
            return bank.rows(torch.tensor([owners[row] for row in rows]))

        prompts = [self.prompts[number] for number in numbers] * len(slots)
        made = generate(self.base.model, self.base.tokenizer, prompts, settings, seed=self.seed, around=around)
        return [made[place * len(numbers) : (place + 1) * len(numbers)] for place in range(len(slots))]


def asked(seed: int, work: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Person -> what a run's policy says: `greedy` to every question, `kl` and `surprise` of what it samples."""
    exam = Exam.of(seed, work / "cache")
    index = read_index(folder).people
    bank = LoraBank(exam.base, ParametersConfig(), len(index))
    slots = {user: number for number, user in enumerate(index)}
    for user, number in slots.items():
        bank.load(number, folder / "adapters" / index[user])
    with torch.no_grad():
        greedy = exam.answers(bank, [*slots.values(), NONE], range(len(exam.prompts)))
        spoken = exam.answers(bank, list(slots.values()), exam.sampled, replace(ANSWERS, do_sample=True))
        drift = _drift(bank, exam, dict(zip(slots.values(), spoken, strict=True)))
    bank.detach()
    found = {user: {"greedy": greedy[slot], "base": greedy[-1], **drift[slot]} for user, slot in slots.items()}
    return found


def _drift(bank: LoraBank, exam: Exam, said: Mapping[int, Sequence[Generated]]) -> dict[int, dict[str, float]]:
    """KL(policy || base) and the base's own surprise, nats a token, of one sampled answer to every other question."""
    forward = Forward.of(exam.base, choose_layout(exam.base.model, exam.base.tokenizer))
    prompts = [tuple(exam.prompts[number]) for number in exam.sampled]
    requests = {
        slot: [
            (prompt, (*one.token_ids, *([] if one.end is None else [one.end])))
            for prompt, one in zip(prompts, some, strict=True)
        ]
        for slot, some in said.items()
    }
    own = score_owned(exam.base.model, requests, forward, lambda owners: bank.rows(torch.tensor(owners)))
    bare = score(exam.base.model, [one for some in requests.values() for one in some], forward)
    tokens = {slot: sum(len(one[1]) for one in some) for slot, some in requests.items()}
    return {
        slot: {
            "kl": sum(own[slot][one] - bare[one] for one in some) / tokens[slot],
            "surprise": -sum(bare[one] for one in some) / tokens[slot],
        }
        for slot, some in requests.items()
    }


def measured(seed: int, work: Path, last: dict[str, dict[str, Any]], first: dict[str, dict[str, Any]]) -> Any:
    """Person -> measures of a run's policy, beside the policy that it began with.

    wins: share of the questions with wishes to which the answer is better than the written one, ties a half; by the
        annotator and by the other judge; `at equal length`: see `at_equal_length`.
    wins over first: the same against what the policy that it began with says.
    style, kept, degenerate: shares: in the wanted style; right, of everything that the base says rightly; no language.
    kl, surprise: nats a token of sampled answers: from the base, and how little the base expects them (fluency).
    length: tokens of an answer.
    """
    judges: dict[str, Annotator] = {"annotator": WorldJudge(setting.world())}
    judges["other judge"] = setting.other_judge(work)[0]
    return {user: _measures(seed, user, last[user], first[user], judges) for user in last}


def _measures(
    seed: int, user: str, last: dict[str, Any], first: dict[str, Any], judges: Mapping[str, Annotator]
) -> dict[str, float]:
    asked, world = setting.questions(seed), setting.world()
    answers: list[Generated] = last["greedy"]
    inside = [number for number, one in enumerate(asked) if one.inside]
    judged = [
        world.judge(question.text, one.text, user, finished=one.finished)
        for question, one in zip(asked, answers, strict=True)
    ]
    knows = [
        number
        for number, (question, one) in enumerate(zip(asked, last["base"], strict=True))
        if world.judge(question.text, one.text, finished=one.finished).right
    ]
    own = [answers[number] for number in inside]
    found: dict[str, float] = {
        "style": mean(judged[number].style for number in inside),
        "kept": mean(judged[number].right is True for number in knows),
        "degenerate": mean(one.degenerate for one in judged),
        "kl": last["kl"],
        "surprise": last["surprise"],
        "length": mean(len(one.token_ids) for one in own),
    }
    questions = [asked[number] for number in inside]
    written, before = [one.reference(user) for one in questions], [first["greedy"][number].text for number in inside]
    texts, lengths = [one.text for one in own], [_words(one.text) for one in own]
    for name, judge in judges.items():
        wins = wins_over(judge, user, [one.text for one in questions], texts, written)
        found[f"wins, {name}"] = mean(wins)
        found[f"at equal length, {name}"] = at_equal_length(wins, lengths, [_words(text) for text in written])
        found[f"wins over first, {name}"] = mean(wins_over(judge, user, [one.text for one in questions], texts, before))
    return {name: round(value, 4) for name, value in found.items()}


def _words(text: str) -> int:
    return len(text.split())


def wins_over(
    judge: Annotator, user: str, questions: Sequence[str], own: Sequence[str], others: Sequence[str]
) -> list[float]:
    """For every question 1 where the person's answer is the better one, a half where they are alike."""
    requests = [
        Request([{"role": "user", "content": question}], (one, other), user, str(number))
        for number, (question, one, other) in enumerate(zip(questions, own, others, strict=True))
    ]
    found = []
    for request, verdict in zip(requests, judge.annotate(requests), strict=True):
        first, second = (0.0, 0.0) if len(set(request.responses)) == 1 else verdict.places()
        found.append(0.5 if first == second else float(first > second))
    return found


def at_equal_length(wins: Sequence[float], own: Sequence[int], others: Sequence[int]) -> float:
    """What the wins would be at equal lengths: a logistic regression of them on tanh of the difference in words.

    The form of Dubois et al. 2024 (length-controlled AlpacaEval, arXiv 2404.04475), one regression a person: the
    difference is divided by its standard deviation over the questions, and the slope has a ridge of 1.
    """
    gaps = np.array(own, float) - np.array(others, float)
    spread = gaps.std()
    if spread == 0:
        return mean(wins)
    rows = np.stack([np.ones(len(gaps)), np.tanh(gaps / spread)], 1)
    weights, said, ridge = np.zeros(2), np.array(wins), np.diag([1e-2, 1.0])
    for _ in range(50):
        shares = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (shares - said) + ridge @ weights
        curve = (rows * (shares * (1 - shares))[:, None]).T @ rows + ridge
        weights = weights - np.linalg.solve(curve, slope)
    return float(1 / (1 + np.exp(-weights[0])))
