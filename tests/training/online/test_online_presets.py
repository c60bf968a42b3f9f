"""Every preset that samples: it trains, lowers its objective within a phase, and keeps its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pluralign.online_config import OnlineConfig
from pluralign.resolve import PRESETS, preset, resolve
from pluralign.seats import LossConfig
from pluralign.training.online.files import read_pairs
from pluralign.training.online.run import online

METHODS = sorted(path.stem for path in PRESETS.glob("*.yaml") if "pairs" in preset(path.stem))


@pytest.mark.parametrize("method", METHODS)
def test_online_preset(method: str, make_rows: Any, make_online: Any, counting: Any, metrics: Any) -> None:
    given, own = make_online(make_rows("ab", pairs=24)), resolve(OnlineConfig, {"method": method})
    generation = given.pairs.generation
    passes = 1 if method == "online-dpo" else 4
    config = replace(
        given,
        method=method,
        loss=own.loss,
        reference=own.reference,
        extrapolation=own.extrapolation,
        pairs=replace(own.pairs, generation=generation),
        training=replace(given.training, num_train_epochs=passes, learning_rate=5e-3),
    )
    result = online(config, counting())
    assert set(result.adapters) == {"a", "b"}
    losses = [row["loss"] for row in metrics(config.output_dir, "a") if "loss" in row]
    first = len(losses) if own.pairs.phases == "every_step" else len(losses) // int(own.pairs.phases)
    assert min(losses[1:first]) < losses[0]
    phases = sorted((Path(config.output_dir) / "phases").iterdir())
    assert len(phases) == (len(losses) if own.pairs.phases == "every_step" else own.pairs.phases)
    pairs = [pair for place in phases for pair in read_pairs(place / "pairs-0000.jsonl")]
    assert all((pair.references is None) == (own.reference.policy == "fixed") for pair in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"type": "ipo", "length_average": True}},
        {"loss": {"type": "hinge"}},
        {"loss": {"type": "robust", "label_smoothing": 0.1}},
        {"loss": {"type": "sppo_hard"}},
        {"loss": {"type": "simpo", "beta": 2.0}},
        {"loss": {"type": "orpo"}},
        {"loss": {"type": "kto"}},
        {"loss": {"type": "contrast"}},
        {"anchor": ("base", 0.3)},
        {"anchor": ("chosen", 1.0)},
        {"anchor": ("nll", 1.0)},
        {"weighting": "importance"},
        {"weighting": "sampling"},
        {"weighting": "worst"},
    ],
    ids=str,
)
def test_losses_anchors_and_weightings_work_on_what_is_sampled(
    changes: Any, make_rows: Any, make_online: Any, counting: Any, metrics: Any
) -> None:
    rows = [{**row, "group": "gh"[number % 2]} for number, row in enumerate(make_rows("ab", pairs=16))]
    config = make_online(rows, training={"num_train_epochs": 3, "learning_rate": 5e-3})
    if "loss" in changes:
        config = replace(config, loss=LossConfig(**changes["loss"]))
    if "anchor" in changes:
        name, weight = changes["anchor"]
        getattr(config.anchor, name).weight = weight
    if "weighting" in changes:
        config.weighting.groups.by = changes["weighting"]
    assert set(online(config, counting()).adapters) == {"a", "b"}
    losses = [row["loss"] for row in metrics(config.output_dir, "a") if "loss" in row]
    assert min(losses[1 : len(losses) // 2]) < losses[0]
