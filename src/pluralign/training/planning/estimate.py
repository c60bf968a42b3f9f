"""From counts and a measured sample to the time, memory and disk of a whole run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluralign.models.bank import LoraBank
from pluralign.models.scoring import Forward
from pluralign.preferences import Preference
from pluralign.resolve import as_yaml
from pluralign.training.bank.capacity import choose_slots, forward_tokens, slot_bytes
from pluralign.training.bank.snapshots import Snapshots
from pluralign.training.checkpoints import last_checkpoint
from pluralign.training.cluster import connected, workers_of_cluster
from pluralign.training.planning.anchoring import AnchoredSample, anchor_sample
from pluralign.training.planning.costs import Stopwatch, Work
from pluralign.training.planning.counts import Counter, Training
from pluralign.training.planning.measuring import Measured, Measuring
from pluralign.training.planning.memory import Levels
from pluralign.training.planning.sample import split, train_sample
from pluralign.training.planning.survey import Survey, Surveyor
from pluralign.training.planning.table import shown_size
from pluralign.training.run import Prepared, Run
from pluralign.training.shares import Share

_SHARE, _SECONDS = 0.08, 12.0
"""Of the training, and seconds at most, that the sample's steps take."""
_FEWEST, _MOST = 2, 12
"""Optimiser steps of the sample."""
_SNAPSHOTS = 0.05
"""Of the time, what the bank's snapshots take at most."""
_KEPT_LOGITS = 2**30
"""Bytes of the base's logits that an evaluation keeps at most."""
_AT_ONCE = 32
"""Adapters that an evaluation has in memory at a time."""


@dataclass
class Estimate:
    """The stages of making a plan.

    Args:
        run: prepared.
        found: what it has found.
        folder: empty, to write to.
        loading: seconds until the run was prepared.
        levels: of memory.
        processes: of torchrun.
    """

    run: Run
    found: Prepared
    folder: Path
    loading: float
    levels: Levels
    processes: int = 1
    watch: Stopwatch = field(default_factory=Stopwatch)
    warm_up: float = 0.0
    slots: int = 0
    slot_size: int = 0
    adapter_size: int = 0
    sample: AnchoredSample | None = None
    training: Training = field(default_factory=Training)
    measured: Measured = field(default_factory=Measured)
    survey: Survey = field(init=False)
    workers: int = field(init=False, default=1)

    def make(self) -> dict[str, Any]:
        """The fields of a `Plan`."""
        people, census = self.found.growth.people, self.found.census
        owners, measured = self._measured()
        held_out = census.held_out
        self.workers = self._workers(len(people))
        surveyor = Surveyor(self.run)
        self.survey = surveyor.survey(people, held_out, measured)
        self._open_slots(len(people))
        adapter: Path | None = None
        if people:
            self.sample = anchor_sample(self.run, surveyor, self._rows())
            made = self._made([person.user for person in people])
            counter = Counter(self.run, self.survey.people, self.sample.base_lengths, made, self.workers)
            self.training = counter.count(self.slots, self._tokens)
            adapter = self._train()
        elif self.found.record.finished:
            adapter = next(iter(self.found.record.finished.values()))
        if measured and adapter is not None:
            sample = self.sample or AnchoredSample(self.run, surveyor)
            self.sample = sample
            self.measured = Measuring(self.run, sample, held_out, owners, measured).measure(adapter, self.folder)
        return self._fields()

    # ---- who and what ----

    def _measured(self) -> tuple[list[str], list[str]]:
        """Who will have an adapter, and who of them will be measured."""
        found, config = self.found, self.run.config
        owners = list(dict.fromkeys((*found.record.finished, *(person.user for person in found.growth.people))))
        if not (found.census.held_out or config.evaluation.asks):
            return owners, []
        if not found.works and self.run.folder.evaluation.exists():
            return owners, []
        before = self.run.measured_before() if self.run.folder.evaluation.exists() else None
        if before is None:
            return owners, owners
        again = {person.user for person in found.growth.people}
        return owners, [owner for owner in owners if owner not in before.people or owner in again]

    def _workers(self, people: int) -> int:
        if self.run.config.engine != "ray":
            return self.processes
        with connected():
            return workers_of_cluster(self.run.config, people)

    def _made(self, users: Collection[str]) -> dict[str, int]:
        """Person -> steps that a killed run has left."""
        folder = self.run.folder
        if not self.run.together:
            last = {user: last_checkpoint(folder.state(user)) for user in users}
            return {user: int(path.name.rpartition("-")[2]) for user, path in last.items() if path}
        snapshots = Snapshots(folder.path / "state", Share(0, self.workers)).read()
        return {user: max(step, 0) for one in snapshots.values() for user, step in one.steps.items()}

    def _rows(self) -> list[tuple[int, Preference]]:
        """Everybody's rows with their lengths."""
        return [
            (lengths[0] + sum(lengths[1]), row)
            for person, one in zip(self.found.growth.people, self.survey.people, strict=True)
            for row, lengths in zip((*person.train, *person.held_out), (*one.train, *one.held_out), strict=True)
        ]

    def _open_slots(self, people: int) -> None:
        if not self.run.together or not people:
            return
        config, base = self.run.config, self.run.worker.base
        bank = LoraBank(base, self.run.worker.config.parameters, 1)
        bank.detach()
        self.adapter_size = bank.bytes_per_slot
        self.slot_size = slot_bytes(bank.bytes_per_slot, config.training)
        self.slots = choose_slots(config, -(-people // self.workers), bank.bytes_per_slot, base.device)

    @property
    def _tokens(self) -> int:
        return forward_tokens(self.run.config, self.run.worker.base.device)

    # ---- the sample's training ----

    def _train(self) -> Path:
        assert self.sample is not None
        rows = split(self.sample.rows, held_out=any(one.held_out for one in self.survey.people))
        # A few people warm up, and say about what a step takes.
        first = Stopwatch()
        few = max(1, self.slots // 8) if self.slots else 1
        train_sample(self.run, self.folder / "first", rows, people=few, steps=_FEWEST, watch=first)
        usual = first.cost("forwards", skip=1)
        self.warm_up = max(first.seconds.get("forwards", 0.0) - usual.of(_total(first, "forwards")), 0.0)
        whole, rounds = self._forward_seconds(first, skip=1), max(self.training.rounds, 1)
        allowed = min(_SHARE * whole, _SECONDS) * rounds / max(whole, 1e-9)
        steps = min(max(_FEWEST, round(allowed)), _MOST)
        for name in ("forwards", "validation"):
            self.watch.measured[name] = first.measured.get(name, [])[1:]
        adapters = train_sample(
            self.run, self.folder / "second", rows, people=self.slots or 1, steps=steps, watch=self.watch
        )
        return adapters[0]

    def _forward_seconds(self, watch: Stopwatch, *, skip: int = 0) -> float:
        return watch.cost("forwards", skip=skip).of(self.training.forwards)

    # ---- the whole ----

    def _seconds(self) -> dict[str, float]:
        watch, work = self.watch, self.training
        waiting, scoring = self._to_anchor()
        anchored = self.sample.watch if self.sample else Stopwatch()
        rounds = watch.measured.get("steps", [])
        per_step = sum(seconds for _, seconds in rounds) / max(sum(done.size for done, _ in rounds), 1)
        lines = watch.seconds.get("lines", 0.0) / max(_total(watch, "lines").size, 1)
        joining = watch.seconds.get("joining", 0.0) / max(_total(watch, "joining").pieces, 1)
        training = self._forward_seconds(watch) + work.steps * per_step + work.people * joining + self.warm_up
        training += watch.seconds.get("opening", 0.0) + lines * work.lines * bool(self.slots)
        validation = watch.cost("validation").of(work.scored)
        saving = watch.each("saving") * work.people
        checkpoint = watch.seconds.get("checkpoint", 0.0) / max(_total(watch, "checkpoint").size, 1)
        if self.slots:
            took = checkpoint * self.slots
            due = min(work.saves, work.rounds)
            saving += min(due * took, _SNAPSHOTS * (training + validation))
        else:
            saving += checkpoint * work.saves
        seconds = {
            "loading": self.loading,
            # The first ones warm up.
            "base responses": anchored.cost("base responses", skip=1).of(waiting),
            "reference log-probs": anchored.cost("reference log-probs", skip=1).of(scoring),
            "training": training,
            "validation": validation,
            "saving": saving,
        }
        divided = ("base responses", "reference log-probs") if self.run.together else ()
        for name in (*divided, "training", "validation", "saving"):
            seconds[name] /= self.workers
        seconds["evaluation"] = self.measured.total
        return {**seconds, "total": sum(seconds.values())}

    def _to_anchor(self) -> tuple[Work, Work]:
        """Base responses and log-probs that the cache still lacks when the plan is made."""
        survey, sample = self.survey, self.sample
        base, batch = self.run.worker.base, self.run.config.base_responses.batch_size
        forward = Forward.of(base, self.run.worker.layout)
        lengths = sample.base_lengths if sample else []
        waiting = survey.training.generation(batch) + survey.evaluation.generation(batch)
        scoring = survey.training.scoring(forward, lengths) + survey.evaluation.scoring(forward, lengths)
        responses = survey.training.responses + survey.evaluation.responses
        made, scored = (sample.prompts, sample.responses) if sample else (0, 0)
        return (
            waiting.times(max(1 - made / max(waiting.size, 1), 0)),
            scoring.times(max(1 - scored / max(responses, 1), 0)),
        )

    def _disk(self) -> dict[str, int]:
        work, second = self.training, self.folder / "second"
        index = sum(2 * len(json.dumps(person.user)) + 8 for person in self.survey.people)
        parts = {
            "adapters": self._result_bytes * work.people + index,
            "metrics": self._metrics_bytes(second / "metrics.jsonl"),
            "evaluation": self.measured.bytes,
            "cache": self._cache_bytes(),
            "configuration": len(as_yaml(self.run.config).encode()) if self.found.works else 0,
        }
        return {**parts, "total": sum(parts.values()), "passing": self._passing_bytes(second / "state")}

    @property
    def _result_bytes(self) -> int:
        """Of one person's adapter, or of the one model."""
        second = self.folder / "second"
        if self.run.config.parameters.kind == "full":
            return _size(second / "model")
        return next((_size(path) for path in (second / "adapters").glob("*") if path.is_dir()), 0)

    def _passing_bytes(self, state: Path) -> int:
        """What checkpoints take while the run is at work: a new one stands beside the old one until it is whole."""
        if self.run.config.training.save_strategy == "no" or not self.training.people:
            return 0
        if not self.slots:
            # Weights and Adam's two means.
            return 2 * 3 * self._result_bytes
        people = max(_total(self.watch, "checkpoint").size, 1)
        return round(2 * self.slots * _size(state) / people)

    def _metrics_bytes(self, path: Path) -> int:
        if not path.exists():
            return 0
        lines = path.read_text(encoding="utf-8").splitlines()
        read = [(json.loads(line), len(line.encode()) + 1) for line in lines]
        users = [len(json.dumps(person.user, ensure_ascii=False).encode()) for person in self.survey.people]
        mean = sum(users) / max(len(users), 1)

        def each(kind: str) -> float:
            found = [size - len(json.dumps(line["user"])) for line, size in read if (kind in line)]
            return sum(found) / len(found) + mean if found else 0.0

        work = self.training
        return round(each("loss") * (work.lines - work.validations) + each("eval_loss") * work.validations)

    def _cache_bytes(self) -> int:
        waiting, _ = self._to_anchor()
        if self.sample is None:
            return 0
        survey = self.survey
        responses = survey.training.responses + survey.evaluation.responses - self.sample.responses
        # The base's answers to the probes, in everybody's manner.
        looked_at, there = self.measured.manners
        if self.measured.own:
            options = sum(len(probe.options) for found in self.run.probes for probe in found.probes)
            responses += max(there - looked_at, 0) * options
        of = self.sample.surveyor
        each = of.trained_logps.bytes_each or of.measured_logps.bytes_each
        return round(waiting.size * of.responses.bytes_each + max(responses, 0) * each)

    def _memory(self) -> dict[str, int]:
        slots, base = self.slots * self.slot_size, self.run.worker.base
        parts = self.levels.parts(slots)
        here, there = self.measured.policies
        more = (min(there, _AT_ONCE) - here) * self.adapter_size if there > 1 else 0
        prompts = self.measured.prompts[1] - self.measured.prompts[0]
        lengths = self.sample.base_lengths if self.sample else []
        mean = sum(lengths) / len(lengths) if lengths else self.run.config.base_responses.max_new_tokens
        logits = prompts * mean * base.model.get_output_embeddings().weight.shape[0] * base.model.dtype.itemsize
        more += min(int(logits), _KEPT_LOGITS) + self.measured.bytes
        # The evaluation begins when the slots have gone.
        parts["evaluation"] = max(self.levels.now + more - sum(parts.values()), 0) if there else 0
        return {**parts, "total": sum(parts.values())}

    # ---- the plan ----

    def _fields(self) -> dict[str, Any]:
        growth, record, work = self.found.growth, self.found.record, self.training
        again = set(growth.work.update)
        users = [person.user for person in growth.people]
        updated = sum(user in again and user in record.finished for user in users)
        waiting, scoring = self._to_anchor()
        memory, disk = self._memory(), self._disk()
        passing = disk.pop("passing")
        free = shutil.disk_usage(_existing(self.run.folder.path)).free
        fields: dict[str, Any] = {
            "people": {
                "new": len(users) - updated,
                "updated": updated,
                "left": len([user for user in record.finished if user not in set(users)]),
                "skipped": len({**self.found.census.skipped, **record.skipped}),
            },
            "work": {
                "rows": work.rows,
                "steps": work.steps,
                "slots": self.slots,
                "workers": self.workers,
                "training_tokens": round(work.forwards.size),
                "validation_tokens": round(work.scored.size),
                "base_responses": round(waiting.size),
                "reference_tokens": round(scoring.size),
            },
            "seconds": {name: round(seconds, 3) for name, seconds in self._seconds().items()},
            "memory": memory,
            "device": str(self.levels.device),
            "memory_free": self.levels.free,
            "disk": {**disk, "passing": passing},
            "disk_free": free,
        }
        return {**fields, "warnings": self._warnings(memory, disk["total"] + passing, free)}

    def _warnings(self, memory: dict[str, int], disk: int, free: int) -> list[str]:
        found = []
        if memory["total"] > self.levels.free:
            found.append(f"memory does not suffice: {shown_size(memory['total'])} of {shown_size(self.levels.free)}")
        if disk > free:
            found.append(f"the disk does not suffice: {shown_size(disk)} of {shown_size(free)}")
        if self.workers > 1:
            found.append(
                f"times are those of one worker, divided by {self.workers}; memory is one worker's, and more cores, "
                "or fewer, are not looked at"
            )
        if self.run.config.training.early_stopping_patience is not None:
            found.append("people who stop early take less")
        return found


def _total(watch: Stopwatch, name: str) -> Work:
    return sum((work for work, _ in watch.measured.get(name, [])), Work())


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path else 0


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
