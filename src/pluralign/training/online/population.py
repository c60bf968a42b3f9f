"""The phases of people in the bank: their policies answer, an annotator compares, and they learn from that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from pluralign.annotators.protocol import Annotator
from pluralign.config import TrainConfig
from pluralign.errors import PluralignError
from pluralign.models.bank import LoraBank
from pluralign.models.base import Base
from pluralign.models.encoding import Encoder
from pluralign.models.extrapolation import Factors, cut, extrapolated
from pluralign.models.rows import Layout
from pluralign.objectives import Objective
from pluralign.online_config import OnlineConfig
from pluralign.preferences.schema import Place, Preference
from pluralign.progress import progress_bar
from pluralign.training.bank import BankPopulation
from pluralign.training.bank.learner import Learner
from pluralign.training.callbacks import append_line
from pluralign.training.conditions import without_dropout
from pluralign.training.online.ensemble import merged
from pluralign.training.online.files import (
    Candidates,
    Pair,
    VerdictLog,
    read_candidates,
    read_pairs,
    write_candidates,
    write_pairs,
)
from pluralign.training.online.labelling import annotate, pairs_of_verdicts
from pluralign.training.online.moments import Moment, Moments
from pluralign.training.online.plan import PersonPlan, Phase, pairs_of
from pluralign.training.online.references import in_place, is_own_past
from pluralign.training.online.sampling import Asked, Generator, sample, score_pairs
from pluralign.training.online.watching import figures
from pluralign.training.people import Person, person_seed
from pluralign.training.record import Record, Rows
from pluralign.training.runs import RunFolder
from pluralign.training.starts import Starts
from pluralign.training.weighting import Weighting

Anchor = Callable[[Sequence[Person]], dict[str, Rows]]
"""Turns people's rows into anchored ones."""


class OnlinePopulation(BankPopulation):
    """Trains people in phases, as many together as the bank has slots; the next ones begin when these are through.

    Args:
        online: the whole configuration.
        config: the part that training knows.
        base: the one base.
        objective: losses per example.
        arguments: of the Trainer, shared by all.
        folder: of the run.
        layout: of `choose_layout`.
        record: what became of everybody; people are added as they finish.
        annotator: says which responses are better.
        encoder: of the base.
        anchor: makes anchored rows.
        starts: what people begin with.
        generator: lets policies speak.
        members: person -> folders of the adapters that sample beside the person's policy.
    """

    def __init__(
        self,
        online: OnlineConfig,
        config: TrainConfig,
        base: Base,
        objective: Objective,
        arguments: TrainingArguments,
        folder: RunFolder,
        layout: Layout,
        record: Record,
        *,
        annotator: Annotator,
        encoder: Encoder,
        anchor: Anchor,
        starts: Starts,
        generator: Generator,
        members: Mapping[str, Sequence[Path]],
    ) -> None:
        super().__init__(config, base, objective, arguments, folder, layout, record, starts=starts)
        self.online, self.annotator, self.encoder, self.anchor = online, annotator, encoder, anchor
        self.generator, self.members = generator, members
        self.moments = Moments(folder.path)
        self.plans: dict[str, PersonPlan] = {}
        # Whoever is in the cohort and not through; `learners` are those of them who have a step to make.
        self.cohort: dict[str, Learner] = {}
        self.compared: dict[str, Tensor] = {}
        self.iterates: dict[str, Tensor] = {}
        self.without: dict[str, Counter[str]] = {}

    def train_phases(self, plans: Sequence[PersonPlan]) -> None:
        """Train everybody of a run, from where a killed one has left it.

        Args:
            plans: of everybody, finished or not, in the order of the table: who is beside whom decides the last digits.

        Raises:
            AnnotatorError: the annotator failed; the same call goes on where it was.
        """
        self._open(len(plans))
        parts = self.moments.cohorts([plan.user for plan in plans], self.bank.slots)
        by_user = {plan.user: plan for plan in plans}
        try:
            with progress_bar() as progress, without_dropout(self.base.model):
                self._progress, self._bar = progress, progress.add_task("people", total=len(plans))
                for part, users in enumerate(parts):
                    if not self.moments.through(part):
                        self._train_cohort(part, [by_user[user] for user in users])
                        self.moments.close(part)
        finally:
            self._close()

    def _train_cohort(self, part: int, plans: Sequence[PersonPlan]) -> None:
        self.plans = {plan.user: plan for plan in plans}
        self._free = list(range(self.bank.slots))
        moment = self.moments.last(part)
        begins = 0 if moment is None else moment.phase + 1
        self._move_in(plans, moment)
        for phase in range(begins, max(len(plan.phases) for plan in plans)):
            asked = self._asked(phase)
            pairs = self._pairs(part, phase, asked)
            watched = self._watched(part, phase, pairs)
            self._enter(phase, asked, pairs)
            self._learn(phase)
            # Behind the steps: a phase that is made again after a kill drops the lines behind its first one.
            for line in watched:
                append_line(self.folder.metrics, line)
            self._extrapolate()
            self._move_references(phase)
            self.moments.write(part, self._moment(phase))
        assert not self.cohort, "every plan ends with its last phase"

    # ---- moving in ----

    def _move_in(self, plans: Sequence[PersonPlan], moment: Moment | None) -> None:
        kept = {} if moment is None else {state["user"]: state for state in moment.learners}
        self.learners, self.cohort = {}, {}
        self.compared = {} if moment is None else dict(moment.compared)
        self.iterates = {} if moment is None else dict(moment.iterates)
        self.without = {} if moment is None else {user: Counter(some) for user, some in moment.without.items()}
        self.folder.keep_metrics(
            {plan.user: kept[plan.user]["trainer"]["global_step"] if plan.user in kept else 0 for plan in plans}
        )
        held_out = self.anchor([Person(plan.user, [], [*plan.held_out]) for plan in plans])
        for plan in plans:
            if moment is not None and plan.user not in kept:
                continue
            slot = self._free.pop(0)
            self.bank.admit(slot, seed=person_seed(self.config.seed, plan.user), start=self.starts.of(plan.user))
            self.forwards.means.clear(slot)
            learner = self._learner(slot, plan.user, held_out[plan.user])
            if plan.user in kept:
                learner.load_state_dict(kept[plan.user])
                self.forwards.means.load_slot_state(slot, kept[plan.user]["means"])
            else:
                self.compared[plan.user] = self.iterates[plan.user] = self.bank.matrix[slot].clone()
            self.cohort[plan.user] = learner
            self.record.trained.add(plan.user)
            learner.begin()

    def _arguments_of(self, user: str, *, has_held_out: bool) -> TrainingArguments:
        own = super()._arguments_of(user, has_held_out=has_held_out)
        own.max_steps = self.plans[user].steps
        return own

    def _weighting(self, user: str, rows: Rows) -> Weighting:
        # Pairs come later: the groups are those of the prompts.
        prompts = self.plans[user].prompts
        groups = Weighting(self.config.weighting, prompts * pairs_of(self.online.pairs))
        return rows.weighting(self.config.weighting, self.objective, among=groups)

    # ---- a phase's pairs ----

    def _asked(self, phase: int) -> dict[str, Asked]:
        """Row -> a prompt of the phase."""
        found = {}
        for user, learner in self.cohort.items():
            for number, source in enumerate(self._phase(user, phase).prompts):
                row = f"{phase}/{user}/{number}"
                found[row] = Asked(row, user, learner.slot, learner.state.global_step, source)
        return found

    def _pairs(self, part: int, phase: int, asked: dict[str, Asked]) -> list[Pair]:
        """Those of the phase's file, which is made where it is not there."""
        candidates_file, verdicts_file, pairs_file = self.moments.files(part, phase)
        if pairs_file.exists():
            pairs = read_pairs(pairs_file)
        else:
            if not candidates_file.exists():
                write_candidates(candidates_file, self._sample(asked))
            candidates = read_candidates(candidates_file)
            log, size = VerdictLog(verdicts_file), self.online.annotator.batch_size
            verdicts = annotate(self.annotator, candidates, log, batch_size=size)
            labelled = pairs_of_verdicts(candidates, verdicts, self.online.pairs.form)
            pairs = self._with_references(labelled.pairs, asked)
            write_pairs(pairs_file, pairs)
        self._count(asked, pairs)
        self._check_versions(pairs, asked)
        return pairs

    def _sample(self, asked: dict[str, Asked]) -> list[Candidates]:
        with self._sampler() as bank:
            return sample(
                bank,
                self.encoder,
                self._layout,
                list(asked.values()),
                self.online.pairs.generation,
                responses=self.online.pairs.responses,
                seed=self.config.seed,
                generator=self.generator,
            )

    def _sampler(self) -> AbstractContextManager[LoraBank]:
        """The bank with everybody's policy, or one with the policies merged with others."""
        if not self.online.pairs.ensemble:
            return nullcontext(self.bank)
        members = {learner.slot: self.members[user] for user, learner in self.cohort.items()}
        return merged(self.bank, self.config.parameters, members)

    def _watched(self, part: int, phase: int, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """A line of metrics a person: what the phase's responses are like."""
        owned: dict[str, list[Candidates]] = {}
        path = self.moments.files(part, phase)[0]
        # A phase goes on from its pairs alone.
        for one in read_candidates(path) if path.exists() else []:
            owned.setdefault(one.owner, []).append(one)
        found = []
        for user, candidates in owned.items():
            own = self._phase(user, phase)
            line = {"user": user, "step": own.first + own.steps, "phase": phase}
            found.append({**line, **figures(candidates, [pair for pair in pairs if pair.owner == user])})
        return found

    def _with_references(self, pairs: Sequence[Pair], asked: dict[str, Asked]) -> list[Pair]:
        """Pairs with what the policy is compared with, where that is its own past."""
        if not is_own_past(self.online):
            return list(pairs)
        if self.online.reference.policy == "behavior":
            # The reference is the sampler: what it said of its own responses needs no forward.
            return [replace(pair, references=(pair.chosen.logp, pair.rejected.logp)) for pair in pairs]
        rows = [_row(pair, asked) for pair in pairs]
        encoded = self.encoder.encode_many(rows, ("chosen", "rejected"))
        owned: dict[int, list[Any]] = {}
        for pair, row in zip(pairs, encoded, strict=True):
            owned.setdefault(self.cohort[pair.owner].slot, []).append(row)
        with self._as_compared():
            scored = {slot: iter(some) for slot, some in score_pairs(self.bank, self._layout, owned).items()}
        found = [next(scored[self.cohort[pair.owner].slot]) for pair in pairs]
        return [
            replace(pair, references=(one["chosen"], one["rejected"])) for pair, one in zip(pairs, found, strict=True)
        ]

    def _as_compared(self) -> Any:
        return in_place(self.bank.matrix, {learner.slot: self.compared[u] for u, learner in self.cohort.items()})

    def _check_versions(self, pairs: Sequence[Pair], asked: dict[str, Asked]) -> None:
        """Raise where the policy that sampled is not the one that the phase begins with."""
        for pair in pairs:
            if pair.row not in asked or pair.policy_version != asked[pair.row].version:
                version = asked[pair.row].version if pair.row in asked else "none"
                raise PluralignError(
                    f"pair {pair.row!r} was sampled by the policy of step {pair.policy_version}, and the reference is "
                    f"that of step {version}. Take the folder `phases` away, or begin anew with --overwrite"
                )

    def _count(self, asked: dict[str, Asked], pairs: Sequence[Pair]) -> None:
        """Note prompts that gave no pair."""
        there = {pair.row for pair in pairs}
        for row, one in asked.items():
            if row not in there:
                self.without.setdefault(one.owner, Counter())["prompts"] += 1

    # ---- learning ----

    def _enter(self, phase: int, asked: dict[str, Asked], pairs: Sequence[Pair]) -> None:
        """Give everybody the rows of the phase; who has none leaves its steps out."""
        owned: dict[str, list[Preference]] = {user: [] for user in self.cohort}
        for pair in pairs:
            owned[pair.owner].append(_row(pair, asked))
        for user, rows in owned.items():
            # Who has no pair has nothing to learn that is theirs: prompts without a pair alone would only hold.
            rows += self._phase(user, phase).anchors if rows else []
        anchored = self.anchor([Person(user, rows, []) for user, rows in owned.items() if rows])
        self.learners = {}
        for user, learner in self.cohort.items():
            own = self._phase(user, phase)
            if user in anchored:
                seat = self.config.weighting
                weighting = anchored[user].weighting(seat, self.objective, among=learner.weighting)
                learner.enter(anchored[user].train, weighting, first=own.first, epochs_before=own.epoch)
                self.learners[learner.slot] = learner
            else:
                learner.skip_to(own.first + own.steps)

    def _learn(self, phase: int) -> None:
        """Everybody's steps of the phase, each step's rows in forwards of everybody's."""
        while self.learners:
            self._step()
            self.learners = {
                slot: learner
                for slot, learner in self.learners.items()
                if learner.state.global_step
                < self._phase(learner.user, phase).first + self._phase(learner.user, phase).steps
            }
        for user, learner in list(self.cohort.items()):
            if learner.done and user in self.cohort:
                self._finish(learner)

    def _finish(self, learner: Learner) -> None:
        user = learner.user
        self.cohort.pop(user, None)
        self.learners[learner.slot] = learner
        count = sum(len(phase.prompts) for phase in self.plans[user].phases)
        if learner.failure is None and self.without.get(user, Counter())["prompts"] == count:
            self.record.skipped[user] = f"none of {count} prompts gave a pair: ties and abstentions only"
            self._drop(learner)
            return
        super()._finish(learner)

    def _holds(self, learner: Learner) -> bool:
        return super()._holds(learner) and learner.user in self.cohort

    def _phase(self, user: str, phase: int) -> Phase:
        """A person's phase; empty behind the last one."""
        phases = self.plans[user].phases
        end = self.plans[user].steps
        return phases[phase] if phase < len(phases) else Phase((), (), end, 0, 0)

    # ---- between phases ----

    def _extrapolate(self) -> None:
        """Go beyond what everybody learned; what is finished is what was learned."""
        alpha = self.online.extrapolation.alpha
        if alpha == 0:
            return
        for user, learner in self.cohort.items():
            learned = self.bank.matrix[learner.slot].clone()
            error = self._beyond(learner, self.iterates[user], alpha)
            self.iterates[user] = learned
            line = {"user": user, "step": learner.state.global_step, "extrapolation/cut": error}
            append_line(self.folder.metrics, line)
            # What the optimiser remembers is of other factors.
            learner.optimizer.state.clear()

    @torch.no_grad()
    def _beyond(self, learner: Learner, before: Tensor, alpha: float) -> float:
        """Extrapolate one person's adapter in its slot; the largest share of a layer's product that its rank cuts."""
        slot, bank, errors = learner.slot, self.bank, [0.0]
        learned = [(layer.down[slot].clone(), layer.up[slot].T.clone()) for layer in bank.layers]
        bank.matrix[slot].copy_(before)
        for layer, (down, up) in zip(bank.layers, learned, strict=True):
            old = Factors(layer.down[slot].clone(), layer.up[slot].T.clone())
            found, error = cut(extrapolated(Factors(down, up), old, alpha=alpha), bank.rank)
            layer.down[slot], layer.up[slot] = found.down, found.up.T
            errors.append(error)
        return max(errors)

    def _move_references(self, phase: int) -> None:
        reference = self.online.reference
        for user, learner in self.cohort.items():
            policy = self.bank.matrix[learner.slot]
            if reference.policy == "periodic" and (phase + 1) % reference.every == 0:
                self.compared[user] = policy.clone()
            elif reference.policy == "ema":
                decay = reference.ema or 0.0
                self.compared[user] = decay * self.compared[user] + (1 - decay) * policy

    def _moment(self, phase: int) -> Moment:
        learners = [
            {**learner.state_dict(), "means": self.forwards.means.slot_state(learner.slot)}
            for learner in self.cohort.values()
        ]
        compared, iterates = ({user: some[user] for user in self.cohort} for some in (self.compared, self.iterates))
        without = {user: dict(some) for user, some in self.without.items()}
        return Moment(phase, learners, compared, iterates, without)


def _row(pair: Pair, asked: dict[str, Asked]) -> Preference:
    return pair.preference(asked[pair.row].source, Place(f"pairs of phase {pair.row.partition('/')[0]}", 0))
