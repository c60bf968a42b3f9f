"""What each row of a run is compared with: what every given reference says of its responses, and that as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pluralign.config import ReferenceConfig
from pluralign.errors import InputError
from pluralign.models.anchored_table import Anchored
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoded
from pluralign.models.given_models import ModelScores
from pluralign.models.given_references import BASE, GivenReference, adapter_logps
from pluralign.models.references import reference_logps
from pluralign.models.rows import Layout
from pluralign.objectives.references import (
    clip_to_trust_region,
    combine_references,
    confidence_weights,
    trust_region_widths,
)

PAIR = ("chosen", "rejected")
Said = Sequence[Mapping[str, float]]
"""Of each row, branch -> log-prob under one reference, summed over the response's tokens, nats."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What one row is compared with.

    Attributes:
        weights: sum 1; one of 1.0 where the references are one, else as many as there are references: the row's loss is
            then the weighted sum of its losses against each.
        logps: for each weight, branch -> log-prob, nats.
    """

    weights: tuple[float, ...]
    logps: tuple[dict[str, float], ...]

    def with_base(self, logp: float) -> Compared:
        """The same, with the base's own word on its own response."""
        return Compared(self.weights, tuple({**one, BASE: logp} for one in self.logps))


def uses_given(config: ReferenceConfig) -> bool:
    """Whether rows are compared with anything but the run's own base, or the policy's own past."""
    return bool(config.models) and config.models != [BASE]


def check_reference(config: ReferenceConfig) -> None:
    """Raise where the reference seat is out of its ranges or contradicts itself, before anything is loaded.

    `ema` needs no `compute`: its reference is computed in every step whatever `compute` says, which then only tells
    where the base's word on its own response comes from, where an anchor asks for it. What makes one of several
    references (`combine`, `weights`, `clip`, `swap_weights`) is refused where there are not several: a preset that sets
    it would otherwise train as if it were not there.

    Raises:
        InputError: naming the key.
    """
    _check_ranges(config)
    if config.ema is not None and config.models:
        raise InputError(
            f"reference.ema is {config.ema} and reference.models names {', '.join(config.models)}",
            fix="A reference that follows the policy stands alone: leave one of the two out.",
        )
    if config.compute != "cached" and uses_given(config):
        raise InputError(
            f"reference.compute is {config.compute} and reference.models names {', '.join(config.models)}",
            fix="Given references say log-probs of their own: take cached for them.",
        )
    if len(config.models) < 2:
        _check_alone(config)
    if config.swap_weights and (len(config.models) != 2 or config.combine != "harmonic"):
        raise InputError(
            f"reference.swap_weights is set, with {len(config.models)} references and combine {config.combine}",
            fix="It exchanges the weights of two references in their harmonic mean; leave it out.",
        )


def _check_ranges(config: ReferenceConfig) -> None:
    if config.ema is not None and not 0 <= config.ema < 1:
        raise InputError(f"reference.ema is {config.ema}", fix="It must be at least 0 and below 1.")
    if not 0 <= config.clip < math.inf:
        raise InputError(f"reference.clip is {config.clip}", fix="It must be a number >= 0; 0 clips nothing.")
    if not all(name.strip() for name in config.models):
        raise InputError(
            f"reference.models is {config.models}, with an empty name",
            fix="Name folders of models or adapters, hub ids, or base.",
        )
    if isinstance(config.weights, str):
        if config.weights not in ("equal", "confidence"):
            raise InputError(
                f"reference.weights is {config.weights!r}", fix="It is equal, confidence, or a list of numbers."
            )
        return
    if not all(0 <= weight < math.inf for weight in config.weights) or (config.weights and not any(config.weights)):
        raise InputError(f"reference.weights is {config.weights}", fix="Each is a number >= 0, and one is above 0.")
    if len(config.models) > 1 and len(config.weights) != len(config.models):
        raise InputError(
            f"reference.weights has {len(config.weights)} numbers for {len(config.models)} references",
            fix="Give one for each of reference.models, in their order.",
        )


def _check_alone(config: ReferenceConfig) -> None:
    """What needs several references."""
    usual = ReferenceConfig()
    for name in ("weights", "clip", "combine", "swap_weights"):
        value, plain = getattr(config, name), getattr(usual, name)
        if value != plain:
            there = f"names {config.models[0]} alone" if config.models else "names none"
            raise InputError(
                f"reference.{name} is {value}, and reference.models {there}",
                fix="Name at least two, the trusted one last, as --reference.models '[OTHER, base]'; or set "
                f"reference.{name} to {plain}.",
            )


def combine_rows(config: ReferenceConfig, said: Sequence[Said]) -> list[Compared]:
    """What each row is compared with.

    The others are clipped around the last reference, and weighed by what they said before (Le et al. 2024). A row with
    one response is taken for one whose responses are alike: `confidence` then gives the last reference all the weight,
    and adaptive widths are halves. A branch beside the pair has the row's weights, and half of an adaptive width.

    Args:
        config: one that `check_reference` accepts.
        said: what each reference says of each row; all of them name the same branches of a row.

    Returns:
        One a row, with the branches of that row.
    """
    if len(said) == 1:
        return [Compared((1.0,), (dict(row),)) for row in said[0]]
    if not said[0]:
        return []
    sides = {
        branch: _side(said, branch) for branch in dict.fromkeys([*PAIR, *(name for row in said[0] for name in row)])
    }
    weights = _weights(config, sides["chosen"], sides["rejected"])
    if config.clip > 0:
        sides = _clipped(config, sides)
    if config.combine == "losses":
        return [
            Compared(
                tuple(weights[:, number].tolist()),
                tuple({name: sides[name][k, number].item() for name in row} for k in range(len(said))),
            )
            for number, row in enumerate(said[0])
        ]
    combined = {
        name: combine_references(side, weights, combine=config.combine, swap=config.swap_weights).tolist()
        for name, side in sides.items()
    }
    return [Compared((1.0,), ({name: combined[name][number] for name in row},)) for number, row in enumerate(said[0])]


def _side(said: Sequence[Said], branch: str) -> Tensor:
    """Log-probs [K, N] float64 of a branch; where a row lacks it, of the other of its pair, or 0."""
    names = (branch, *PAIR)
    return torch.tensor(
        [[next((row[name] for name in names if name in row), 0.0) for row in rows] for rows in said],
        dtype=torch.float64,
    )


def _weights(config: ReferenceConfig, chosen: Tensor, rejected: Tensor) -> Tensor:
    """[K, N], sum 1 over K."""
    if config.weights == "confidence":
        return confidence_weights(chosen, rejected)
    given = [1.0] * len(chosen) if isinstance(config.weights, str) else config.weights
    return torch.tensor([weight / sum(given) for weight in given], dtype=torch.float64)[:, None].expand_as(chosen)


def _clipped(config: ReferenceConfig, sides: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every reference but the last in the trust region around the last."""
    widths: dict[str, Tensor | float] = dict.fromkeys(sides, config.clip)
    if config.clip_by == "adaptive":
        widths = dict.fromkeys(sides, config.clip / 2)
        adaptive = trust_region_widths(sides["chosen"], sides["rejected"], epsilon=config.clip)
        widths |= dict(zip(PAIR, adaptive, strict=True))
    return {
        name: torch.stack([*(clip_to_trust_region(one, side[-1], widths[name]) for one in side[:-1]), side[-1]])
        for name, side in sides.items()
    }


def compare_rows(
    base: Base,
    rows: Sequence[Anchored],
    config: ReferenceConfig,
    references: Sequence[GivenReference],
    scores: ModelScores,
    cache: Cache,
    *,
    layout: Layout,
) -> list[Compared]:
    """What each row is compared with.

    The branch `base` keeps the base's own log-prob whatever the references are: an anchor to what the base does asks
    what the base would do, not what others think of it.

    Args:
        base: with no adapter attached; adapters are attached in turn, and it is bare again afterwards.
        rows: with the tokens of the base.
        config: one that `check_reference` accepts.
        references: of `find_references`.
        scores: of `score_models`, with these rows among those that were scored.
        cache: of the run.
        layout: how rows go through the base; autocast decides precision, as in `reference_logps`.

    Raises:
        InputError: naming the reference: an adapter that cannot be attached, or a log-prob that is no number.
        LookupError: a row was not scored.
    """
    preferences = [row.preference for row in rows]
    asked = any(reference.kind == "base" for reference in references)
    own = reference_logps(
        base, [row.encoded if asked else _part(row.encoded, base=True) for row in rows], cache, layout=layout
    )
    others = [_part(row.encoded, base=False) for row in rows]
    said: list[list[dict[str, float]]] = []
    for reference in references:
        if reference.kind == "base":
            said.append([{name: logp for name, logp in row.items() if name != BASE} for row in own])
        elif reference.kind == "adapter":
            said.append(adapter_logps(base, reference, preferences, others, cache, layout))
        else:
            said.append([scores.of(reference, row) for row in preferences])
    compared = combine_rows(config, said)
    return [one.with_base(row[BASE]) if BASE in row else one for one, row in zip(compared, own, strict=True)]


def _part(row: Encoded, *, base: bool) -> Encoded:
    """The row with the base's own response alone, or without it."""
    kept = {name: ids for name, ids in row.response_ids.items() if (name == BASE) is base}
    return Encoded(row.prompt_ids, kept)
