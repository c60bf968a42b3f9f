"""The bandit experiment of group-robust preference optimization: two groups with opposed rewards, log-linear policies.

    python benchmarks/group_robust/bandit.py            # all settings; about twenty minutes of one core
    python benchmarks/group_robust/bandit.py --table    # the committed results beside the reference's

Ramesh et al. 2024 (arXiv 2405.20304), section 5.1, with the settings of their scripts. `reference.json` holds the means
over seeds of an independent implementation; theirs are plots only. Both draw their own data: the comparison is of
statistics.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluralign.objectives import (
    example_weights,
    group_losses,
    importance_weights,
    ipo_loss,
    sigmoid_loss,
    update_group_weights,
)
from pluralign.progress import progress_bar
from pluralign.storage import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "bandit.json"
REFERENCE = HERE / "reference.json"
SEEDS = tuple(range(2021, 2041))
ACTIONS, PAIRS, TESTED = 8, 300, 1000
REWARDS = torch.tensor([[1.0, 3.0, 1.0, 3.0], [3.0, 1.0, 3.0, 1.0]], dtype=torch.float64)
METHODS = ("plain", "importance", "group-robust")


@dataclass(frozen=True)
class Setting:
    """How pairs are drawn and policies trained.

    Attributes:
        share: of group 0 in the training pairs.
        uneven: whether group 0 compares neighbouring actions and group 1 distant ones.
        ipo: whether the loss is IPO's and the policy its closed form; else DPO's, by gradient descent.
        beta: of the loss.
        rate: step size of the policy's descent.
        ascent: step size of the group weights.
        steps: of both.
    """

    share: float
    uneven: bool
    ipo: bool
    beta: float
    rate: float
    ascent: float
    steps: int


SETTINGS = {
    "even_imbalanced, dpo": Setting(0.2, False, False, 1.0, 0.5, 0.9, 10_000),
    "uneven_balanced, dpo": Setting(0.5, True, False, 2.0, 5.0, 0.01, 5_000),
    "uneven_imbalanced, dpo": Setting(0.2, True, False, 1.0, 0.9, 0.5, 20_000),
    "even_imbalanced, ipo": Setting(0.2, False, True, 0.1, 0.0, 0.01, 1_000),
    "uneven_balanced, ipo": Setting(0.5, True, True, 0.1, 0.0, 0.01, 1_000),
    "uneven_imbalanced, ipo": Setting(0.2, True, True, 0.1, 0.0, 0.01, 1_000),
}


def features(states: Tensor, actions: Tensor, groups: Tensor) -> Tensor:
    """phi(x, a, g), [N, 4]: a cosine and a sine for each coordinate of the state; group 1 has the two exchanged."""
    scale = (actions / ACTIONS + 1)[:, None]
    waves = torch.stack([scale * torch.cos(math.pi * states), torch.sin(math.pi * states) / scale], dim=2)
    return torch.where((groups == 1)[:, None, None], waves.flip(2), waves).flatten(1)


def pairs(count: int, share: float, uneven: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Differences of features, chosen minus rejected [N, 4], and groups [N]; the larger reward is always chosen."""
    states = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    groups = (torch.arange(count) >= round(share * count)).long()
    first = torch.randint(ACTIONS, (count,), generator=generator)
    other = (first + torch.randint(1, ACTIONS, (count,), generator=generator)) % ACTIONS
    if uneven:
        side = 2 * torch.randint(2, (count,), generator=generator) - 1
        near = torch.where((first + side < 0) | (first + side >= ACTIONS), first - side, first + side)
        other = torch.where(groups == 0, near, (first + ACTIONS // 2) % ACTIONS)
    difference = features(states, first, groups) - features(states, other, groups)
    better = (difference * REWARDS[groups]).sum(dim=1, keepdim=True)
    return torch.where(better >= 0, difference, -difference), groups


def trained(setting: Setting, method: str, differences: Tensor, groups: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """The policy's parameters [4] and the group weights [2] after all steps."""
    sizes = torch.bincount(groups, minlength=2).double()
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    if method == "importance":
        weights = importance_weights(sizes)
    loss: Callable[..., Tensor] = ipo_loss if setting.ipo else sigmoid_loss
    summed = torch.zeros_like(theta)
    for _ in range(setting.steps if method == "group-robust" or not setting.ipo else 1):
        theta = theta.detach().requires_grad_()
        losses = loss(differences @ theta, beta=setting.beta)
        if method == "group-robust":
            weights = update_group_weights(weights, losses, groups, step_size=setting.ascent)
        counts = _counts(method, weights, groups)
        if setting.ipo:
            theta = closed_form_ipo(differences, counts, beta=setting.beta)
        else:
            (gradient,) = torch.autograd.grad((counts * losses).sum(), theta)
            theta = theta - setting.rate * gradient
        summed = summed + theta.detach()
    # IPO's weights still swing when the steps end: the mean of the iterates is what converges.
    mean = setting.ipo and method == "group-robust"
    return (summed / setting.steps if mean else theta).detach(), weights


def _counts(method: str, weights: Tensor, groups: Tensor) -> Tensor:
    if method == "group-robust":
        return example_weights(weights, groups)
    if method == "importance":
        return weights[groups] / len(groups)
    return torch.full((len(groups),), 1 / len(groups), dtype=torch.float64)


def closed_form_ipo(differences: Tensor, counts: Tensor, *, beta: float, ridge: float = 1e-9) -> Tensor:
    """The log-linear policy with the least weighted IPO loss: (Y'WY + ridge)^-1 Y'W1 / (2 beta).

    Args:
        differences: Y, [N, D], features of chosen minus rejected.
        counts: W's diagonal, [N], >= 0.
        beta: > 0.
        ridge: >= 0.

    Returns:
        [D].
    """
    weighted = differences * counts[:, None]
    gram = differences.T @ weighted + ridge * torch.eye(differences.shape[1], dtype=differences.dtype)
    return torch.linalg.solve(gram, weighted.sum(dim=0)) / (2 * beta)


def reward_errors(theta: Tensor, generator: torch.Generator) -> Tensor:
    """Share of the best reward that the greedy policy misses, [2] by group, on fresh states."""
    found = []
    for group in (0, 1):
        states = torch.rand(TESTED // 2, 2, generator=generator, dtype=torch.float64)
        actions = torch.arange(ACTIONS).repeat(len(states))
        seen = features(states.repeat_interleave(ACTIONS, 0), actions, torch.full_like(actions, group))
        rewards = (seen @ REWARDS[group]).view(-1, ACTIONS)
        taken = rewards.gather(1, (seen @ theta).view(-1, ACTIONS).argmax(dim=1, keepdim=True))
        best = rewards.max(dim=1).values.mean()
        found.append((best - taken.mean()) / best)
    return torch.stack(found)


def measured(setting: Setting, method: str, seed: int) -> dict[str, Any]:
    """One seed's figures."""
    generator = torch.Generator().manual_seed(seed)
    differences, groups = pairs(PAIRS, setting.share, setting.uneven, generator)
    start = 5 * torch.rand(4, generator=generator, dtype=torch.float64)
    held, held_groups = pairs(TESTED, 0.5, setting.uneven, generator)
    theta, weights = trained(setting, method, differences, groups, start)
    loss: Callable[..., Tensor] = ipo_loss if setting.ipo else sigmoid_loss
    by_group = group_losses(loss(held @ theta, beta=setting.beta), held_groups, groups_count=2)
    return {
        "max_validation_loss": float(by_group.max()),
        "average_validation_loss": float(by_group.mean()),
        "max_reward_error": float(reward_errors(theta, generator).max()),
        "group_0_weight": float(weights[0]),
    }


def _all() -> list[dict[str, Any]]:
    cells = list(product(SETTINGS, METHODS, SEEDS))
    with progress_bar() as progress:
        return [
            {"setting": name, "method": method, "seed": seed, **measured(SETTINGS[name], method, seed)}
            for name, method, seed in progress.track(cells, description="seeds")
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the committed results")
    if not parser.parse_args().table:
        head = {"schema_version": 1, "command": "python benchmarks/group_robust/bandit.py"}
        head |= {"versions": {one: version(one) for one in ("pluralign", "torch")}}
        lines = ",\n".join(json.dumps(row) for row in _all())
        write_text(RESULTS, f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds with 95% intervals, and the reference's."""
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))["means"]
    lines = ["| setting | method | worst group's loss | mean loss | worst reward error | group 0's weight |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for setting in SETTINGS:
        for method in METHODS:
            found = [row for row in rows if (row["setting"], row["method"]) == (setting, method)]
            cells = []
            for name in ("max_validation_loss", "average_validation_loss", "max_reward_error", "group_0_weight"):
                values = [row[name] for row in found]
                half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
                digits = 1 if setting.endswith("ipo") and name.endswith("loss") else 3
                expected = reference[setting][method].get(name)
                beside = "" if expected is None else f" ({expected:g})"
                cells.append(f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}{beside}")
            lines.append(f"| {setting} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
