"""The rows of a run in lengths: what goes through the model, and what of it the cache does not hold yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle

from pluralign.models.cache import Section
from pluralign.models.encoding import Encoded
from pluralign.models.references import content_key, logps_section, responses_section
from pluralign.models.scoring import Forward, batches
from pluralign.preferences import Preference
from pluralign.training.batches import Draw
from pluralign.training.people import Person
from pluralign.training.planning.costs import Work
from pluralign.training.run import Run
from pluralign.training.weighting import Weighting
from pluralign.training.worker import wave_numbers, waves

UNKNOWN = -1
"""Length of a base response that is not there yet."""

Lengths = tuple[int, tuple[int, ...]]
"""Tokens of a row's prompt and of each of its responses."""


@dataclass(slots=True)
class PersonLengths:
    """A person's rows in lengths."""

    user: str
    train: list[Lengths]
    held_out: list[Lengths]
    draw: Draw


@dataclass(slots=True)
class Missing:
    """What the cache does not hold.

    Attributes:
        prompts: prompts without a base response, a number a wave.
        requests: responses without a log-prob, a list a wave: of each prompt its tokens and those of the responses.
    """

    prompts: list[int] = field(default_factory=list)
    requests: list[list[tuple[int, list[int]]]] = field(default_factory=list)

    @property
    def responses(self) -> int:
        """Number of responses without a log-prob."""
        return sum(len(lengths) for wave in self.requests for _, lengths in wave)

    def generation(self, batch_size: int) -> Work:
        """Batches and prompts of the base responses."""
        return Work(sum(-(-number // batch_size) for number in self.prompts), sum(self.prompts))

    def scoring(self, forward: Forward, base_lengths: Sequence[int]) -> Work:
        """Forwards and tokens, padding included, of the log-probs.

        Args:
            forward: bounds the batches.
            base_lengths: of some base responses; those that are not there yet get these in turn.
        """
        draw = cycle(base_lengths or [1])
        work = Work()
        for wave in self.requests:
            known = [(prompt, [next(draw) if one == UNKNOWN else one for one in lengths]) for prompt, lengths in wave]
            if forward.layout == "separate":
                known = [(prompt, [one]) for prompt, lengths in known for one in lengths]
            rows = [(0, _of_lengths(prompt, lengths)) for prompt, lengths in known]
            for batch in batches(rows, forward):
                work += Work(1, len(batch) * max(_tokens(row) for _, row in batch))
        return work


@dataclass(slots=True)
class Survey:
    """What a run has to do, in lengths.

    Attributes:
        people: those who are to be trained, in their order.
        training: what the cache lacks for their training.
        evaluation: what it then lacks for the evaluation.
        lacking: ids of row objects for which it lacks something.
    """

    people: list[PersonLengths]
    training: Missing
    evaluation: Missing
    lacking: set[int]


class Surveyor:
    """Looks at rows without computing anything.

    Args:
        run: with its base loaded.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.worker, self.config = run, run.worker, run.config
        worker, config = run.worker, run.config
        self.responses, self.answers = (
            responses_section(worker.base, settings, worker.cache, seed=config.seed)
            for settings in (config.base_responses, config.base_responses.greedy())
        )
        with worker.precision():
            self.trained_logps = self.logps()
        self.measured_logps = self.logps()
        self._prompts: set[str] = set()
        self._requests: dict[int, set[str]] = {}
        self.lacking: set[int] = set()

    def logps(self) -> Section:
        """Reference log-probs under the present autocast."""
        return logps_section(self.worker.base, self.worker.cache, layout=self.worker.layout)

    def survey(self, people: Sequence[Person], held_out: Sequence[Preference], measured: Collection[str]) -> Survey:
        """Go through all rows.

        Args:
            people: who is to be trained.
            held_out: rows to evaluate on.
            measured: owners of those who are to be evaluated.
        """
        training, evaluation = Missing(), Missing()
        lengths: list[PersonLengths] = []
        branches = self.run.objective.branches
        logps = self.trained_logps if self.worker.caches_references else None
        for wave in waves(people, wave_numbers(people)):
            flat = [row for person in wave for row in (*person.train, *person.held_out)]
            found = iter(self._look(flat, branches, logps, training))
            for person in wave:
                train, held = ([next(found) for _ in rows] for rows in (person.train, person.held_out))
                seat = Weighting(self.config.weighting, person.train, counts=self.run.objective.counts)
                lengths.append(PersonLengths(person.user, train, held, Draw.of(person.train, seat)))
        if measured:
            self._look(held_out, ("chosen", "rejected"), self.measured_logps, evaluation)
            if self.config.evaluation.generate:
                evaluation.prompts.append(self._count_questions(held_out, measured))
        return Survey(lengths, training, evaluation, self.lacking)

    def _look(
        self, rows: Sequence[Preference], branches: Sequence[str], logps: Section | None, missing: Missing
    ) -> list[Lengths]:
        """Lengths of some rows, and what is missing of them."""
        rows, unanswered = self._with_known_responses(rows) if "base" in branches else (list(rows), 0)
        encoded = self.worker.encoder.encode_many(rows, branches)
        lengths = [
            (len(one.prompt_ids), tuple(self._length(row, one, name) for name in branches))
            for row, one in zip(rows, encoded, strict=True)
        ]
        missing.prompts.append(unanswered)
        if logps is not None:
            missing.requests.append(self._unscored(rows, encoded, branches, logps))
        return lengths

    def _length(self, row: Preference, encoded: Encoded, branch: str) -> int:
        if branch == "base" and row.base is None:
            return UNKNOWN
        return len(encoded.response_ids.get(branch, ()))

    def _with_known_responses(self, rows: Sequence[Preference]) -> tuple[list[Preference], int]:
        """The rows with the base responses that are cached, and the number of distinct prompts that have none."""
        rows, before = list(rows), len(self._prompts)
        lacking = [index for index, row in enumerate(rows) if row.base is None]
        prompts = self.worker.encoder.encode_many([rows[index] for index in lacking], branches=())
        for index, one in zip(lacking, prompts, strict=True):
            key = content_key(one.prompt_ids)
            said = self.responses.get(key)
            if said is None:
                self._prompts.add(key)
                self.lacking.add(id(rows[index]))
            else:
                finished = said["finished"] or not said["text"]
                rows[index] = replace(rows[index], base=said["text"], base_finished=finished)
        return rows, len(self._prompts) - before

    def _unscored(
        self, rows: Sequence[Preference], encoded: Sequence[Encoded], branches: Sequence[str], logps: Section
    ) -> list[tuple[int, list[int]]]:
        seen = self._requests.setdefault(id(logps), set())
        by_prompt: dict[str, tuple[int, list[int]]] = {}
        for row, one in zip(rows, encoded, strict=True):
            prompt = content_key(one.prompt_ids)
            for name in branches:
                ids = one.response_ids.get(name)
                unknown = name == "base" and row.base is None
                if not ids and not unknown:
                    continue
                key = f"{prompt} base" if unknown else content_key(one.prompt_ids, ids or ())
                if key in seen or key in logps:
                    continue
                seen.add(key)
                self.lacking.add(id(row))
                by_prompt.setdefault(prompt, (len(one.prompt_ids), []))[1].append(
                    UNKNOWN if unknown else len(ids or ())
                )
        return list(by_prompt.values())

    def _count_questions(self, rows: Sequence[Preference], measured: Collection[str]) -> int:
        """Number of held-out prompts that the base has still to answer for the evaluation alone."""
        per, most = self.config.parameters.per, self.config.evaluation.max_prompts
        asked: dict[str, dict[str, None]] = {}
        encoded = self.worker.encoder.encode_many(rows, branches=())
        for row, one in zip(rows, encoded, strict=True):
            owner = row.owner(per)
            if owner in measured:
                person = row.user or owner if per == "none" else owner
                asked.setdefault(person, {})[content_key(one.prompt_ids)] = None
        keys = {key for own in asked.values() for key in list(own)[:most]}
        # Greedy base responses are the answers that the evaluation asks for; sampled ones are others.
        waiting = self._prompts if self.answers is self.responses else ()
        return len({key for key in keys if key not in waiting and key not in self.answers})


def known(lengths: Lengths, draw: Iterator[int]) -> Lengths:
    """A row's lengths, with the next of `draw` for a base response that is not there yet."""
    prompt, responses = lengths
    return prompt, tuple(next(draw) if one == UNKNOWN else one for one in responses)


def _of_lengths(prompt: int, responses: Sequence[int]) -> Encoded:
    # Only lengths are looked at, and a range has one without holding anything.
    return Encoded(range(prompt), {f"o{n}": range(length) for n, length in enumerate(responses)})  # type: ignore[arg-type,misc]


def _tokens(row: Encoded) -> int:
    return len(row.prompt_ids) + sum(map(len, row.response_ids.values()))
