"""People on a Ray cluster: shares of them as tasks, each trained by a worker on a base of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from pluralign.config import TrainConfig
from pluralign.errors import InputError, PluralignError
from pluralign.progress import progress_bar
from pluralign.storage import write_text
from pluralign.training.arguments import training_arguments
from pluralign.training.bank.snapshots import Snapshots, take_up, workers_before
from pluralign.training.checkpoints import full_disk_explained
from pluralign.training.given import Given
from pluralign.training.index import Index
from pluralign.training.people import Person
from pluralign.training.record import Hashes, Record
from pluralign.training.runs import RunFolder
from pluralign.training.shares import Share
from pluralign.training.worker import Worker

RETRIES = 3
"""How often a share is given to another worker after its own was lost."""
_CLAIM = "@claim"
_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 2.0
_CANCEL_SECONDS = 30.0


@dataclass(slots=True)
class Task:
    """What a worker is sent.

    Attributes:
        config: of the run, its places absolute and its device the worker's own.
        share: which of how many.
        people: of the share, with their rows.
        hashes: of these rows, as `Record` has them.
        update: people to train anew -> stamp of the adapter that is to be replaced.
        base: name and fingerprint of what everybody is trained on.
        claim: what the run's folder holds for this very call.
        given: references of others and adapters to begin with.
    """

    config: TrainConfig
    share: Share
    people: list[Person]
    hashes: dict[str, Hashes]
    update: dict[str, str]
    base: tuple[str, str]
    claim: str
    given: Given


@dataclass(slots=True)
class Outcome:
    """What a worker answers.

    Attributes:
        finished: id -> folder of the adapter.
        skipped: id -> why there is none, or less than all steps.
        trained: people whom the worker has trained.
        warnings: what it had to say.
        error: why it could not train its share at all.
    """

    finished: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    trained: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    error: PluralignError | None = None


# ---- the process of the call ----


def check_cluster(arguments: TrainingArguments) -> None:
    """Raise now, and not after minutes, where no cluster can be used.

    Raises:
        InputError: Ray is not installed; torchrun has started several processes.
    """
    _ray()
    if arguments.world_size > 1:
        raise InputError(
            f"torchrun has started {arguments.world_size} processes",
            where="engine ray",
            fix="Start one, and Ray starts the others; or set engine to bank, and torchrun's divide the people.",
        )


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Be on a cluster for the time of the block: the caller's own, `$RAY_ADDRESS`, one on this machine, or a new one.

    Raises:
        InputError: the cluster cannot be reached.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    # A cluster that is started here would report to Ray's makers.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _check_address(address)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"RAY_ADDRESS {address}" if address else "engine ray"
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"Ray cannot be reached ({first})",
            where=where,
            fix="Is the cluster running? For one that asks for a token set RAY_AUTH_MODE=token.",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def train_on_cluster(
    worker: Worker,
    people: dict[str, Person],
    users: Sequence[str],
    sizes: Sequence[int],
    record: Record,
    update: Mapping[str, str],
) -> None:
    """Train people on the cluster that this process is connected to.

    There are as many shares as the cluster has GPUs, or CPUs where it has none; a killed run keeps its number.

    Args:
        worker: of this process; it trains nobody.
        people: id -> rows; also of those who make their last steps again. Who is sent to a worker is taken out.
        users: those of whom nothing is decided yet.
        sizes: how much work each of them is.
        record: what became of everybody; people are added as their shares are done.
        update: people to train anew -> stamp of the adapter that is to be replaced.

    Raises:
        InputError: a worker could not train its share; the message is the worker's.
        PluralignError: a share has lost its worker too often, or a worker's disk is full.
    """
    folder, gpus = worker.folder, _gpus(worker.config)
    fitting = workers_of_cluster(worker.config, len(users))
    shares = _shares(worker, users, sizes, record, count=workers_before(folder.path / "state") or fitting)
    config = _portable(worker, device="auto" if gpus else "cpu")
    base, claim = (worker.base.name, worker.base.fingerprint), uuid.uuid4().hex
    write_text(_claim(folder), claim)

    def tasks() -> Iterator[Task]:
        for share, mine in shares.items():
            rows = [people.pop(user) for user in mine]
            hashes = {user: record.hashes[user] for user in mine if user in record.hashes}
            stamps = {user: update[user] for user in mine if user in update}
            yield Task(config, share, rows, hashes, stamps, base, claim, worker.given)

    for outcome in _outcomes(folder, tasks(), gpus=bool(gpus)):
        record.add(outcome.finished, outcome.skipped, outcome.trained)


def workers_of_cluster(config: TrainConfig, people: int) -> int:
    """How many shares a run makes on the cluster that this process is connected to."""
    return max(1, min(people, _gpus(config) or int(_ray().cluster_resources().get("CPU", 1))))


def _gpus(config: TrainConfig) -> int:
    return 0 if config.device == "cpu" else int(_ray().cluster_resources().get("GPU", 0))


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(
            "Ray is not installed", where="engine ray", fix="pip install 'pluralign[ray]' brings it."
        ) from None
    return ray


def _check_address(address: str) -> None:
    """Ask whether anybody listens there: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _shares(
    worker: Worker, users: Sequence[str], sizes: Sequence[int], record: Record, *, count: int
) -> dict[Share, list[str]]:
    """Whose people are whose: as a killed run has noted, or noted here before anybody is trained."""
    begun = take_up(worker.folder, count, users)
    shares: dict[Share, list[str]] = {}
    for share in (Share(index, count) for index in range(count)):
        if share.index in begun:
            shares[share] = begun[share.index].users
            skipped = begun[share.index].skipped
            record.add({}, skipped, skipped)
        else:
            shares[share] = share.of(users, sizes)
            if str(worker.arguments.save_strategy.value) != "no":
                Snapshots(worker.folder.path / "state", share).begin(shares[share])
    return {share: mine for share, mine in shares.items() if mine}


def _portable(worker: Worker, *, device: str) -> TrainConfig:
    """The configuration for another process on another machine that sees the same disk."""
    model = Path(worker.config.model).expanduser()
    return replace(
        worker.config,
        model=str(model.absolute()) if model.is_dir() and worker.config.model != "nano" else worker.config.model,
        output_dir=str(worker.folder.path),
        cache_dir=str(worker.cache.folder.absolute()),
        device=device,
    )


def _outcomes(folder: RunFolder, tasks: Iterable[Task], *, gpus: bool) -> Iterator[Outcome]:
    """What comes of the tasks, each when it is done; when this ends, those that are not done are cancelled."""
    ray = _ray()
    # A process a share: what one has left in memory is no matter of the next.
    remote = ray.remote(num_cpus=1, num_gpus=int(gpus), max_calls=1, max_retries=RETRIES)(train_share)
    pending: dict[Any, tuple[Share, int]] = {}
    try:
        for task in tasks:
            pending[remote.remote(task)] = task.share, len(task.people)
        with progress_bar() as progress:
            bar = progress.add_task("people", total=sum(people for _, people in pending.values()))
            done, before = 0, _adapters(folder)
            while pending:
                for reference in ray.wait(list(pending), timeout=_LOOK_SECONDS)[0]:
                    share, people = pending.pop(reference)
                    yield _outcome(ray, reference, share)
                    done += people
                # Of people who are trained anew the folder tells nothing before their share is done.
                progress.update(bar, completed=max(done, _adapters(folder) - before))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=_CANCEL_SECONDS)


def _outcome(ray: Any, reference: Any, share: Share) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError:
        raise  # a fault of the program's, with the worker's traceback
    except ray.exceptions.RayError as error:
        first = str(error).strip().partition("\n")[0]
        raise PluralignError(
            f"share {share.index + 1} of {share.count} has lost its worker {RETRIES + 1} times ({first}). Who is "
            "finished is kept, and the same command goes on"
        ) from None
    for message in outcome.warnings:
        warnings.warn(message, stacklevel=2)
    if outcome.error is not None:
        raise outcome.error
    return outcome


def _adapters(folder: RunFolder) -> int:
    """How many people have an adapter."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder.adapters) as entries:
        return sum(not entry.name.startswith(".") for entry in entries)
    return 0


# ---- the worker's process ----


def train_share(task: Task) -> Outcome:
    """Train the people of a task, from where a lost worker has left them."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            outcome = _train_share(task)
        except PluralignError as error:
            outcome = Outcome(error=error)
    outcome.warnings = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return outcome


def _train_share(task: Task) -> Outcome:
    # The CPU that the task has; Ray tells OpenMP, unless the cluster was started with another word.
    torch.set_num_threads(1)
    folder = RunFolder(task.config.output_dir)
    _check_claim(folder, task.claim)
    arguments = training_arguments(task.config.training, output_dir=folder.path, device=task.config.device)
    with full_disk_explained(folder.path):
        worker = Worker(task.config, arguments, folder, together=True, given=task.given)
        name, fingerprint = task.base
        if worker.base.fingerprint != fingerprint:
            raise InputError(
                f"the base is another one there: its fingerprint is {worker.base.fingerprint[:12]}, not "
                f"{fingerprint[:12]}",
                where=f"worker on {socket.gethostname()}, model {task.config.model}",
                fix="Put the same files there, or name a folder that all machines share.",
            )
        # Adapters say what base they are for: by the name that the user gave it.
        worker.base.name = name
        people = {person.user: person for person in task.people}
        record = Record(folder, task.config.parameters.kind, hashes=task.hashes, writes=False)
        again = [user for user, stamp in task.update.items() if folder.stamp(user, record.kind) == stamp]
        record.recall(list(people), Index({}, {}), again=again)
        users = record.remaining(list(people))
        worker.train(people, users, record, task.share)
    return Outcome(record.finished, record.skipped, record.trained)


def _check_claim(folder: RunFolder, claim: str) -> None:
    path = _claim(folder)
    found = path.read_text(encoding="utf-8") if path.is_file() else None
    if found != claim:
        raise InputError(
            f"the worker on {socket.gethostname()} does not see the run's folder",
            where=str(folder.path),
            fix="Put output_dir on a disk that all machines of the cluster share, under the same path.",
        )


def _claim(folder: RunFolder) -> Path:
    return folder.path / "state" / _CLAIM
