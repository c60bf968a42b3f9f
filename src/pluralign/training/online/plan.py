"""Who is asked what in which phase, and how many optimiser steps a phase has: all of it known before the first one."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from pluralign.errors import InputError
from pluralign.online_config import SampledPairsConfig
from pluralign.preferences.schema import Preference
from pluralign.training.people import Person, person_seed

EVERY_STEP = "every_step"


@dataclass(frozen=True, slots=True)
class Phase:
    """One person's share of a phase.

    Attributes:
        prompts: rows whose prompts are answered; their responses, where they have any, are not used.
        anchors: rows without a pair that are learned beside.
        first: optimiser step that it begins with.
        steps: of the optimiser.
        epoch: passes over rows that were made before it.
    """

    prompts: Sequence[Preference]
    anchors: Sequence[Preference]
    first: int
    steps: int
    epoch: int


@dataclass(frozen=True, slots=True)
class PersonPlan:
    """One person's phases, and what is validated on."""

    user: str
    phases: Sequence[Phase]
    held_out: Sequence[Preference]

    @property
    def steps(self) -> int:
        """Of the optimiser, in all."""
        return self.phases[-1].first + self.phases[-1].steps

    @property
    def prompts(self) -> list[Preference]:
        """Of all phases, one that is asked twice twice."""
        return [row for phase in self.phases for row in phase.prompts]


def check_pairs(config: SampledPairsConfig, *, accumulation: int, batch: int) -> None:
    """Raise where a setting is out of its range.

    Raises:
        InputError: names the key.
    """
    if config.phases != EVERY_STEP and (isinstance(config.phases, str) or config.phases < 1):
        raise InputError(f"pairs.phases is {config.phases}", fix="It is 1 or more, or every_step.")
    if config.responses < 2:
        raise InputError(f"pairs.responses is {config.responses}", fix="A comparison needs two.")
    if config.form == "sampled" and config.responses != 2:
        raise InputError(
            f"pairs.form is sampled and pairs.responses is {config.responses}",
            fix="The two sampled are two: take best_worst or all for more.",
        )
    if config.budget is not None and config.budget < 1:
        raise InputError(f"pairs.budget is {config.budget}", fix="It must be at least 1.")
    if not config.generation.do_sample:
        raise InputError(
            "pairs.generation.do_sample is false", fix="The likeliest response is one, and pairs need two: sample."
        )
    if config.phases == EVERY_STEP and config.form == "all" and pairs_of(config) > accumulation * batch:
        raise InputError(
            f"{config.responses} responses make {pairs_of(config)} pairs, and a step has {accumulation * batch} rows",
            fix="Lower pairs.responses, or raise training.per_device_train_batch_size.",
        )


def pairs_of(config: SampledPairsConfig) -> int:
    """Pairs of a prompt, where no two responses are alike."""
    return math.comb(config.responses, 2) if config.form == "all" else 1


def plan(
    people: Sequence[Person], config: SampledPairsConfig, arguments: TrainingArguments, seed: int
) -> list[PersonPlan]:
    """Everybody's phases.

    Prompts come in an order drawn by seed and person, and again in another one where the budget is more than there are.

    Args:
        people: their rows with and without a pair, and what they hold out.
        config: checked by `check_pairs`.
        arguments: rows of a step, passes, or steps in all.
        seed: of the run.

    Raises:
        InputError: somebody's budget is smaller than the number of phases.
    """
    return [_plan_of(person, config, arguments, seed) for person in people]


def _plan_of(person: Person, config: SampledPairsConfig, arguments: TrainingArguments, seed: int) -> PersonPlan:
    prompts = list({_key(row): row for row in person.train if row.responses.keys() - {"base"}}.values())
    anchors = [row for row in person.train if not row.responses.keys() - {"base"}]
    budget = len(prompts) if config.budget is None else config.budget
    drawn = _drawn(prompts, budget, person_seed(seed, person.user))
    rows_of_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    if config.phases == EVERY_STEP:
        share = max(1, rows_of_step // pairs_of(config))
        parts: list[Sequence[Preference]] = [drawn[start : start + share] for start in range(0, len(drawn), share)]
    else:
        count = int(config.phases)
        if budget < count:
            raise InputError(
                f"{budget} prompts are annotated, in {count} phases",
                where=f"user {person.user!r}",
                fix="Lower pairs.phases, or raise pairs.budget.",
            )
        parts = _even(drawn, count)
    beside = _even(anchors, len(parts))
    passes = math.ceil(arguments.num_train_epochs)
    counts = [len(part) * pairs_of(config) + len(more) for part, more in zip(parts, beside, strict=True)]
    steps = [math.ceil(count / rows_of_step) * passes for count in counts]
    if arguments.max_steps > 0:
        steps = [len(part) for part in _even(range(arguments.max_steps), len(parts))]
    firsts = [sum(steps[:number]) for number in range(len(parts))]
    phases = [
        Phase(part, more, first, own, number * max(passes, 1))
        for number, (part, more, first, own) in enumerate(zip(parts, beside, firsts, steps, strict=True))
    ]
    return PersonPlan(person.user, phases, person.held_out)


def _drawn(prompts: Sequence[Preference], budget: int, seed: int) -> list[Preference]:
    found: list[Preference] = []
    again = 0
    while len(found) < budget and prompts:
        order = list(prompts)
        random.Random(f"prompts/{seed}/{again}").shuffle(order)
        found += order[: budget - len(found)]
        again += 1
    return found


def _even(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Consecutive parts whose sizes differ by one at most."""
    ends = [round(len(items) * number / count) for number in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def _key(row: Preference) -> str:
    return repr((row.user, row.prompt))
