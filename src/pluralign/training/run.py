"""The main job: from a configuration to a folder with an adapter for every person."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from transformers import TrainingArguments

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.anchoring import anchor_preferences, warn_of_losses
from pluralign.models.base import load_base
from pluralign.models.encoding import Encoder
from pluralign.models.matmul import quick_matmul
from pluralign.objectives import Objective
from pluralign.preferences import data_hash, load_preferences, split_preferences
from pluralign.training.arguments import training_arguments
from pluralign.training.bank.capacity import check_bank, uses_bank
from pluralign.training.bank.snapshots import take_up
from pluralign.training.checkpoints import full_disk_explained
from pluralign.training.cluster import check_cluster, connected, train_on_cluster
from pluralign.training.growth import Growth, hashes_of, plan_growth, warn_of_learned_rows
from pluralign.training.people import Census, Person, take_census
from pluralign.training.record import Record
from pluralign.training.runs import RunFolder, Standing
from pluralign.training.shares import Share
from pluralign.training.worker import Worker

if TYPE_CHECKING:
    from pluralign.evaluation import Evaluation, ProbeSet


@dataclass
class TrainResult:
    """What a run left.

    Attributes:
        output_dir: the run's folder.
        adapters: person -> folder of the adapter (of the whole model, for full fine-tuning).
        skipped: person -> why there is none, or why its training ended early; the command's exit code is then 1.
        changed: people who were left as they are and whose rows have changed since; `update` trains them anew.
        absent: people who have an adapter and no row in the table any more.
    """

    output_dir: Path
    adapters: dict[str, Path]
    skipped: dict[str, str]
    changed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def train(config: TrainConfig) -> TrainResult:
    """Train everybody of a table; the same call on the same folder goes on where it was stopped.

    On a finished folder and a table that has changed, people who are new are trained and added, and those whom `update`
    names are trained anew; everybody else is left as they are.

    Raises:
        InputError: configuration, data or model cannot be used, the folder holds another run, or another process is at
            work on it.
        PluralignError: the disk is full; what was finished is whole, and the same call goes on once there is room.
    """
    objective = Objective(config.loss, config.anchor)
    _check(config)
    folder = RunFolder(config.output_dir)
    with quick_matmul(), full_disk_explained(folder.path):
        return _Run(config, objective, folder).train()


class _Run:
    """The stages of one call."""

    def __init__(self, config: TrainConfig, objective: Objective, folder: RunFolder) -> None:
        self.config, self.objective, self.folder = config, objective, folder
        self.arguments = training_arguments(config.training, output_dir=folder.path, device=config.device)
        _check_sharding(config, self.arguments)
        self._together = uses_bank(config, self.arguments)
        if config.engine == "ray":
            check_cluster(self.arguments)
        self.probes = _read_probes(config)

    def train(self) -> TrainResult:
        # Of several processes of one run, the one that writes holds the folder for all.
        with self.folder.locked("pluralign train") if self.arguments.should_save else contextlib.nullcontext():
            return self._train()

    def _train(self) -> TrainResult:
        config = self.config
        preferences = load_preferences(config.data, config.seed)
        digest = data_hash(preferences)
        standing = self.folder.check(config, digest)
        self.worker = worker = Worker(config, self.arguments, self.folder, together=self._together)
        if standing is not Standing.NEW and not self.folder.check_base(config, worker.base.fingerprint):
            standing = Standing.NEW
        training, held_out = split_preferences(
            preferences,
            validation=config.data.validation,
            by=config.data.split_by,
            per=config.parameters.per,
            seed=config.seed,
            data=config.data,
        )
        _check_probes(self.probes, worker.encoder)
        census = take_census(config, self.objective, worker.encoder, training, held_out)
        hashes = hashes_of(config, preferences, training, held_out)
        record = Record(self.folder, config.parameters.kind, hashes=hashes, writes=self.arguments.should_save)
        growth = plan_growth(config, self.folder, record, census, data_hash=digest, standing=standing)
        del preferences, training, held_out
        works = bool(growth.people) or standing is not Standing.SAME or self.folder.unfinished() is not None
        on_cluster = works and config.engine == "ray"
        with connected() if on_cluster else contextlib.nullcontext():
            # Only now: what is refused leaves the folder to the corrected command.
            self._wait()
            if works and self.arguments.should_save:
                self.folder.begin(config, growth.work, base_fingerprint=worker.base.fingerprint, standing=standing)
            self._wait()
            self._train_people(census, growth, record, on_cluster=on_cluster)
        skipped = {**census.skipped, **record.skipped}
        if self.arguments.should_save:
            if works or not self.folder.evaluation.exists():
                self._evaluate(census, growth, record, skipped)
            self.folder.end(config, digest)
        return TrainResult(self.folder.path, record.finished, skipped, growth.changed, growth.absent)

    def _train_people(self, census: Census, growth: Growth, record: Record, *, on_cluster: bool) -> None:
        people = {person.user: person for person in census.people}
        order, users = list(people), [person.user for person in growth.people]
        sizes = [len(person.train) for person in growth.people]
        # From here on everybody's rows are held by `people` alone, and go when they have been used.
        census.people, growth.people = [], []
        record.skipped = {**census.skipped, **record.skipped}
        if self.arguments.should_save:
            warn_of_losses(census.problems, census.cuts)
            growth.warn()
        if on_cluster:
            train_on_cluster(self.worker, people, users, sizes, record, growth.work.update)
        else:
            self._train_here(people, users, sizes, record)
        if self.arguments.should_save:
            self.folder.gather_metrics()
            shutil.rmtree(self.folder.path / "state", ignore_errors=True)
        record.arrange(order)
        record.write_index()

    def _train_here(
        self, people: dict[str, Person], users: Sequence[str], sizes: Sequence[int], record: Record
    ) -> None:
        """Train in this process, and in the others that torchrun has started."""
        share = Share(self.arguments.process_index, self.arguments.world_size) if self._together else Share()
        if self._together and self.arguments.should_save:
            take_up(self.folder, share.count, users)
        self._wait()
        self.worker.train(people, share.of(users, sizes), record, share)
        self._wait()
        if share.count > 1:
            for others in gather_object([(record.finished, record.skipped, record.trained)]):
                record.add(*others)

    def _evaluate(self, census: Census, growth: Growth, record: Record, skipped: dict[str, str]) -> None:
        """Write `evaluation.json`, where there is something to measure with; who was measured before is not again."""
        # The one import upwards: a run ends with its evaluation, and evaluation stands above training.
        from pluralign.evaluation import evaluate_people
        from pluralign.evaluation.probes import world_of
        from pluralign.evaluation.results import merged

        config = self.config
        if not record.finished or not (census.held_out or config.evaluation.probes):
            return
        before = self._measured_before()
        only = None
        if before is not None:
            only = [user for user in record.finished if user not in before.people or user in growth.work.update]
            if not only and skipped.items() <= before.skipped.items():
                return
        else:
            warn_of_learned_rows(record.finished, {user: found["training"] for user, found in record.hashes.items()})
        # Full fine-tuning has changed the base in memory, and sharding has taken it apart.
        used_up = config.parameters.kind == "full" or self.arguments.fsdp or self.arguments.deepspeed
        worker = self.worker
        base = load_base(worker.model_config) if used_up else worker.base
        held_out = anchor_preferences(
            base,
            census.held_out,
            encoder=worker.encoder,
            settings=config.base_responses,
            cache=worker.cache,
            layout=worker.layout,
            branches=("chosen", "rejected"),
            seed=config.seed,
        )
        evaluation = evaluate_people(
            base,
            record.finished,
            held_out,
            per=config.parameters.per,
            settings=config.evaluation,
            generation=config.base_responses,
            encoder=worker.encoder,
            cache=worker.cache,
            layout=worker.layout,
            seed=config.seed,
            skipped=skipped,
            world=world_of("world") if config.data.path == "world" else None,
            only=only,
        )
        if before is not None:
            evaluation = merged(before, evaluation, order=record.finished)
        evaluation.write(self.folder.evaluation)

    def _measured_before(self) -> Evaluation | None:
        """The evaluation that is there, where it can be added to: made by this configuration, a person an adapter."""
        from pluralign.evaluation import read_evaluation  # upwards, as in `_evaluate`

        config, path = self.config, self.folder.evaluation
        if config.parameters.per == "none" or not path.exists():
            return None
        before = read_evaluation(path)
        same = before.is_like(self.worker.base.fingerprint, config.evaluation, config.base_responses, config.seed)
        return before if same else None

    def _wait(self) -> None:
        """Until every process is here: what one writes, the others must not find before they have looked."""
        self.arguments.distributed_state.wait_for_everyone()


def _check(config: TrainConfig) -> None:
    parameters = config.parameters
    check_bank(config)
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
