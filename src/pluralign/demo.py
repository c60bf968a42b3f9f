"""The main job on the embedded default: a few people of the small world, one adapter each, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pluralign.config import DemoConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.resolve import resolve
from pluralign.storage import write_jsonl

if TYPE_CHECKING:
    from pluralign.evaluation import Evaluation
    from pluralign.training import TrainResult


PAIRS = 160
"""Comparisons of each person."""


def run_demo(config: DemoConfig) -> tuple[TrainResult, Evaluation]:
    """Draw people's preferences from the world, train, evaluate.

    Args:
        config: where to, how many people, and by which method.

    Returns:
        The trained population and its evaluation, both also written below `config.output_dir`.

    Raises:
        InputError: the folder holds something else than an earlier demo, which would be overwritten.
    """
    from pluralign.evaluation import read_evaluation
    from pluralign.training import train
    from pluralign.world import World

    folder = Path(config.output_dir)
    table = folder / "world" / "preferences.jsonl"
    if not table.exists() and folder.is_dir() and any(folder.iterdir()):
        raise InputError("the folder holds no demo that could be replaced", where=str(folder), fix="Name another.")
    world = World(0)
    rows = world.preferences(world.users(config.users), pairs_per_user=PAIRS)
    write_jsonl(table, rows)
    settings = resolve(TrainConfig, demo_settings(config, table))
    result = train(settings)
    return result, read_evaluation(result.output_dir / "evaluation.json")


def demo_settings(config: DemoConfig, table: Path) -> dict[str, object]:
    """What the demo hands to `pluralign train`, by the same keys."""
    return {
        "method": config.method,
        "data": str(table),
        "output_dir": config.output_dir,
        "overwrite": True,
        "seed": config.seed,
        "training": {"max_steps": 120, "learning_rate": 5e-4, "warmup_steps": 5},
        "evaluation": {"probes": "world", "max_probes": 200, "max_prompts": 32},
    }
