"""The evaluation of a few people with the sample's adapters, and what it says of everybody's."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pluralign.preferences import Preference
from pluralign.training.planning.anchoring import AnchoredSample
from pluralign.training.planning.sample import evenly
from pluralign.training.run import Run

_AT_LEAST, _AT_MOST = 2, 4
"""People whose policies are measured; by themselves they would not share batches as everybody does."""
_OTHERS = 9
"""People of a large population whose pairs one of them is tried on."""
_ROWS = 64
"""Held-out rows that the one policy of all is measured on."""
_POLICY = ("adapters", "scores", "drift", "answers", "knowledge", "results")


@dataclass
class Measured:
    """What the evaluation of a few people took, and how much more of everything there is for all.

    Attributes:
        seconds: by part; `base` is what is of the base alone.
        policies: that were measured, and that will be.
        people: that were measured, and that will be; of one policy for all, those who share it.
        rows: held-out rows that were looked at, and that there are.
        prompts: that were answered, and that will be.
        manners: distinct manners of answering among those who were measured, and among all who will be.
        own: whether probes were put in people's own manners.
        person_bytes: of `evaluation.json`, for each person.
        other_bytes: of the rest of it.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    policies: tuple[int, int] = (0, 0)
    people: tuple[int, int] = (0, 0)
    rows: tuple[int, int] = (0, 0)
    prompts: tuple[int, int] = (0, 0)
    manners: tuple[int, int] = (0, 0)
    own: bool = False
    person_bytes: float = 0.0
    other_bytes: int = 0

    @property
    def total(self) -> float:
        """Seconds of the whole evaluation, without what goes into the cache."""
        amounts = {
            "held-out rows": self.rows,
            "adapters": self.policies,
            # One policy for all is put once to everybody's pairs, each of several to some people's.
            "scores": self.policies if self.policies[1] > 1 else self.rows,
            "drift": self.prompts,
            "answers": self.prompts,
            "knowledge": self.policies,
            "results": self.people,
        }
        known = {part: done for part, done in amounts.items() if done[0]}
        return sum(self.seconds.get(part, 0.0) * there / done for part, (done, there) in known.items()) + self._probes

    @property
    def _probes(self) -> float:
        """The base on probes in the manners of people outside of the sample; of those inside they are cached now."""
        looked_at, there = self.manners
        if not self.own or there <= looked_at:
            return 0.0
        # Behind the base's own words the probes are one more manner. Where all of the sample's were cached before, the
        # policies say what one takes: they answer in two manners each, beside pairs.
        policies = self.seconds.get("scores", 0.0) / max(self.policies[0], 1) / 3
        return max(self.seconds.get("base", 0.0) / (1 + looked_at), policies) * (there - looked_at)

    @property
    def bytes(self) -> int:
        """Size of `evaluation.json`."""
        return round(self.other_bytes + self.person_bytes * self.people[1])


@dataclass
class Measuring:
    """Measures a few people as the run measures everybody.

    Args:
        run: with its base loaded.
        sample: scores what is missing, with its clock.
        held_out: everybody's rows.
        owners: who will have an adapter.
        measured: of these, who will be measured.
    """

    run: Run
    sample: AnchoredSample
    held_out: Sequence[Preference]
    owners: Sequence[str]
    measured: Sequence[str]

    def measure(self, adapter: Path, folder: Path) -> Measured:
        """Measure some of them with copies of an adapter.

        Args:
            adapter: of the sample's training.
            folder: for the copies.
        """
        chosen, owners = self._chosen()
        rows = self._rows(set(owners))
        if self.run.config.parameters.kind == "lora":
            # A fully trained base is no base any more; its references would be wrong.
            self.sample.anchor_held_out(rows)
            self._answer(rows, set(chosen))
        adapters = {owner: folder / f"copy-{number}" for number, owner in enumerate(owners)}
        adapters[chosen[0]] = adapter
        for owner in chosen[1:]:
            shutil.copytree(adapter, adapters[owner])
        everybody = set(self.measured)
        found = Measured(
            policies=(len(chosen), len(self.measured)),
            people=(len(self._manners(rows, set(chosen))), len(self._manners(self.held_out, everybody))),
            rows=(len(rows), len(self.held_out)),
            prompts=(self._prompts(rows, set(chosen)), self._prompts(self.held_out, everybody)),
            manners=(
                len(set(self._manners(rows, set(chosen)).values())),
                len(set(self._manners(self.held_out, everybody).values())),
            ),
        )
        clock = time.perf_counter()

        def done(part: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            found.seconds[part] = found.seconds.get(part, 0.0) + now - clock
            clock = now

        # Who shares one policy is measured by name, not by the policy's.
        only = None if self.run.config.parameters.per == "none" else chosen
        evaluation = self.run.measure(adapters, rows, skipped={}, only=only, done=done)
        written = len(json.dumps(evaluation.as_dict(), indent=2))
        done("results")
        people = len(json.dumps({"people": evaluation.people}, indent=2))
        found.person_bytes = people / max(len(evaluation.people), 1)
        found.other_bytes = written - people
        kept_own = [(results.get("retention") or {}).get("kept_own") for results in evaluation.people.values()]
        found.own = any(value is not None for value in kept_own)
        return found

    def _answer(self, rows: Sequence[Preference], owners: set[str]) -> None:
        """The base's answers, apart from all else that the evaluation does first."""
        settings, per = self.run.config.evaluation, self.run.config.parameters.per
        if not settings.generate:
            return
        asked: dict[str, dict[str, Preference]] = {}
        for row in rows:
            if row.owner(per) in owners:
                asked.setdefault(self._person(row), {}).setdefault(repr(row.prompt), row)
        some = [row for own in asked.values() for row in list(own.values())[: settings.max_prompts]]
        # Some to warm up, then the others.
        first, rest = some[: len(some) // 4], some[len(some) // 4 :]
        for part in (first, rest):
            if part:
                self.sample.answer(part)

    def _chosen(self) -> tuple[list[str], list[str]]:
        """Who is measured, and who is there beside them to be tried on."""
        number = min(max(_AT_LEAST, min(_AT_MOST, len(self.measured) // 10)), len(self.measured))
        rows: dict[str, int] = {}
        for row in self.held_out:
            owner = row.owner(self.run.config.parameters.per)
            rows[owner] = rows.get(owner, 0) + 1
        chosen = evenly(sorted(self.measured, key=lambda owner: rows.get(owner, 0)), number)
        limit = self.run.config.evaluation.cross_table
        if len(self.owners) <= limit:
            return chosen, list(self.owners)
        # Of many people each is tried on a few; as many are all there are here.
        others = evenly(sorted(self.owners, key=lambda owner: rows.get(owner, 0)), min(_OTHERS, limit))
        return chosen, list(dict.fromkeys((*chosen, *others)))

    def _rows(self, owners: set[str]) -> list[Preference]:
        per = self.run.config.parameters.per
        if per != "none":
            return [row for row in self.held_out if row.owner(per) in owners]
        by_user: dict[str | None, list[Preference]] = {}
        for row in self.held_out:
            by_user.setdefault(row.user, []).append(row)
        if len(by_user) == 1:
            return evenly(self.held_out, max(_ROWS, self.run.config.evaluation.max_prompts))
        mean = len(self.held_out) / len(by_user) if by_user else 1
        users = set(evenly(list(by_user), max(1, round(_ROWS / mean))))
        return [row for row in self.held_out if row.user in users]

    def _manners(self, rows: Sequence[Preference], owners: set[str]) -> dict[str, str]:
        """Person -> the name that probes may know their manner by: style, group, or their own."""
        found: dict[str, str] = {}
        for row in rows:
            if row.owner(self.run.config.parameters.per) in owners:
                style = row.columns.get("style")
                person = self._person(row)
                found.setdefault(person, style if isinstance(style, str) else row.group or person)
        return found

    def _prompts(self, rows: Sequence[Preference], owners: set[str]) -> int:
        """Number of prompts that the policies of some owners answer."""
        per, most = self.run.config.parameters.per, self.run.config.evaluation.max_prompts
        asked: dict[tuple[str, str], dict[str, None]] = {}
        for row in rows:
            if (owner := row.owner(per)) in owners:
                asked.setdefault((owner, self._person(row)), {})[repr(row.prompt)] = None
        return len({(owner, prompt) for (owner, _), prompts in asked.items() for prompt in list(prompts)[:most]})

    def _person(self, row: Preference) -> str:
        per = self.run.config.parameters.per
        return row.user or row.owner(per) if per == "none" else row.owner(per)
