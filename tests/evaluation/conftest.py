"""Handmade adapters on a tiny random base, and held-out rows of a few people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import EvaluationConfig, GenerationConfig, ParametersConfig
from pluralign.evaluation import Evaluation, evaluate_people
from pluralign.models import Base, Encoder, context_length
from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
from pluralign.models.anchoring import Anchored, anchor_preferences
from pluralign.models.cache import Cache
from pluralign.preferences import Preference, folder_name


def preferences(users: list[str], pairs: int = 6, **changes: Any) -> list[Preference]:
    """Every user on prompts of their own and on one that all share; each likes another ending."""
    return [
        Preference(
            prompt=f"q{number}?" if number else "all?",
            chosen=f"yes {number} {'!' * (place % 3 + 1)}",
            rejected=f"no {number} {'.' * (place % 3 + 1)}",
            user=user,
            group=changes.get("group", f"group-{place % 2}"),
        )
        for place, user in enumerate(users)
        for number in [0, *range(place * pairs + 1, place * pairs + pairs + 1)]
    ]


@dataclass
class Population:
    """A base, its rows and adapters, and a way to evaluate them."""

    base: Base
    folder: Path
    encoder: Encoder
    cache: Cache

    def anchored(self, rows: list[Preference], *, with_reference: bool = True) -> list[Anchored]:
        return anchor_preferences(
            self.base,
            rows,
            encoder=self.encoder,
            settings=GenerationConfig(max_new_tokens=8),
            cache=self.cache,
            layout="shared",
            branches=("chosen", "rejected"),
            with_reference=with_reference,
        )

    def adapter(self, user: str, size: float = 0.0, *, seed: int = 0, base: Base | None = None) -> Path:
        """An adapter whose B factors are noise of this size: 0 changes nothing, NaN ruins everything."""
        base = base or self.base
        policy = new_adapter(base, ParametersConfig(rank=2), seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, weights in policy.named_parameters():
                if "lora_B" in name:
                    weights.copy_(torch.randn(weights.shape, generator=generator) * size)
        path = self.folder / "adapters" / folder_name(user)
        save_adapter(policy, path, base=base, user=user)
        detach_adapter(policy)
        return path

    def evaluate(self, adapters: dict[str, Path], held_out: list[Anchored], **changes: Any) -> Evaluation:
        names = EvaluationConfig.__dataclass_fields__
        settings = {key: changes.pop(key) for key in list(changes) if key in names}
        arguments: dict[str, Any] = {
            "per": "user",
            "settings": EvaluationConfig(**settings),
            "generation": GenerationConfig(max_new_tokens=8),
            "encoder": self.encoder,
            "cache": self.cache,
            "layout": "shared",
            **changes,
        }
        return evaluate_people(self.base, adapters, held_out, **arguments)


@pytest.fixture
def population(make_base: Callable[..., Base], tmp_path: Path) -> Population:
    base = make_base()
    encoder = Encoder(
        base.tokenizer, max_prompt_length=128, max_response_length=64, context_length=context_length(base.model)
    )
    return Population(base, tmp_path, encoder, Cache(tmp_path / "cache"))


@pytest.fixture
def make_rows() -> Callable[..., list[Preference]]:
    return preferences
