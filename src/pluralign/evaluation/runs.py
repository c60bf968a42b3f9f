"""A finished run, evaluated again: its base, its adapters, and the very rows that it held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pluralign.config import DataConfig, EvaluateConfig, EvaluationConfig, ModelConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.evaluation.asked import check_asked
from pluralign.evaluation.evaluation import evaluate_people
from pluralign.evaluation.probes import world_of
from pluralign.evaluation.results import Evaluation
from pluralign.models.anchoring import adopt_anchored, anchor_preferences, encoder_of, warn_of_losses
from pluralign.models.base import load_base
from pluralign.models.cache import Cache
from pluralign.models.layout import choose_layout
from pluralign.models.matmul import quick_matmul
from pluralign.preferences import ALL, Preferences, data_hash, load_preferences, people_hashes, split_preferences
from pluralign.resolve import MADE_WITH, resolve
from pluralign.storage import check_place
from pluralign.training.growth import warn_of_learned_rows
from pluralign.training.index import read_index
from pluralign.training.listeners import Listeners, check_identities

DATA_HASH = "data_hash"


@quick_matmul()
def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate every person of a finished run and write `evaluation.json`.

    Args:
        config: the run, the data, what is measured. Without probes (tasks, survey answers) of its own it takes those
            the run names.

    Returns:
        What was written; people without a usable adapter are in `skipped`.

    Raises:
        InputError: there is no such run, its data has changed since, data or probes cannot be used, or the output
            cannot be written.
    """
    run = Path(config.run)
    trained = trained_config(run)
    output = Path(config.output or run / "evaluation.json")
    check_place(output)
    adapters, skipped = adapters_of(run, trained)
    data = config.data or trained.data
    settings = _settings(config.evaluation, trained.evaluation)
    check_identities(trained.conditioning, settings)
    check_asked(settings)
    table, rows = held_out_rows(run, trained, config.data, adapters)
    base = load_base(replace(model_of(trained), device=config.device))
    layout = choose_layout(base.model, base.tokenizer)
    encoder = encoder_of(base, data)
    cache = Cache(trained.cache_dir)
    adopt_anchored(rows, base=base, encoder=encoder, cache=cache, layout=layout)
    listeners = Listeners.of(trained.conditioning, encoder, table)
    rows = listeners.condition(rows)
    anchor = partial(
        anchor_preferences,
        base,
        encoder=encoder,
        settings=trained.base_responses,
        cache=cache,
        layout=layout,
        branches=("chosen", "rejected"),
        seed=trained.seed,
    )
    anchored, others = anchor(rows), None
    if settings.identities:
        others = {name: anchor(some) for name, some in listeners.others(rows, trained.seed).items()}
    warn_of_losses([str(problem) for problem in rows.problems], [row.encoded.cut for row in anchored])
    evaluation = evaluate_people(
        base,
        adapters,
        anchored,
        per=trained.parameters.per,
        settings=settings,
        generation=trained.base_responses.greedy(),
        encoder=encoder,
        cache=cache,
        layout=layout,
        seed=trained.seed,
        skipped=skipped,
        world=world_of("world") if data.path == "world" else None,
        other_identities=others,
    )
    evaluation.write(output)
    return evaluation


def adapters_of(run: Path, trained: TrainConfig) -> tuple[dict[str, Path], dict[str, str]]:
    """Owner -> folder of its policy, and owner -> why there is none.

    Raises:
        InputError: the run has no index of adapters, or a broken one.
    """
    if trained.parameters.kind == "full":
        return {ALL: run / "model"}, {}
    index = read_index(run)
    return {owner: run / "adapters" / folder for owner, folder in index.people.items()}, dict(index.skipped)


def trained_config(run: Path) -> TrainConfig:
    """What a run was made from.

    Raises:
        InputError: the folder is that of no run.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError("there is no config.yaml", where=str(run), fix="Give the output folder of `pluralign train`.")
    return resolve(TrainConfig, path)


def held_out_rows(
    run: Path, trained: TrainConfig, given: DataConfig | None, adapters: Mapping[str, Path]
) -> tuple[Preferences, Preferences]:
    """The table, and the rows of it that the run held out, found by the same split; of other data all rows.

    The run's own data is known by its content: moved and given by its new name, its training rows are not held out.

    Raises:
        InputError: the data cannot be used, or is another than the run was trained on and not given as such.
    """
    preferences = load_preferences(given or trained.data, trained.seed)
    recorded = made_with(run / "config.yaml").get(DATA_HASH)
    same = recorded == data_hash(preferences)
    if given and not same:
        return preferences, preferences
    if not same and recorded is not None:
        raise InputError(
            "the data hash is not that of the run: rows it was trained on may be held out now",
            where=str(trained.data.path),
            fix="Restore the data, give it to `pluralign train` on this folder, or name held-out pairs with --data.",
        )
    training, held_out = split_preferences(
        preferences,
        validation=trained.data.validation,
        by=trained.data.split_by,
        per=trained.parameters.per,
        seed=trained.seed,
        data=trained.data,
    )
    warn_of_learned_rows(adapters, people_hashes(training, trained.parameters.per))
    return preferences, held_out


def made_with(path: Path) -> dict[str, Any]:
    """What a `config.yaml` says its run was made with; empty where it says nothing."""
    found = yaml.safe_load(path.read_text(encoding="utf-8")).get(MADE_WITH)
    return found if isinstance(found, dict) else {}


def model_of(trained: TrainConfig) -> ModelConfig:
    """The base of a run, and how it was loaded."""
    keys = ModelConfig.__dataclass_fields__
    return ModelConfig(**{key: value for key, value in asdict(trained).items() if key in keys})


def _settings(asked: EvaluationConfig, trained: EvaluationConfig) -> EvaluationConfig:
    """What is asked for, and of what is not the run's own: probes, tasks, survey answers."""
    return replace(
        asked,
        probes=trained.probes if asked.probes is None else asked.probes,
        knowledge=asked.knowledge if asked.knowledge.names else trained.knowledge,
        distribution=asked.distribution if asked.distribution.tables else trained.distribution,
    )
