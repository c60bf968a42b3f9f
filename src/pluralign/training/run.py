"""The main job: from a configuration to a folder with an adapter for every person."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import TrainingArguments

from pluralign.config import ModelConfig, TrainConfig
from pluralign.errors import InputError, PluralignError
from pluralign.models.adapters import read_index
from pluralign.models.anchoring import Anchored, adopt_anchored, anchor_preferences, encoder_of, warn_of_losses
from pluralign.models.base import load_base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoder
from pluralign.models.layout import choose_layout
from pluralign.models.references import reference_logps
from pluralign.models.rows import Layout
from pluralign.objectives import Objective
from pluralign.preferences import data_hash, load_preferences, split_preferences
from pluralign.training.arguments import local_device, training_arguments
from pluralign.training.checkpoints import disk_is_full
from pluralign.training.people import Census, Person, take_census
from pluralign.training.population import Population, Rows
from pluralign.training.runs import RunFolder

if TYPE_CHECKING:
    from pluralign.evaluation import ProbeSet


@dataclass
class TrainResult:
    """What a run left.

    Attributes:
        output_dir: the run's folder.
        adapters: person -> folder of the adapter (of the whole model, for full fine-tuning).
        skipped: person -> why there is none, or why its training ended early; the command's exit code is then 1.
    """

    output_dir: Path
    adapters: dict[str, Path]
    skipped: dict[str, str]


def train(config: TrainConfig) -> TrainResult:
    """Train everybody of a table, one after another; the same call on the same folder goes on where it was stopped.

    Raises:
        InputError: configuration, data or model cannot be used, or the folder holds another run.
        PluralignError: the disk is full; what was finished is whole, and the same call goes on once there is room.
    """
    objective = Objective(config.loss, config.anchor)
    _check(config)
    folder = RunFolder(config.output_dir)
    with _explained(folder):
        return _Run(config, objective, folder).train()


class _Run:
    """The stages of one call."""

    def __init__(self, config: TrainConfig, objective: Objective, folder: RunFolder) -> None:
        self.config, self.objective, self.folder = config, objective, folder
        self.arguments = training_arguments(config.training, output_dir=folder.path, device=config.device)
        _check_sharding(config, self.arguments)
        self.cache = Cache(config.cache_dir)
        self.probes = _read_probes(config)

    def train(self) -> TrainResult:
        config = self.config
        preferences = load_preferences(config.data, config.seed)
        digest = data_hash(preferences)
        resume = self.folder.check(config, digest)
        self.base = load_base(self._model_config())
        resume = resume and self.folder.check_base(config, self.base.fingerprint)
        training, held_out = split_preferences(
            preferences,
            validation=config.data.validation,
            by=config.data.split_by,
            per=config.parameters.per,
            seed=config.seed,
            data=config.data,
        )
        self.encoder = encoder_of(self.base, config.data)
        _check_probes(self.probes, self.encoder)
        self.layout: Layout = choose_layout(self.base.model, self.base.tokenizer)
        census = take_census(config, self.objective, self.encoder, training, held_out)
        # Only now: what is refused leaves the folder to the corrected command.
        self._wait()
        if self.arguments.should_save:
            self.folder.claim(config, data_hash=digest, base_fingerprint=self.base.fingerprint, resume=resume)
        self._wait()
        population = self._train_people(census, resume)
        skipped = {**census.skipped, **population.skipped}
        self._evaluate(census, population, skipped)
        return TrainResult(self.folder.path, population.finished, skipped)

    def _train_people(self, census: Census, resume: bool) -> Population:
        population = Population(self.config, self.base, self.objective, self.arguments, self.folder, self.layout)
        users = [person.user for person in census.people]
        index = self.folder.adapters / "index.json"
        if resume:
            population.recall(users, read_index(self.folder.path).skipped if index.exists() else {})
        population.skipped = {**census.skipped, **population.skipped}
        self._wait()
        remaining = set(population.remaining(users))
        people = [person for person in census.people if person.user in remaining]
        anchored = self._anchor(people)
        if self.arguments.should_save:
            everything = [row for rows in anchored.values() for row in (*rows.train, *rows.held_out)]
            warn_of_losses(census.problems, [row.encoded for row in everything])
        population.train(anchored)
        return population

    def _anchor(self, people: Sequence[Person]) -> dict[str, Rows]:
        """Everybody's rows at once: what people share is computed once."""
        flat = [row for person in people for row in (*person.train, *person.held_out)]
        if not flat:
            return {}
        # The first process fills the cache, and the others read it.
        with self.arguments.main_process_first(local=False, desc="anchoring"):
            adopt_anchored(flat, base=self.base, encoder=self.encoder, cache=self.cache, layout=self.layout)
            rows = anchor_preferences(
                self.base,
                flat,
                encoder=self.encoder,
                settings=self.config.base_responses,
                cache=self.cache,
                layout=self.layout,
                branches=self.objective.branches,
                with_reference=False,
                seed=self.config.seed,
            )
            if self.objective.needs_reference and self.config.reference.compute == "cached":
                rows = self._with_references(rows)
        remaining = iter(rows)
        return {
            person.user: Rows([next(remaining) for _ in person.train], [next(remaining) for _ in person.held_out])
            for person in people
        }

    def _with_references(self, rows: Sequence[Anchored]) -> list[Anchored]:
        # In the precision of training: a reference in another one would give the first step a margin.
        device = self.base.device.type
        kind = torch.float16 if self.arguments.fp16 else torch.bfloat16
        with torch.autocast(device, dtype=kind, enabled=self.arguments.bf16 or self.arguments.fp16):
            found = reference_logps(self.base, [row.encoded for row in rows], self.cache, layout=self.layout)
        return [replace(row, reference=logps) for row, logps in zip(rows, found, strict=True)]

    def _evaluate(self, census: Census, population: Population, skipped: dict[str, str]) -> None:
        """Write `evaluation.json`, where there is something to measure with and anything new to measure."""
        # The one import upwards: a run ends with its evaluation, and evaluation stands above training.
        from pluralign.evaluation import evaluate_people
        from pluralign.evaluation.probes import world_of

        config, path = self.config, self.folder.path / "evaluation.json"
        wanted = bool(census.held_out or config.evaluation.probes) and bool(population.finished)
        if not wanted or not self.arguments.should_save or (path.exists() and not population.trained):
            return
        # Full fine-tuning has changed the base in memory, and sharding has taken it apart.
        used_up = config.parameters.kind == "full" or population.sharded
        base = load_base(self._model_config()) if used_up else self.base
        held_out = anchor_preferences(
            base,
            census.held_out,
            encoder=self.encoder,
            settings=config.base_responses,
            cache=self.cache,
            layout=self.layout,
            branches=("chosen", "rejected"),
            seed=config.seed,
        )
        evaluation = evaluate_people(
            base,
            population.finished,
            held_out,
            per=config.parameters.per,
            settings=config.evaluation,
            generation=config.base_responses,
            encoder=self.encoder,
            cache=self.cache,
            layout=self.layout,
            seed=config.seed,
            skipped=skipped,
            world=world_of("world") if config.data.path == "world" else None,
        )
        evaluation.write(path)

    def _model_config(self) -> ModelConfig:
        return replace(self.config, device=local_device(self.arguments, self.config.device))

    def _wait(self) -> None:
        """Until every process is here: what one writes, the others must not find before they have looked."""
        self.arguments.distributed_state.wait_for_everyone()


def _check(config: TrainConfig) -> None:
    parameters = config.parameters
    if parameters.kind == "full" and parameters.per != "none":
        raise InputError(
            f"parameters.kind is full and parameters.per is {parameters.per}",
            fix="A whole model for each would be its size many times: take kind lora, or per none.",
        )
    if parameters.kind == "full" and config.reference.compute == "forward":
        raise InputError(
            "reference.compute is forward and parameters.kind is full",
            fix="The forward leaves the adapter out, and there is none: take cached.",
        )


def _check_sharding(config: TrainConfig, arguments: TrainingArguments) -> None:
    if (arguments.fsdp or arguments.deepspeed) and config.parameters.per != "none":
        raise InputError(
            f"the model is sharded (fsdp or deepspeed) and parameters.per is {config.parameters.per}",
            where="training.extra_arguments",
            fix="A sharded base cannot pass from one person to the next: take per none, or DDP (torchrun alone).",
        )


def _read_probes(config: TrainConfig) -> list[ProbeSet]:
    """Raise now, and not after the training, where the probes cannot be read."""
    from pluralign.evaluation import load_probes  # upwards, as in `_evaluate`

    return load_probes(config.evaluation.probes, max_probes=config.evaluation.max_probes, seed=config.seed)


def _check_probes(probes: Sequence[ProbeSet], encoder: Encoder) -> None:
    """Raise now, and not after the training, where the probes cannot be put to the model."""
    from pluralign.evaluation.evaluation import check_questions  # upwards, as in `_evaluate`

    check_questions(probes, encoder)


@contextlib.contextmanager
def _explained(folder: RunFolder) -> Iterator[None]:
    """A full disk said in words; where it struck, the writer has removed its half."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not disk_is_full(error):
            raise
        raise PluralignError(
            f"{folder.path}: the disk is full. Nothing is half-written, and who is finished is kept: make room and "
            "give the same command again"
        ) from error
