"""A base in memory and what training people on it takes: one for each process of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
from transformers import TrainingArguments

from pluralign.config import ModelConfig, TrainConfig
from pluralign.models.adapters import adapter_layers
from pluralign.models.anchoring import Anchored, adopt_anchored, anchor_preferences, encoder_of
from pluralign.models.bank import LoraBank
from pluralign.models.base import load_base
from pluralign.models.cache import Cache
from pluralign.models.combined_references import Compared, compare_rows, uses_given
from pluralign.models.embeddings import Embeddings
from pluralign.models.given_references import check_adapters
from pluralign.models.layout import choose_layout
from pluralign.models.matmul import warn_of_slow_bfloat16
from pluralign.models.references import reference_logps
from pluralign.models.rows import Layout
from pluralign.models.table_references import with_table_references
from pluralign.objectives import Objective
from pluralign.training.arguments import local_device
from pluralign.training.bank import BankPopulation
from pluralign.training.bank.capacity import choose_slots
from pluralign.training.given import Given
from pluralign.training.people import Person
from pluralign.training.population import Population
from pluralign.training.record import Record, Rows
from pluralign.training.runs import RunFolder
from pluralign.training.shares import Share
from pluralign.training.starts import Starts

WAVE_ROWS = 2048
"""Rows that are anchored at a time: enough to fill batches, few enough to be no matter of memory."""


class Worker:
    """Trains people on a base of its own.

    It holds neither lock nor index: who is whose, and what the folder says of it, is decided by whoever made it.

    Args:
        config: of the run.
        arguments: of the Trainer, shared by all people.
        folder: of the run.
        together: whether people are trained in the bank, and not one after another.
        given: references of others and adapters to begin with; none by default.

    Attributes:
        base: the one base.
        encoder: from rows to its tokens.
        embeddings: of prompts, for losses that ask how alike they are.
        layout: of `choose_layout`.
        cache: of base responses and reference log-probs.

    Raises:
        InputError: the base cannot be loaded.
    """

    def __init__(
        self,
        config: TrainConfig,
        arguments: TrainingArguments,
        folder: RunFolder,
        *,
        together: bool,
        given: Given | None = None,
    ) -> None:
        self.given = given or Given(Starts(config.parameters))
        self.config = config = replace(config, parameters=self.given.starts.parameters)
        self.arguments, self.folder, self.together = arguments, folder, together
        self.objective = Objective(config.loss, config.anchor)
        self.cache = Cache(config.cache_dir)
        self.base = load_base(self.model_config)
        if arguments.bf16 and self.base.model.dtype != torch.bfloat16:
            warn_of_slow_bfloat16(self.base.device)
        self.encoder = encoder_of(self.base, config.data)
        self.embeddings = Embeddings(config.loss.contrast.embeddings, self.base)
        self.layout: Layout = choose_layout(self.base.model, self.base.tokenizer)

    @property
    def caches_references(self) -> bool:
        """Whether training takes reference log-probs from the cache or the table."""
        if self.config.reference.ema is not None:
            return self.config.anchor.base.weight > 0
        return self.objective.needs_reference and self.config.reference.compute != "forward"

    @property
    def runs_reference(self) -> bool:
        """Whether every batch goes through the model once more, for its reference."""
        return runs_reference(self.config, self.objective)

    @property
    def model_config(self) -> ModelConfig:
        """What the base is loaded by, on the device of this process."""
        return replace(self.config, device=local_device(self.arguments, self.config.device))

    def check_adapters(self, people: int) -> None:
        """Try out whether the base takes adapters as configured, and memory the slots: before a run is begun.

        Args:
            people: to be trained by this worker.

        Raises:
            InputError: a target module does not exist or is none for the bank, or the slots do not fit.
        """
        parameters = self.config.parameters
        if self.together:
            size = partial(choose_slots, self.config, people, device=self.base.device)
            bank = LoraBank(self.base, parameters, lambda each: min(1, size(each)))
            bank.detach()
            self.given.starts.check(self.base, bank.config)
        elif parameters.kind == "lora":
            adapter_layers(self.base, parameters)
            self.given.starts.check(self.base)
        check_adapters(self.base, self.given.references)

    def train(
        self,
        people: dict[str, Person],
        users: Sequence[str],
        record: Record,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        """Train a share of people, from where a killed run has left it.

        Args:
            people: id -> rows; also of those who make their last steps again. Who has been trained is taken out.
            users: those of the share of whom nothing is decided yet.
            record: what became of everybody; people are added as they finish.
            share: which of how many workers this is.

        Raises:
            InputError: what a killed run has left cannot be gone on with.
        """
        engine = self._engine(record, share)
        users = engine.resume(users)
        self.arguments.distributed_state.wait_for_everyone()
        if users:
            rows = (row for user in users for row in (*people[user].train, *people[user].held_out))
            adopt_anchored(rows, base=self.base, encoder=self.encoder, cache=self.cache, layout=self.layout)
            numbers = wave_numbers(people.values())
            engine.train(users, lambda asked: self._supply((people.pop(user) for user in asked), numbers))

    def _engine(self, record: Record, share: Share) -> BankPopulation | Population:
        parts = (self.config, self.base, self.objective, self.arguments)
        if not self.together:
            return Population(*parts, self.folder, self.layout, record, self.given.starts)
        return BankPopulation(*parts, self.folder.share(share), self.layout, record, share, self.given.starts)

    def _supply(self, people: Iterable[Person], numbers: Mapping[str, int]) -> Iterator[tuple[str, Rows]]:
        """Rows in the order asked for, anchored some people at a time: what is not needed yet takes no room."""
        for wave in waves(people, numbers):
            yield from _handed_out(self.anchor(wave))

    def precision(self) -> torch.autocast:
        """That of training: a reference in another one would give the first step a margin."""
        kind = torch.float16 if self.arguments.fp16 else torch.bfloat16
        return torch.autocast(self.base.device.type, dtype=kind, enabled=self.arguments.bf16 or self.arguments.fp16)

    def anchor(self, people: Sequence[Person]) -> dict[str, Rows]:
        """Everybody's rows at once: what people share is computed once."""
        flat = [row for person in people for row in (*person.train, *person.held_out)]
        # Of processes that train the same people the first one fills the cache, and the others read it.
        first = self.arguments.main_process_first(local=False, desc="anchoring")
        with contextlib.nullcontext() if self.together else first:
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
            if self.caches_references:
                rows = self._with_references(rows)
            if self.objective.needs_embeddings:
                vectors = self.embeddings.of(rows)
                rows = [replace(row, embedding=vector) for row, vector in zip(rows, vectors, strict=True)]
        remaining = iter(rows)
        return {
            person.user: Rows([next(remaining) for _ in person.train], [next(remaining) for _ in person.held_out])
            for person in people
        }

    def _with_references(self, rows: Sequence[Anchored]) -> list[Anchored]:
        config, given = self.config.reference, self.given
        with self.precision():
            if config.compute == "table":
                return with_table_references(self.base, rows, self.cache, layout=self.layout)
            if uses_given(config):
                parts = (config, given.references, given.scores, self.cache)
                compared = compare_rows(self.base, rows, *parts, layout=self.layout)
                return [_against(row, one) for row, one in zip(rows, compared, strict=True)]
            found = reference_logps(self.base, [row.encoded for row in rows], self.cache, layout=self.layout)
        return [replace(row, reference=logps) for row, logps in zip(rows, found, strict=True)]


def runs_reference(config: TrainConfig, objective: Objective) -> bool:
    """Whether every batch of a training goes through the model once more, for its reference."""
    reference = config.reference
    return objective.needs_reference and (reference.compute == "forward" or reference.ema is not None)


def _against(row: Anchored, compared: Compared) -> Anchored:
    """The row with what it is compared with: several references where the loss is taken against each."""
    several = tuple(zip(compared.weights, compared.logps, strict=True)) if len(compared.logps) > 1 else ()
    return replace(row, reference=compared.logps[-1], references=several)


def wave_numbers(people: Iterable[Person]) -> dict[str, int]:
    """Person -> number of the wave that anchors their rows.

    It follows from the rows of everybody before them in the table, whoever of these is finished by now: a run that was
    killed goes on with the waves it would have had, and so with the same batches of references.
    """
    numbers: dict[str, int] = {}
    rows = 0
    for person in people:
        numbers[person.user] = rows // WAVE_ROWS
        rows += len(person.train) + len(person.held_out)
    return numbers


def waves(people: Iterable[Person], numbers: Mapping[str, int]) -> Iterator[list[Person]]:
    """People whose rows are anchored together: neighbours of one wave."""
    for _, wave in groupby(people, key=lambda person: numbers[person.user]):
        yield list(wave)


def _handed_out(rows: dict[str, Rows]) -> Iterator[tuple[str, Rows]]:
    """People with their rows, which are not held here any longer."""
    for user in list(rows):
        yield user, rows.pop(user)
