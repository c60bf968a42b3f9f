"""What people do and know at marks of their training: asked in the bank, between two steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from ground import COVERED, INSIDE, UNCOVERED, Ground, Probe

from pluralign.config import GenerationConfig, TrainConfig
from pluralign.models.bank import LoraBank
from pluralign.models.base import Base
from pluralign.models.generation import Generated, generate
from pluralign.models.rows import Layout
from pluralign.models.scoring import Forward, Request, score, score_owned
from pluralign.resolve import resolve
from pluralign.training.bank import BankPopulation
from pluralign.training.record import Record
from pluralign.training.run import Run
from pluralign.world import PLAIN

SCOPES = (INSIDE, COVERED, UNCOVERED)
ANSWERS = GenerationConfig(max_new_tokens=40, batch_size=256)
MEASURES = (
    "style",
    "told",
    "base_prefix",
    "own_prefix",
    "degenerate",
    "covered",
    "uncovered",
    "style_covered",
    "style_uncovered",
    "loss",
)
"""Of a person at a mark; shares are of probes that the base itself has right in the same way.

style: share of greedy answers to held-out prompts inside the topics of the preferences that are in the wanted style.
told: probes whose generated answer has the right value, in whatever style (None for who wants no answer).
base_prefix, own_prefix: probes whose right option is the likeliest, after the opening of the base's manner and after
    that of the person's own (None for who states nothing).
degenerate: share of degenerate answers.
covered, uncovered: `told` (of who wants no answer, `base_prefix`) outside the topics of the preferences, where general
    prompts reach and where they do not.
style_covered, style_uncovered: share of answers in the wanted style, in those topics.
loss: mean loss on held-out pairs (None where it is not asked for).
"""


class Asking(Protocol):
    """What is asked of people, and of the base."""

    def ask(self, bank: LoraBank, slots: Mapping[str, int]) -> dict[str, dict[str, float | None]]:
        """Person -> measures, but for `loss`, of those in the given slots."""

    def of_base(self) -> dict[str, Any]:
        """What the base itself has."""


@dataclass
class Exam:
    """The probes of a ground, in tokens, and what the base knows of them.

    Attributes:
        ground: world and probes.
        base: with or without a bank.
        layout: of the rows.
    """

    ground: Ground
    base: Base
    layout: Layout

    def __post_init__(self) -> None:
        # What the base knows is asked while it is bare.
        tokenizer = self.base.tokenizer
        turns = [[{"role": "user", "content": probe.question}] for probe in self.ground.probes]
        self.prompts: list[list[int]] = [
            tokenizer.apply_chat_template(turn, tokenize=True, add_generation_prompt=True, return_dict=False)
            for turn in turns
        ]
        self.forward = Forward.of(self.base, self.layout)
        self._words: dict[str, list[int]] = {}
        self.of_base()

    def ask(self, bank: LoraBank, slots: Mapping[str, int]) -> dict[str, dict[str, float | None]]:
        """Person -> measures, but for `loss`, of those in the given slots."""
        users = list(slots)
        said = self._answers(bank, [slots[user] for user in users])
        ranked = self._ranked(bank, slots)
        return {user: self._measures(user, said[slots[user]], ranked[slots[user]]) for user in users}

    def of_base(self) -> dict[str, Any]:
        """Shares of what the base tells, and of what it ranks right after the opening of each style."""
        told, ranked = self._base_told, self._base_ranked
        styles = dict.fromkeys(manner for _, manner in ranked)
        by_style = {style: _share([hit for (_, manner), hit in ranked.items() if manner == style]) for style in styles}
        return {"told": _share(list(told)), "ranked": by_style}

    @cached_property
    def _base_told(self) -> list[bool]:
        said = generate(self.base.model, self.base.tokenizer, self.prompts, ANSWERS)
        judged = zip(self.ground.probes, said, strict=True)
        judge = self.ground.world.judge
        return [judge(probe.question, one.text, finished=one.finished).right is True for probe, one in judged]

    @cached_property
    def _base_ranked(self) -> dict[tuple[int, str], bool]:
        asked = {
            (number, manner): self._requests(number, probe, manner)
            for number, probe in enumerate(self.ground.probes)
            for manner in probe.prefixes
        }
        return _best(asked, score(self.base.model, [one for some in asked.values() for one in some], self.forward))

    def _answers(self, bank: LoraBank, slots: Sequence[int]) -> dict[int, list[Generated]]:
        count = len(self.prompts)
        made = generate(
            self.base.model,
            self.base.tokenizer,
            [prompt for _ in slots for prompt in self.prompts],
            ANSWERS,
            around=lambda numbers: bank.rows(torch.tensor([slots[number // count] for number in numbers])),
        )
        return {slot: made[place * count : (place + 1) * count] for place, slot in enumerate(slots)}

    def _ranked(self, bank: LoraBank, slots: Mapping[str, int]) -> dict[int, dict[tuple[int, str], bool]]:
        """Slot -> (probe, manner) -> whether the right option is the likeliest."""
        asked: dict[int, dict[tuple[int, str], list[Request]]] = {}
        for user, slot in slots.items():
            manners = dict.fromkeys((PLAIN, user.rsplit("-", 1)[0]))
            asked[slot] = {
                (number, manner): self._requests(number, probe, manner)
                for number, probe in enumerate(self.ground.probes)
                for manner in manners
                if manner in probe.prefixes
            }
        requests = {slot: [one for some in own.values() for one in some] for slot, own in asked.items()}
        scores = score_owned(self.base.model, requests, self.forward, lambda owners: bank.rows(torch.tensor(owners)))
        return {slot: _best(own, scores[slot]) for slot, own in asked.items()}

    def _requests(self, number: int, probe: Probe, manner: str) -> list[Request]:
        prompt = (*self.prompts[number], *self._tokens(probe.prefixes[manner]))
        return [(prompt, tuple(self._tokens(option))) for option in probe.options]

    def _tokens(self, text: str) -> list[int]:
        if text not in self._words:
            self._words[text] = self.base.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._words[text]

    def _measures(
        self, user: str, said: Sequence[Generated], ranked: Mapping[tuple[int, str], bool]
    ) -> dict[str, float | None]:
        probes, world, style = self.ground.probes, self.ground.world, user.rsplit("-", 1)[0]
        judged = [
            world.judge(probe.question, answer.text, user, finished=answer.finished)
            for probe, answer in zip(probes, said, strict=True)
        ]
        scopes = {scope: [n for n, probe in enumerate(probes) if probe.scope == scope] for scope in SCOPES}
        everything = range(len(probes))

        def told(numbers: Sequence[int]) -> float | None:
            of_base = [number for number in numbers if self._base_told[number]]
            return None if style == "declining" else _share([judged[number].right is True for number in of_base])

        def known(numbers: Sequence[int], manner: str) -> float | None:
            return _share([ranked[number, manner] for number in numbers if self._base_ranked.get((number, manner))])

        def kept(numbers: Sequence[int]) -> float | None:
            return known(numbers, PLAIN) if style == "declining" else told(numbers)

        def styled(scope: str) -> float | None:
            return _share([judged[number].style for number in scopes[scope]])

        return {
            "style": styled(INSIDE),
            "told": told(everything),
            "base_prefix": known(everything, PLAIN),
            "own_prefix": known(everything, style),
            "degenerate": _share([one.degenerate for one in judged]),
            "covered": kept(scopes[COVERED]),
            "uncovered": kept(scopes[UNCOVERED]),
            "style_covered": styled(COVERED),
            "style_uncovered": styled(UNCOVERED),
        }


class Watched(BankPopulation):
    """The bank's loop, with a look at everybody after the steps of the marks.

    Attributes:
        found: person -> measure -> a value a mark.
    """

    def watch(self, exam: Asking, marks: Sequence[int], losses: bool) -> None:
        """Name what is asked, after which steps, and whether losses on held-out pairs are, too."""
        self.exam, self.marks, self.losses = exam, marks, losses
        self.found: dict[str, dict[str, list[float | None]]] = {}

    def _update(self, learners: Any) -> dict[str, dict[str, float]]:
        logs = super()._update(learners)
        due = [one for one in learners if one.failure is None and one.state.global_step in self.marks]
        if due:
            losses = self._losses(due) if self.losses else {}
            with torch.no_grad():
                asked = self.exam.ask(self.bank, {learner.user: learner.slot for learner in due})
            for user, measures in asked.items():
                kept = self.found.setdefault(user, {name: [] for name in MEASURES})
                for name, value in {**measures, "loss": losses.get(user)}.items():
                    kept[name].append(None if value is None else round(value, 4))
        return logs

    def measures(self, user: str) -> dict[str, list[float | None]]:
        """A person's, a value a mark; of who broke off, nothing is kept and nothing served from there on."""
        found = self.found.get(user, {name: [] for name in MEASURES})
        missing = len(self.marks) - len(found["style"])
        return {name: values + [None if name == "loss" else 0.0] * missing for name, values in found.items()}

    def _losses(self, learners: Sequence[Any]) -> dict[str, float]:
        units = []
        for learner in learners:
            rows = [learner.held_out[number] for number in range(len(learner.held_out))]
            units += self.forwards.units(learner.slot, [rows], seed=0, step=0)
        means = self.forwards.evaluate(units)
        return {learner.user: means.take_loss(learner.slot) for learner in learners}


def watched(
    configuration: dict[str, Any],
    exam_of: Callable[[Base, Layout], Asking],
    marks: Sequence[int],
    *,
    losses: bool = True,
) -> tuple[dict[str, dict[str, list[float | None]]], dict[str, Any], dict[str, str]]:
    """Everybody's measures by mark, what the base itself has of them, and whose training broke off, with the reason."""
    config = resolve(TrainConfig, configuration)
    run = Run(config)
    census = run.prepare().census
    worker = run.worker
    rows = worker.anchor(census.people)
    exam = exam_of(worker.base, worker.layout)
    record = Record(run.folder, config.parameters.kind, hashes={}, writes=False)
    watched = Watched(config, worker.base, worker.objective, run.arguments, run.folder, worker.layout, record)
    watched.watch(exam, marks, losses)
    watched.train(watched.resume(list(rows)), lambda users: iter([(user, rows[user]) for user in users]))
    return {user: watched.measures(user) for user in rows}, exam.of_base(), dict(record.skipped)


def _best(asked: Mapping[Any, list[Request]], scores: Mapping[Request, float]) -> dict[Any, bool]:
    """Whether the first of each list is the likeliest."""
    return {key: scores[some[0]] > max(scores[one] for one in some[1:]) for key, some in asked.items()}


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
