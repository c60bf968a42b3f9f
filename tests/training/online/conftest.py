"""An online configuration on the tiny model, and an annotator that counts what it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from pluralign.annotators.protocol import Request, Verdict
from pluralign.config import TrainConfig
from pluralign.online_config import OnlineConfig, OnlineReferenceConfig, SampledPairsConfig
from pluralign.seats import GenerationConfig


class Counting:
    """Likes what has the larger hash: an opinion on every two texts that differ, and a different one for everybody."""

    name = "counting"

    def __init__(self, fails_after: int | None = None) -> None:
        self.asked: list[Request] = []
        self.fails_after = fails_after

    def annotate(self, requests: Sequence[Request]) -> list[Verdict]:
        if self.fails_after is not None and len(self.asked) + len(requests) > self.fails_after:
            raise RuntimeError("out of patience")
        self.asked += requests
        return [Verdict(scores=tuple(liking(request.user, text) for text in request.responses)) for request in requests]


def liking(user: str | None, text: str) -> float:
    return int(hashlib.sha256(f"{user}/{text}".encode()).hexdigest()[:8], 16) / 2**32


@pytest.fixture
def counting() -> type[Counting]:
    return Counting


@pytest.fixture
def make_online(make_config: Callable[..., TrainConfig]) -> Callable[..., OnlineConfig]:
    """As `make_config`; `pairs`, `reference`, `annotator` and `extrapolation` are groups like the others."""

    def make(table: list[dict[str, Any]], name: str = "online", **changes: Any) -> OnlineConfig:
        offline = make_config(table, name)
        config = OnlineConfig(
            **{one.name: getattr(offline, one.name) for one in fields(TrainConfig) if one.name != "reference"},
            reference=OnlineReferenceConfig(),
            pairs=SampledPairsConfig(generation=GenerationConfig(do_sample=True, temperature=2.0, max_new_tokens=6)),
        )
        for key, value in changes.items():
            nested = isinstance(value, dict)
            config = replace(config, **{key: replace(getattr(config, key), **value) if nested else value})
        return config

    return make
