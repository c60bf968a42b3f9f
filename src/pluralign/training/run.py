"""The main job: from a configuration to a folder with an adapter for every person."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.anchoring import anchor_preferences, warn_of_losses
from pluralign.models.base import load_base
from pluralign.models.encoding import Encoder
from pluralign.models.given_models import model_encoder
from pluralign.models.matmul import quick_matmul
from pluralign.objectives import Objective
from pluralign.objectives.losses import MISMATCHED
from pluralign.preferences import Preference, data_hash, load_preferences, split_preferences
from pluralign.training.anchor_prompts import AnchorPrompts
from pluralign.training.arguments import training_arguments
from pluralign.training.bank.capacity import uses_bank
from pluralign.training.bank.snapshots import take_up
from pluralign.training.calls import Call
from pluralign.training.checkpoints import full_disk_explained
from pluralign.training.checks import check_seats, check_sharding
from pluralign.training.cluster import check_cluster, connected, train_on_cluster
from pluralign.training.given import read_given
from pluralign.training.growth import Growth, hashes_of, plan_growth, warn_of_learned_rows
from pluralign.training.listeners import Listeners
from pluralign.training.mismatched import give_mismatched
from pluralign.training.people import Census, Person, take_census
from pluralign.training.record import Record
from pluralign.training.runs import WIN_RATES, RunFolder, Standing
from pluralign.training.shares import Share
from pluralign.training.stages import first_stage, has_first_stage, second_stage
from pluralign.training.weighting import check_best_metric, warn_of_unknown_groups
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
    if config.plan:
        raise InputError("plan is set", fix="pluralign.plan(config) says what the run will take; train makes it.")
    with quick_matmul(), full_disk_explained(Path(config.output_dir)):
        run = Run(config)
        if has_first_stage(config):
            Run(first_stage(config)).train()
        return run.train()


@dataclass(slots=True)
class Prepared:
    """What a call knows before anything is begun.

    Attributes:
        data_hash: of the table.
        standing: of the folder.
        census: who there is.
        growth: who is to be trained.
        record: who is decided already.
        works: whether the folder is not as the call would leave it.
    """

    data_hash: str
    standing: Standing
    census: Census
    growth: Growth
    record: Record
    works: bool


class Run:
    """The stages of one call.

    Raises:
        InputError: the configuration cannot be used.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.objective = config, Objective(config.loss, config.anchor)
        # What is trained: of a run with a first stage, the folder knows the configuration as it was given.
        self.staged = second_stage(config)
        check_seats(self.staged)
        self.folder = folder = RunFolder(config.output_dir)
        self.arguments = training_arguments(config.training, output_dir=folder.path, device=config.device)
        check_sharding(config, self.arguments)
        self.together = uses_bank(config, self.arguments)
        check_best_metric(config)
        if config.engine == "ray":
            check_cluster(self.arguments)
        self.probes = _read_probes(config)
        self.anchor_prompts = AnchorPrompts.of(config)

    def train(self) -> TrainResult:
        # Of several processes of one run, the one that writes holds the folder for all.
        with self.folder.locked("pluralign train") if self.arguments.should_save else contextlib.nullcontext():
            return self._train()

    def _train(self) -> TrainResult:
        call = Call(self.arguments.device)
        config, found = self.config, self.prepare()
        census, growth, record, works = found.census, found.growth, found.record, found.works
        on_cluster = works and config.engine == "ray"
        with connected() if on_cluster else contextlib.nullcontext():
            if growth.people and (found.standing is Standing.NEW or self.folder.unfinished() is None):
                # On a cluster the slots are held by machines that are not asked yet.
                self.worker.check_adapters(1 if on_cluster else len(self._own_share(growth.people)))
            # Only now: what is refused leaves the folder to the corrected command.
            self._wait()
            if works and self.arguments.should_save:
                fingerprint = self.worker.base.fingerprint
                self.folder.begin(
                    config,
                    growth.work,
                    base_fingerprint=fingerprint,
                    standing=found.standing,
                    contents=self._contents(),
                )
                if growth.work.update and (self.folder.path / WIN_RATES).is_dir():
                    from pluralign.evaluation.forgetting import forget_win_rates

                    # They were of the policies that are replaced now.
                    forget_win_rates(self.folder.path, growth.work.update)
            self._wait()
            call.over("preparation", people=len(growth.people))
            self._train_people(census, growth, record, on_cluster=on_cluster)
            call.over("training")
        skipped = {**census.skipped, **record.skipped}
        if self.arguments.should_save:
            if works or not self.folder.evaluation.exists():
                self._evaluate(census, growth, record, skipped)
                call.over("evaluation")
            if works:
                call.write(self.folder.path)
            self.folder.end(config, found.data_hash)
        return TrainResult(self.folder.path, record.finished, skipped, growth.changed, growth.absent)

    def prepare(self) -> Prepared:
        """Load the table and the base, and find out what is to be done; nothing is written.

        Raises:
            InputError: data or model cannot be used, or the folder holds another run.
        """
        config = self.config
        preferences = load_preferences(config.data, config.seed)
        digest = data_hash(preferences)
        standing = self.folder.check(config, digest)
        training, held_out = split_preferences(
            preferences,
            validation=config.data.validation,
            by=config.data.split_by,
            per=config.parameters.per,
            seed=config.seed,
            data=config.data,
        )
        hashes = hashes_of(config, preferences, training, held_out)
        # Before the base takes its room: references may be models of their own.
        encoder = model_encoder(config, config.data)
        _check_probes(self.probes, encoder)
        self.listeners = Listeners.of(config.conditioning, encoder, preferences)
        training, held_out = self.listeners.condition(training), self.listeners.condition(held_out)
        census = take_census(config, self.objective, encoder, training, held_out)
        if MISMATCHED in self.objective.branches:
            give_mismatched(census)
        self.anchor_prompts.give_to(census, config, encoder)
        given = read_given(self.staged, census, self.objective, self.arguments)
        self.worker = worker = Worker(self.staged, self.arguments, self.folder, together=self.together, given=given)
        if standing is not Standing.NEW and not self.folder.check_base(config, worker.base.fingerprint):
            standing = Standing.NEW
        if standing is not Standing.NEW and not self.folder.check_contents(config, self._contents()):
            standing = Standing.NEW
        if standing is Standing.SAME and not self._is_as_begun():
            standing = Standing.NEW
        record = Record(self.folder, config.parameters.kind, hashes=hashes, writes=self.arguments.should_save)
        growth = plan_growth(config, self.folder, record, census, data_hash=digest, standing=standing)
        works = bool(growth.people) or standing is not Standing.SAME or self.folder.unfinished() is not None
        return Prepared(digest, standing, census, growth, record, works)

    def _contents(self) -> dict[str, str | None]:
        """Of the files beside the table: key of the configuration -> hash."""
        return {"anchor.base.prompts": self.anchor_prompts.digest, **self.worker.given.digests}

    def _is_as_begun(self) -> bool:
        """Whether what only some kinds of runs are made of is as the folder's run was begun with.

        Raises:
            InputError: it is not, and `overwrite` is not set.
        """
        return True

    def _train_people(self, census: Census, growth: Growth, record: Record, *, on_cluster: bool) -> None:
        config, people = self.config, {person.user: person for person in census.people}
        order, users, own = list(people), [person.user for person in growth.people], self._own_share(growth.people)
        sizes = [len(person.train) for person in growth.people]
        # From here on everybody's rows are held by `people` alone, and go when they have been used.
        census.people, growth.people = [], []
        record.skipped = {**census.skipped, **record.skipped}
        if self.arguments.should_save:
            warn_of_losses(census.problems, census.cuts)
            for person in people.values():
                warn_of_unknown_groups(config.weighting, person.train, person.held_out)
            growth.warn()
        if on_cluster:
            train_on_cluster(self.worker, people, users, sizes, record, growth.work.update)
        else:
            self._train_here(people, users, own, record)
        if self.arguments.should_save:
            self.folder.gather_metrics()
            shutil.rmtree(self.folder.path / "state", ignore_errors=True)
        record.arrange(order)
        record.write_index()

    @property
    def _share(self) -> Share:
        """What this process, of those that torchrun has started, trains by itself."""
        return Share(self.arguments.process_index, self.arguments.world_size) if self.together else Share()

    def _own_share(self, people: Sequence[Person]) -> list[str]:
        return self._share.of([person.user for person in people], [len(person.train) for person in people])

    def _train_here(self, people: dict[str, Person], users: Sequence[str], own: Sequence[str], record: Record) -> None:
        """Train in this process, and in the others that torchrun has started."""
        share = self._share
        if self.together and self.arguments.should_save:
            take_up(self.folder, share.count, users)
        self._wait()
        self.worker.train(people, own, record, share)
        self._wait()
        if share.count > 1:
            for others in gather_object([(record.finished, record.skipped, record.trained)]):
                record.add(*others)

    def _evaluate(self, census: Census, growth: Growth, record: Record, skipped: dict[str, str]) -> None:
        """Write `evaluation.json`, where there is something to measure with; who was measured before is not again."""
        # The one import upwards: a run ends with its evaluation, and evaluation stands above training.
        from pluralign.evaluation.results import merged

        config = self.config
        if not record.finished or not (census.held_out or config.evaluation.asks):
            return
        before = self.measured_before()
        only = None
        if before is not None:
            only = [user for user in record.finished if user not in before.people or user in growth.work.update]
            if not only and skipped.items() <= before.skipped.items():
                return
        else:
            warn_of_learned_rows(record.finished, {user: found["training"] for user, found in record.hashes.items()})
        evaluation = self.measure(record.finished, census.held_out, skipped=skipped, only=only)
        if before is not None:
            evaluation = merged(before, evaluation, order=record.finished)
            if config.evaluation.identities:
                warnings.warn(
                    "evaluation.json has no `identities` any more, which are of everybody's pairs at once: "
                    "`pluralign evaluate --evaluation.identities` measures them anew",
                    stacklevel=2,
                )
        evaluation.write(self.folder.evaluation)

    def measure(
        self,
        adapters: Mapping[str, Path],
        held_out: Sequence[Preference],
        *,
        skipped: Mapping[str, str],
        only: Collection[str] | None,
        done: Callable[[str], None] = lambda part: None,
    ) -> Evaluation:
        """Measure people's policies; see `evaluate_people`."""
        from pluralign.evaluation import evaluate_people  # upwards, as in `_evaluate`
        from pluralign.evaluation.probes import world_of

        config, worker = self.config, self.worker
        # Full fine-tuning has changed the base in memory, and sharding has taken it apart.
        used_up = config.parameters.kind == "full" or self.arguments.fsdp or self.arguments.deepspeed
        base = load_base(worker.model_config) if used_up else worker.base
        anchored = partial(
            anchor_preferences,
            base,
            encoder=worker.encoder,
            settings=config.base_responses,
            cache=worker.cache,
            layout=worker.layout,
            branches=("chosen", "rejected"),
            seed=config.seed,
        )
        rows, others = anchored(held_out), None
        if config.evaluation.identities:
            others = {name: anchored(some) for name, some in self.listeners.others(held_out, config.seed).items()}
        done("held-out rows")
        return evaluate_people(
            base,
            adapters,
            rows,
            per=config.parameters.per,
            settings=config.evaluation,
            generation=config.base_responses.greedy(),
            encoder=worker.encoder,
            cache=worker.cache,
            layout=worker.layout,
            seed=config.seed,
            skipped=skipped,
            world=world_of("world") if config.data.path == "world" else None,
            only=only,
            other_identities=others,
            done=done,
        )

    def measured_before(self) -> Evaluation | None:
        """The evaluation that is there, where it can be added to: made by this configuration, a person an adapter."""
        from pluralign.evaluation import read_evaluation  # upwards, as in `_evaluate`

        config, path = self.config, self.folder.evaluation
        if config.parameters.per == "none" or not path.exists():
            return None
        before = read_evaluation(path)
        generation = config.base_responses.greedy()
        same = before.is_like(self.worker.base.fingerprint, config.evaluation, generation, config.seed)
        return before if same else None

    def _wait(self) -> None:
        """Until every process is here: what one writes, the others must not find before they have looked."""
        self.arguments.distributed_state.wait_for_everyone()


def _read_probes(config: TrainConfig) -> list[ProbeSet]:
    """Raise now, and not after the training, where probes or survey answers cannot be read, or tasks are not there."""
    from pluralign.evaluation import load_probes  # upwards, as in `_evaluate`
    from pluralign.evaluation.asked import check_asked

    check_asked(config.evaluation)
    return load_probes(config.evaluation.probes, max_probes=config.evaluation.max_probes, seed=config.seed)


def _check_probes(probes: Sequence[ProbeSet], encoder: Encoder) -> None:
    """Raise now, and not after the training, where the probes cannot be put to the model."""
    from pluralign.evaluation.evaluation import check_questions  # upwards, as in `_evaluate`

    check_questions(probes, encoder)
