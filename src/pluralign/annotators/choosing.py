"""From the configuration to the annotator that it names."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pluralign.annotation import AnnotatorConfig
from pluralign.annotators.function import FunctionAnnotator, WorldJudge
from pluralign.annotators.people import PeopleAnnotator
from pluralign.annotators.protocol import Annotator
from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.world import World

_KEYS = {"function": "function", "reward": "reward", "people": "people", "taste": "taste", "endpoint": "endpoint.url"}
"""Who annotates -> the key that names it."""


def annotator_of(config: AnnotatorConfig, run: TrainConfig, *, both_orders: bool = True) -> Annotator:
    """The annotator that a configuration names.

    Args:
        config: one of its keys is given, or none on the world.
        run: where the data is, and caches.
        both_orders: whether one that looks at two responses at a time swaps them by itself; else it takes them as they
            stand.

    Raises:
        InputError: none is named, or several; or the one that is cannot be used.
    """
    kind = _kind(config, run)
    if kind == "world":
        return WorldJudge(World(0))
    if kind == "function":
        return FunctionAnnotator.of_path(config.function)
    if kind == "people":
        return PeopleAnnotator.of_path(config.people, config.missing)
    if kind == "taste":
        from pluralign.annotators.taste import TasteAnnotator

        return TasteAnnotator.of_files(config.taste, config.answers, run.cache_dir)
    if kind == "reward":
        from pluralign.annotators.reward import RewardModel

        return RewardModel.load(config.reward, device=run.device, cache_dir=run.cache_dir)
    from pluralign.annotators.endpoint import EndpointAnnotator

    return EndpointAnnotator(config.endpoint, cache_dir=Path(run.output_dir) / "annotations", both_orders=both_orders)


def _kind(config: AnnotatorConfig, run: TrainConfig) -> str:
    values = asdict(config)
    given = [kind for kind, key in _KEYS.items() if (values["endpoint"]["url"] if "." in key else values[key])]
    named = {kind: f"annotator.{key}" for kind, key in _KEYS.items()}
    if config.type != "auto":
        others = [named[kind] for kind in given if kind != config.type]
        if others:
            raise InputError(f"annotator.type is {config.type} and {', '.join(others)} is given", fix="Keep one.")
        if config.type != "world" and config.type not in given:
            raise InputError(f"annotator.type is {config.type}", fix=f"Give {named[config.type]}.")
        return config.type
    if len(given) > 1:
        raise InputError(f"{', '.join(named[kind] for kind in given)} are given", fix="Keep one: who is to decide?")
    if given:
        return given[0]
    if run.data.path == "world":
        return "world"
    raise InputError("nobody says which response is better", fix=f"Give one of {', '.join(named.values())}.")
