"""What people's policies say at the end, beside what they said at first: judged by the annotator and by another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from ground import INSIDE, Ground
from watch import ANSWERS, Exam

from pluralign.annotators.function import WorldJudge
from pluralign.annotators.protocol import Annotator, Request
from pluralign.config import DataConfig, GenerationConfig, ModelConfig, ParametersConfig
from pluralign.models.bank import LoraBank
from pluralign.models.base import load_base
from pluralign.models.generation import Generated, generate
from pluralign.models.layout import choose_layout
from pluralign.models.scoring import Forward, score, score_owned
from pluralign.training.index import read_index

OTHERS = 120
"""People of the same styles begin anew at this number: the other judge learns from them."""


def asked(ground: Ground, work: Path, first: Path, last: Path) -> dict[str, dict[str, float]]:
    """Person -> measures of the policy at the end."""
    base = load_base(ModelConfig(model=str(ground.model), cache_dir=str(work / "cache")))
    layout = choose_layout(base.model, base.tokenizer)
    exam = Exam(ground, base, layout)
    adapters = read_index(last).people
    bank = LoraBank(base, ParametersConfig(), 2 * len(adapters))
    slots = {user: number for number, user in enumerate(adapters)}
    for user, number in slots.items():
        bank.load(number, last / "adapters" / adapters[user])
        bank.load(number + len(slots), first / "adapters" / adapters[user])
    with torch.no_grad():
        knows = exam.ask(bank, slots)
        said = _answers(bank, exam, range(2 * len(slots)))
        spoken = _answers(bank, exam, list(slots.values()), replace(ANSWERS, do_sample=True))
        kl = _divergence(bank, exam, spoken)
    bank.detach()
    judges: dict[str, Annotator] = {"annotator": WorldJudge(ground.world), "other judge": _other_judge(ground, work)}
    found = {}
    for user, slot in slots.items():
        own, before = said[slot], said[slot + len(slots)]
        values = {name: value for name, value in knows[user].items() if value is not None}
        kept = min(value for name, value in values.items() if name in ("told", "base_prefix", "own_prefix"))
        lengths = [len(one.token_ids) for one in own], [len(one.token_ids) for one in before]
        measures = {"style": values["style"], "kept": kept, "degenerate": values["degenerate"], "kl": kl[slot]}
        measures |= {"length": mean(lengths[0]), "length at first": mean(lengths[1])}
        for name, judge in judges.items():
            wins = _wins(judge, ground, exam, user, own, before)
            measures |= {f"wins, {name}": mean(wins), f"at equal length, {name}": _at_equal_length(wins, *lengths)}
        found[user] = {name: round(value, 4) for name, value in measures.items()}
    return found


def _inside(exam: Exam) -> list[int]:
    return [number for number, probe in enumerate(exam.ground.probes) if probe.scope == INSIDE]


def _answers(
    bank: LoraBank, exam: Exam, slots: Sequence[int], settings: GenerationConfig = ANSWERS
) -> dict[int, list[Generated]]:
    """Answers to held-out questions inside the topics of the preferences, greedy unless the settings say else."""
    prompts = [exam.prompts[number] for number in _inside(exam)]
    owners = [slot for slot in slots for _ in prompts]
    made = generate(
        exam.base.model,
        exam.base.tokenizer,
        [prompt for _ in slots for prompt in prompts],
        settings,
        seed=exam.ground.seed,
        around=lambda numbers: bank.rows(torch.tensor([owners[number] for number in numbers])),
    )
    return {slot: made[place * len(prompts) : (place + 1) * len(prompts)] for place, slot in enumerate(slots)}


def _divergence(bank: LoraBank, exam: Exam, said: dict[int, list[Generated]]) -> dict[int, float]:
    """KL(policy || base) a token, from one answer of the policy's own to each question, at temperature 1."""
    forward = Forward.of(exam.base, choose_layout(exam.base.model, exam.base.tokenizer))
    prompts = [tuple(exam.prompts[number]) for number in _inside(exam)]
    requests = {
        slot: [
            (prompt, (*one.token_ids, *([] if one.end is None else [one.end])))
            for prompt, one in zip(prompts, some, strict=True)
        ]
        for slot, some in said.items()
    }
    own = score_owned(exam.base.model, requests, forward, lambda owners: bank.rows(torch.tensor(owners)))
    bare = score(exam.base.model, [one for some in requests.values() for one in some], forward)
    return {
        slot: sum(own[slot][one] - bare[one] for one in some) / sum(len(one[1]) for one in some)
        for slot, some in requests.items()
    }


def _other_judge(ground: Ground, work: Path) -> Annotator:
    """A reward model that other people of the same styles have taught."""
    from pluralign.annotators.reward import RewardModel
    from pluralign.annotators.reward_training import train_reward
    from pluralign.reward_config import RewardTrainConfig

    folder = ground.folder / "other-judge"
    if not (folder / "reward.json").exists():
        people = [ground.world.users(OTHERS + 10)[OTHERS + number] for number in range(10)]
        data = DataConfig(path=str(ground.table(people, 240)), validation=0.1)
        train_reward(
            RewardTrainConfig(
                model=str(ground.model),
                data=data,
                output_dir=str(folder),
                heads="group",
                trunk="frozen",
                cache_dir=str(work / "cache"),
                seed=ground.seed,
            )
        )
    return _ByStyle(RewardModel.load(str(folder)))


class _ByStyle:
    """Asks a judge who knows styles' people: a person of the tested style stands for the person."""

    def __init__(self, judge: Annotator) -> None:
        self.judge, self.name = judge, judge.name

    def annotate(self, requests: Sequence[Request]) -> Any:
        """The verdicts of the style's own head."""
        return self.judge.annotate([Request(r.prompt, r.responses, _stand_in(r.user), r.row) for r in requests])


def _stand_in(user: str | None) -> str | None:
    style, _, number = (user or "").rpartition("-")
    return f"{style}-{OTHERS + int(number):03d}" if style else None


def _wins(
    judge: Annotator, ground: Ground, exam: Exam, user: str, own: Sequence[Generated], before: Sequence[Generated]
) -> list[float]:
    """For every question 1 where the answer is better than the first policy's, a half where they are alike."""
    questions = [exam.ground.probes[number].question for number in _inside(exam)]
    requests = [
        Request([{"role": "user", "content": question}], (one.text, other.text), user, str(number))
        for number, (question, one, other) in enumerate(zip(questions, own, before, strict=True))
    ]
    found = []
    for request, verdict in zip(requests, judge.annotate(requests), strict=True):
        first, second = (0.0, 0.0) if len(set(request.responses)) == 1 else verdict.places()
        found.append(0.5 if first == second else float(first > second))
    return found


def _at_equal_length(wins: Sequence[float], own: Sequence[int], before: Sequence[int]) -> float:
    """What the wins would be at equal lengths: a logistic regression of them on tanh of the standardised difference.

    The form of Dubois et al. 2024 (length-controlled AlpacaEval, arXiv 2404.04475), with a ridge of 1 on the slope.
    """
    gaps = np.array(own, float) - np.array(before, float)
    spread = gaps.std()
    if spread == 0:
        return mean(wins)
    rows = np.stack([np.ones(len(gaps)), np.tanh(gaps / spread)], 1)
    weights, said, ridge = np.zeros(2), np.array(wins), np.diag([1e-6, 1.0])
    for _ in range(50):
        shares = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (shares - said) + ridge @ weights
        curve = (rows * (shares * (1 - shares))[:, None]).T @ rows + ridge
        weights = weights - np.linalg.solve(curve, slope)
        weights = np.clip(weights, -12, 12)
    return float(1 / (1 + math.exp(-weights[0])))
