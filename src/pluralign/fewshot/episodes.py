"""Training the published module: in every step some questions of each group are its context, and others its targets.

Sampling, sizes and schedule are the published ones (Zhao, Dang, Grover 2024) unless said otherwise. The official
code stops where groups that are tested on say so; here some of the training groups are kept for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pluralign.config import ModuleTrainingConfig
from pluralign.errors import InputError
from pluralign.fewshot.answers import Answers, Shares
from pluralign.fewshot.features import Points
from pluralign.fewshot.metrics import alignment
from pluralign.fewshot.module import ModuleConfig, PreferenceModule, cross_entropy, gaussian_nll, softmax_by_question
from pluralign.progress import progress_bar

SIZES = (10, 100)
"""Questions of a context, and as many targets, at least and at most."""
VALIDATION = 0.2
"""Share of the training groups that are kept for choosing the best moment."""
VALIDATED_CONTEXT = 20
CHECKS, LEAST_APART = 20, 10
"""How often in a training the validation groups are asked, and steps between two of these, at least."""


@dataclass(frozen=True)
class TrainedModule:
    """A module at its best moment.

    Attributes:
        module: with the weights of that moment.
        step: when it was.
        alignment: of validation groups then; NaN where there are too few groups to keep one.
        trace: (step, alignment) of every check.
    """

    module: PreferenceModule
    step: int
    alignment: float
    trace: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Episode:
    """Contexts and targets of some groups, padded to one length.

    Attributes:
        context: int64 `[groups, c]`, points; -1 is padding.
        targets: int64 `[groups, t]`, likewise.
        questions: int64 `[groups, t]`, the question of each target within its group; -1 is padding.
        read, said: float32 `[groups, c]` and `[groups, t]`, shares.
    """

    context: Tensor
    targets: Tensor
    questions: Tensor
    read: Tensor
    said: Tensor


def episode(
    groups: Sequence[Mapping[int, Shares]], points: Points, draw: np.random.Generator, sizes: tuple[int, int] = SIZES
) -> Episode:
    """Draw an episode: of every group some questions, one half of what there is where there are few.

    Args:
        groups: their answers, at least two each.
        points: of all questions.
        draw: random numbers.
        sizes: of context and targets, in questions, at least and at most.
    """
    context_size, target_size = draw.integers(sizes[0], sizes[1] + 1, 2)
    contexts, targets = [], []
    for own in groups:
        order = [list(own)[place] for place in draw.permutation(len(own))]
        cut = min(int(context_size), len(order) // 2)
        contexts.append(order[:cut])
        targets.append(order[cut : cut + int(target_size)])
    asked = [
        np.repeat(np.arange(len(some)), [len(own[n]) for n in some]) for own, some in zip(groups, targets, strict=True)
    ]
    return Episode(
        context=_padded([points.of(some) for some in contexts], -1),
        targets=_padded([points.of(some) for some in targets], -1),
        questions=_padded(asked, -1),
        read=_padded([_shares(own, some) for own, some in zip(groups, contexts, strict=True)], 0.0).float(),
        said=_padded([_shares(own, some) for own, some in zip(groups, targets, strict=True)], 0.0).float(),
    )


def train_module(answers: Answers, points: Points, training: ModuleTrainingConfig, *, seed: int = 0) -> TrainedModule:
    """Train the module on groups, each predicted from some of its own answers.

    Args:
        answers: of the training groups; those with fewer than two answers teach nothing.
        points: of all questions.
        training: how.
        seed: of initial weights, episodes and validation groups.

    Raises:
        InputError: the training diverged.
    """
    draw = np.random.default_rng(seed)
    vectors = torch.tensor(points.vectors, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = PreferenceModule(ModuleConfig(dim_x=vectors.shape[1]))
    able = [group for group, own in answers.groups.items() if len(own) >= 2]
    kept = [able[place] for place in draw.permutation(len(able))[: int(VALIDATION * len(able))]]
    taught = [answers.groups[group] for group in able if group not in kept]
    optimizer = torch.optim.Adam(module.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    best, apart = _Best(answers, points, kept, seed), max(training.steps // CHECKS, LEAST_APART)
    with progress_bar() as bar:
        task = bar.add_task("few-shot module", total=training.steps)
        for step, groups in enumerate(_batches(taught, training, draw), 1):
            loss = _loss(module, vectors, episode(groups, points, draw), training.loss)
            if not torch.isfinite(loss):
                raise InputError(
                    f"the module's loss is {loss.item()} at step {step}", fix="Lower module.learning_rate."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.advance(task)
            if step % apart == 0 or step == training.steps:
                best.look(module, step)
    return best.of(module.eval())


def predict(
    module: PreferenceModule, points: Points, context: Mapping[int, Shares], targets: Sequence[int]
) -> list[Shares]:
    """What a group would answer.

    Args:
        module: trained.
        points: of all questions.
        context: number of a question -> what the group answered, at least one.
        targets: numbers of questions.
    """
    read = torch.tensor(points.vectors[points.of(list(context))], dtype=torch.float32)
    said = torch.tensor(np.concatenate(list(context.values())), dtype=torch.float32)
    asked = torch.tensor(points.vectors[points.of(targets)], dtype=torch.float32)
    sizes = [points.slice(number).stop - points.slice(number).start for number in targets]
    with torch.no_grad():
        means, _ = module(read[None], said[None], asked[None])
    values = softmax_by_question(means.double(), torch.repeat_interleave(torch.tensor(sizes))[None])[0].numpy()
    return np.split(values, np.cumsum(sizes)[:-1])


class _Best:
    """The best moment so far, by groups that are not taught."""

    def __init__(self, answers: Answers, points: Points, groups: Sequence[str], seed: int) -> None:
        self.answers, self.points = answers, points
        draw = np.random.default_rng(seed + 1)
        self.asked = [_halves(answers.groups[group], draw) for group in groups]
        self.trace: list[tuple[int, float]] = []
        self.best: tuple[int, float] | None = None
        self.weights: dict[str, Tensor] = {}

    def look(self, module: PreferenceModule, step: int) -> None:
        if not self.asked:
            return
        found = [
            alignment(self.answers.questions[number], shares, targets[number])
            for context, targets in self.asked
            for number, shares in zip(targets, predict(module, self.points, context, list(targets)), strict=True)
        ]
        defined = [value for value in found if not np.isnan(value)]
        self.trace.append((step, float(np.mean(defined)) if defined else float("nan")))
        # Where alignment is not defined for any answer, no moment is better than another, and the last one is taken.
        if self.best is None or np.isnan(self.best[1]) or self.trace[-1][1] > self.best[1]:
            self.best = self.trace[-1]
            self.weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def of(self, module: PreferenceModule) -> TrainedModule:
        if self.best is None:
            return TrainedModule(module, -1, float("nan"), ())
        module.load_state_dict(self.weights)
        return TrainedModule(module, *self.best, tuple(self.trace))


def _halves(own: Mapping[int, Shares], draw: np.random.Generator) -> tuple[dict[int, Shares], dict[int, Shares]]:
    order = [list(own)[place] for place in draw.permutation(len(own))]
    cut = min(VALIDATED_CONTEXT, len(order) // 2)
    return {number: own[number] for number in order[:cut]}, {number: own[number] for number in order[cut:]}


def _batches(
    taught: Sequence[Mapping[int, Shares]], training: ModuleTrainingConfig, draw: np.random.Generator
) -> Iterator[list[Mapping[int, Shares]]]:
    for _ in range(training.steps):
        yield [taught[place] for place in draw.permutation(len(taught))[: training.groups]]


def _loss(module: PreferenceModule, vectors: Tensor, one: Episode, name: str) -> Tensor:
    means, log_stds = module(
        vectors[one.context.clamp_min(0)], one.read, vectors[one.targets.clamp_min(0)], one.context < 0
    )
    if name == "gaussian_nll":
        return gaussian_nll(means, log_stds, one.said, one.questions)
    return cross_entropy(means, one.said, one.questions)


def _shares(own: Mapping[int, Shares], numbers: Sequence[int]) -> np.ndarray:
    return np.concatenate([own[number] for number in numbers])


def _padded(rows: Sequence[np.ndarray], value: float) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor(np.stack([np.pad(row, (0, width - len(row)), constant_values=value) for row in rows]))
