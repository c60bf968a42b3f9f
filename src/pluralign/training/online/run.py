"""The online job: from prompts, policies that answer them and an annotator to a folder with an adapter a person."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pluralign.annotators import Annotator, annotator_of
from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.matmul import quick_matmul
from pluralign.online_config import OnlineConfig, ServerConfig
from pluralign.preferences import Preferences, data_hash, read_prompts
from pluralign.preferences.schema import Preference
from pluralign.resolve import as_yaml, flat, read_yaml
from pluralign.seats import ReferenceConfig
from pluralign.storage import write_text
from pluralign.training.checkpoints import full_disk_explained
from pluralign.training.growth import Growth
from pluralign.training.online.ensemble import KEY as ENSEMBLE
from pluralign.training.online.ensemble import ensemble_digest, members_of
from pluralign.training.online.files import read_candidates, read_pairs
from pluralign.training.online.near_base import NearBase
from pluralign.training.online.plan import check_pairs, plan
from pluralign.training.online.population import OnlinePopulation
from pluralign.training.online.references import is_own_past, warn_of_inert_reference
from pluralign.training.online.sampling import Generator, in_process
from pluralign.training.online.server import ServedPolicies
from pluralign.training.people import Census, Person
from pluralign.training.record import Record
from pluralign.training.run import Prepared, Run, TrainResult
from pluralign.training.runs import ONLINE_FILE, PHASES, Standing
from pluralign.training.weighting import row_fault, warn_of_unknown_groups

_OWN = ("pairs", "annotator", "extrapolation")
"""Groups of the configuration that `train` does not have."""
_MAY_DIFFER = (
    "annotator.batch_size",
    "annotator.missing",
    "annotator.endpoint.key_variable",
    "annotator.endpoint.requests_at_once",
    "annotator.endpoint.requests_per_minute",
    "annotator.endpoint.retries",
    "annotator.endpoint.timeout",
    "annotator.endpoint.max_requests",
    # All of them: policies and the settings of sampling are the same whoever generates, and what was sampled stands in
    # the files. A run whose server is gone can go on with another one, or in its own process.
    *(f"pairs.server.{one.name}" for one in fields(ServerConfig)),
)
"""Keys that may differ between two calls of the same run: how an annotator is reached, and what it may cost; who lets
the policies speak."""


def online(config: OnlineConfig, annotator: Annotator | None = None) -> TrainResult:
    """Train everybody on responses of their own policies; the same call on the same folder goes on where it stopped.

    Args:
        config: as of the command.
        annotator: in place of the one that the configuration names.

    Raises:
        InputError: configuration, data or model cannot be used, or the folder holds another run.
        AnnotatorError: the annotator failed; what it said is kept, and the same call goes on.
    """
    with quick_matmul(), full_disk_explained(Path(config.output_dir)):
        return OnlineRun(config, annotator).train()


def offline_part(config: OnlineConfig) -> TrainConfig:
    """The part of the configuration that training, evaluation and `generate` know."""
    names = {one.name for one in fields(TrainConfig)}
    values = {name: getattr(config, name) for name in names}
    given = {one.name: getattr(config.reference, one.name) for one in fields(ReferenceConfig)}
    # Its own decay moves the reference between phases; what the Trainer calls by that name moves it in every step.
    reference = ReferenceConfig(**{**given, "ema": None})
    return TrainConfig(**{**values, "method": "dpo", "reference": reference, "engine": "bank"})


class OnlineRun(Run):
    """A run whose rows are sampled while it trains.

    Raises:
        InputError: the configuration cannot be used.
    """

    def __init__(self, config: OnlineConfig, annotator: Annotator | None = None) -> None:
        _check(config)
        super().__init__(offline_part(config))
        self.online = config
        if self.arguments.world_size > 1:
            raise InputError("an online run has several processes", fix="Start it with one: people share its batches.")
        arguments = self.arguments
        check_pairs(
            config.pairs,
            accumulation=arguments.gradient_accumulation_steps,
            batch=arguments.per_device_train_batch_size,
        )
        prompts = config.pairs.prompts
        self.prompts = read_prompts(prompts, key="pairs.prompts", columns=True) if prompts else []
        self.annotator = annotator or annotator_of(config.annotator, config)
        server = config.pairs.server
        self.generator: Generator = ServedPolicies(server, self.folder.path) if server.url else in_process

    def prepare(self) -> Prepared:
        found = super().prepare()
        if found.standing is Standing.GROWN:
            raise InputError(
                "the folder holds a finished run on another table",
                where=str(self.folder.path),
                fix="Name another output_dir: phases that are over are not sampled for anew.",
            )
        users = [person.user for person in found.census.people]
        self.members = members_of(self.online.pairs.ensemble, users)
        self.plans = plan(self._asked(found.census), self.online.pairs, self.arguments, self.config.seed)
        warn_of_inert_reference(self.online, self.plans)
        self._check_weights()
        return found

    def _check_weights(self) -> None:
        """Raise where a prompt cannot be weighed: before anything is sampled, and annotations are paid for."""
        for one in self.plans:
            warn_of_unknown_groups(self.config.weighting, one.prompts, one.held_out)
            for row in one.prompts:
                fault = row_fault(row, self.config.weighting)
                if fault is not None:
                    raise InputError(fault)

    def _train_people(self, census: Census, growth: Growth, record: Record, *, on_cluster: bool) -> None:
        order = [person.user for person in census.people]
        record.skipped = {**census.skipped, **record.skipped}
        if growth.people:
            self._keep_configuration()
            self._train_phases(record)
        shutil.rmtree(self.folder.path / "state", ignore_errors=True)
        record.arrange(order)
        record.write_index()

    def _train_phases(self, record: Record) -> None:
        worker = self.worker
        if is_own_past(self.online):
            # The rows that are learned bring along what they are compared with; those of the table never did.
            worker.config = replace(worker.config, reference=replace(worker.config.reference, compute="table"))
        kl = self.online.reference.kl_to_base
        population = OnlinePopulation(
            self.online,
            worker.config,
            worker.base,
            NearBase(worker.objective, kl) if kl else worker.objective,
            worker.arguments,
            self.folder,
            worker.layout,
            record,
            annotator=self.annotator,
            encoder=worker.encoder,
            anchor=worker.anchor,
            starts=worker.given.starts,
            generator=self.generator,
            members=self.members,
        )
        population.train_phases(self.plans)
        self._warn_of_losses()

    def _warn_of_losses(self) -> None:
        """Say how many prompts gave no pair, and what an annotator said that could not be read."""
        place = self.folder.path / PHASES
        asked = sum(len(read_candidates(path)) for path in place.glob("*/candidates-*.jsonl"))
        paired = sum(len({pair.row for pair in read_pairs(path)}) for path in place.glob("*/pairs-*.jsonl"))
        if paired < asked:
            warnings.warn(
                f"of {asked} prompts {asked - paired} gave no pair: responses that were the same or tied, or an "
                f"annotator that abstained ({place}/*/verdicts-*.jsonl)",
                stacklevel=2,
            )
        unread = getattr(getattr(self.annotator, "counts", None), "unparsable", 0)
        if unread:
            warnings.warn(f"{unread} answers of the annotator {self.annotator.name} could not be read", stacklevel=2)

    def _contents(self) -> dict[str, str | None]:
        digest = data_hash(Preferences(self.prompts)) if self.prompts else None
        ensemble = ensemble_digest(self.online.pairs.ensemble)
        return {**super()._contents(), "pairs.prompts": digest, ENSEMBLE: ensemble}

    def _asked(self, census: Census) -> list[Person]:
        """People with rows whose prompts are asked, as the configuration names them."""
        if not self.prompts:
            return census.people
        found = []
        for person in census.people:
            own = [_as_asked(row, person) for row in self.prompts if row.user in (None, person.user)]
            if not own:
                raise InputError(f"there is no prompt for {person.user!r}", where="pairs.prompts")
            found.append(replace(person, train=[*own, *(row for row in person.train if not _has_pair(row))]))
        return found

    def _is_as_begun(self) -> bool:
        path = self.folder.path / ONLINE_FILE
        if not path.exists() and self.folder.is_bare:
            # Killed before it was written: nothing is there that another run could have made.
            return False
        there = flat(read_yaml(path)) if path.exists() else {}
        here = flat(_own_keys(self.online))
        differing = [key for key in here if there.get(key) != here[key] and key not in _MAY_DIFFER]
        if differing and not self.config.overwrite:
            raise InputError(
                f"the folder holds another run, which differs in {', '.join(differing)}",
                where=str(self.folder.path),
                fix="Name another output_dir, or set --overwrite to replace it.",
            )
        return not differing

    def _keep_configuration(self) -> None:
        """Write the whole configuration beside the part that `evaluate` and `generate` read."""
        path = self.folder.path / ONLINE_FILE
        if not path.exists():
            write_text(path, as_yaml(self.online))


def _check(config: OnlineConfig) -> None:
    """Raise where the seats contradict each other."""
    reference = config.reference
    refused = {
        "engine": config.engine not in ("auto", "bank") and f"engine is {config.engine}",
        "sft": config.sft.num_train_epochs > 0 and "sft.num_train_epochs is set",
        "update": bool(config.update) and "update is set",
        "conditioning": bool(config.conditioning.template or config.conditioning.system) and "prompts are conditioned",
    }
    for found in filter(None, refused.values()):
        raise InputError(f"{found}, and responses are sampled in phases", fix="Leave it out.")
    if reference.compute != "cached":
        raise InputError(
            f"reference.compute is {reference.compute}", fix="reference.policy says what pairs are compared with."
        )
    if (reference.policy == "given") != bool(reference.models):
        raise InputError(
            f"reference.policy is {reference.policy} and reference.models is {reference.models}",
            fix="Models are for policy given, and it needs some.",
        )
    if (reference.policy == "ema") != (reference.ema is not None):
        raise InputError(
            f"reference.policy is {reference.policy} and reference.ema is {reference.ema}",
            fix="The decay is for policy ema, and it needs one.",
        )
    if reference.ema is not None and not 0 <= reference.ema < 1:
        raise InputError(f"reference.ema is {reference.ema}", fix="It must be at least 0 and below 1.")
    if reference.kl_to_base < 0:
        raise InputError(f"reference.kl_to_base is {reference.kl_to_base}", fix="It must be at least 0.")
    if reference.every < 1:
        raise InputError(f"reference.every is {reference.every}", fix="It must be at least 1.")


def _own_keys(config: OnlineConfig) -> Mapping[str, Any]:
    values = asdict(config)
    own = {name: values[name] for name in _OWN}
    return {**own, "reference": {name: values["reference"][name] for name in ("policy", "every", "ema", "kl_to_base")}}


def _has_pair(row: Preference) -> bool:
    return bool(row.responses.keys() - {"base"})


def _as_asked(row: Preference, person: Person) -> Preference:
    """A prompt as a row of the person's; what stands for its responses only says that it is asked."""
    first = person.train[0]
    prompt = row.prompt
    if isinstance(prompt, str) and not isinstance(first.prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    # Of a person in several groups nothing says which one a prompt is of.
    groups = {one.group for one in person.train}
    user, group = row.user or first.user, row.group or (first.group if len(groups) == 1 else None)
    return replace(row, prompt=prompt, user=user, group=group, chosen="", rejected="")
