"""How few-shot prediction is put to the test: groups that taught nothing, on questions that others answered and on new
ones, from the first few answers of a random order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Shares, alike

KNOWN_QUESTIONS, NEW_QUESTIONS = "known questions", "new questions"
PROTOCOLS = (KNOWN_QUESTIONS, NEW_QUESTIONS)
TEST_SHARE = 0.4
"""Of the groups with answers enough, how many are tested."""
NEW_SHARE = 0.3
"""Of the questions, how many no training group has answered where questions are new."""
LEAST_TARGETS = 5
"""Answers that are left to predict of a group, at least."""


@dataclass(frozen=True)
class Trial:
    """A tested group.

    Attributes:
        group: its name.
        contexts: size -> number of a question -> shares; a larger context holds the smaller ones.
        targets: number of a question -> shares, the same for all sizes, and none of them in a context.
    """

    group: str
    contexts: Mapping[int, Mapping[int, Shares]]
    targets: Mapping[int, Shares]


@dataclass(frozen=True)
class Split:
    """What is learned from and what is tested.

    Attributes:
        protocol: one of `PROTOCOLS`.
        seed: of groups, questions and orders.
        training: answers of the training groups.
        trials: tested groups.
        drawn: groups that were drawn to be tested; those without a trial have too few answers left to predict.
    """

    protocol: str
    seed: int
    training: Answers
    trials: Sequence[Trial]
    drawn: int


def split(answers: Answers, protocol: str, sizes: Sequence[int], *, least: int, seed: int) -> Split:
    """Divide groups, and where questions are new those, too.

    Args:
        answers: of all groups.
        protocol: one of `PROTOCOLS`.
        sizes: of contexts, in answers; those that a group has not enough answers for are left out for it.
        least: answers that a group needs to be tested; others always teach.
        seed: the same split for the same answers.

    Raises:
        InputError: too few groups, or none that can be tested.
    """
    draw = np.random.default_rng(seed)
    ample = [group for group, own in answers.groups.items() if len(own) >= least]
    tested = [ample[place] for place in draw.permutation(len(ample))[: int(TEST_SHARE * len(ample))]]
    order = draw.permutation(len(answers.questions)).tolist()
    new = _held_out(answers, order) if protocol == NEW_QUESTIONS else set()
    training = answers.of(group for group in answers.groups if group not in set(tested)).without(new)
    known = {number for _, number, _ in training}
    found = [_trial(group, answers.groups[group], new, known, sizes, draw) for group in tested]
    trials = [trial for trial in found if trial.contexts]
    if not trials or not training.groups:
        found_text = f"{len(answers.groups)} groups, {len(ample)} of them with {least} answers or more"
        held = f", and {len(new)} of {len(order)} questions held out" if new else ""
        fix = f"Lower sizes or least; a tested group has {LEAST_TARGETS} answers left to predict, or more."
        raise InputError(f"{found_text}{held}: none can be tested", where=answers.name, fix=fix)
    return Split(protocol, seed, training, trials, len(tested))


def _held_out(answers: Answers, order: Sequence[int]) -> set[int]:
    """A share of the questions: the first ones of an order, each with all that ask the same of other options.

    Who has said which of two responses to a prompt is better has said something of other pairs of responses to it.
    """
    count = int(NEW_SHARE * len(order))
    found: set[int] = set()
    for same in alike(answers.questions, order):
        if len(found) >= count:
            break
        found |= set(same)
    return found


def splits(answers: Answers, sizes: Sequence[int], *, least: int, number: int, seed: int) -> Iterator[Split]:
    """Every protocol with seeds one after another."""
    for protocol in PROTOCOLS:
        for one in range(seed, seed + number):
            yield split(answers, protocol, sizes, least=least, seed=one)


def _trial(
    group: str,
    own: Mapping[int, Shares],
    new: set[int],
    known: set[int],
    sizes: Sequence[int],
    draw: np.random.Generator,
) -> Trial:
    order = [list(own)[place] for place in draw.permutation(len(own))]
    told = [number for number in order if number not in new]
    if new:
        targets = [number for number in order if number in new]
        longest = len(told) if len(targets) >= LEAST_TARGETS else 0
    else:
        longest = len(told) - LEAST_TARGETS
        largest = max((size for size in sizes if size <= longest), default=0)
        targets = [number for number in told[largest:] if number in known]
    used = [size for size in sizes if size <= longest] if len(targets) >= LEAST_TARGETS else []
    contexts = {size: {number: own[number] for number in told[:size]} for size in used}
    return Trial(group, contexts, {number: own[number] for number in targets})
