"""Base responses and reference log-probs of a sample of rows, made for real and kept in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from pluralign.models.anchoring import Anchored, anchor_preferences
from pluralign.models.cache import Section
from pluralign.models.references import base_responses, reference_logps
from pluralign.preferences import Preference
from pluralign.training.people import Person
from pluralign.training.planning.costs import Stopwatch, Work
from pluralign.training.planning.sample import evenly, tokens_seen
from pluralign.training.planning.survey import Surveyor
from pluralign.training.run import Run

_ROWS = 64
"""Rows that the sample has at least, where there are so many."""
_MOST_CHUNKS = 4


@dataclass
class AnchoredSample:
    """Anchored rows, and what it took to anchor them.

    Attributes:
        rows: a sample of the run's, short and long ones.
        watch: parts `base responses` (pieces are batches, size is prompts), `reference log-probs` (forwards, tokens)
            and `encoding` (size is rows).
        prompts: base responses that were made and are in the cache now.
        responses: log-probs of the same kind.
    """

    run: Run
    surveyor: Surveyor
    watch: Stopwatch = field(default_factory=Stopwatch)
    rows: list[Anchored] = field(default_factory=list)
    prompts: int = 0
    responses: int = 0

    def add(self, rows: Sequence[Preference]) -> None:
        """Anchor some more rows as for training."""
        with self._generating(self.surveyor.responses):
            encoded = self._anchor(rows)
        if self.run.worker.caches_references:
            with self.run.worker.precision():
                self.score(encoded)
        people = [Person("", list(rows), [])]
        self.rows += self.run.worker.anchor(people)[""].train

    def answer(self, rows: Sequence[Preference]) -> None:
        """Let the base answer the prompts of some rows, as for the evaluation."""
        worker, config = self.run.worker, self.run.config
        prompts = [one.prompt_ids for one in worker.encoder.encode_many(rows, branches=())]
        settings = config.base_responses.greedy()
        with self._generating(self.surveyor.answers):
            base_responses(worker.base, prompts, settings, worker.cache, seed=config.seed)

    @contextmanager
    def _generating(self, section: Section) -> Iterator[None]:
        before, batch = len(section), self.run.config.base_responses.batch_size
        with self.watch.part("base responses"):
            yield
        made = len(section) - before
        self.prompts += made
        self.watch.note("base responses", Work(-(-made // batch), made))

    def score(self, rows: Sequence[Anchored]) -> None:
        """Compute the reference log-probs of some rows."""
        worker = self.run.worker
        section = self.surveyor.logps()
        before = len(section)
        with tokens_seen(worker.base.model) as seen, self.watch.part("reference log-probs"):
            reference_logps(worker.base, [row.encoded for row in rows], worker.cache, layout=worker.layout)
        self.responses += len(section) - before
        self.watch.note("reference log-probs", sum(seen, Work()))

    def anchor_held_out(self, rows: Sequence[Preference]) -> None:
        """Anchor some rows as for the evaluation."""
        self.score(self._anchor(rows, branches=("chosen", "rejected")))

    def _anchor(self, rows: Sequence[Preference], branches: Sequence[str] | None = None) -> list[Anchored]:
        worker, config = self.run.worker, self.run.config
        return anchor_preferences(
            worker.base,
            rows,
            encoder=worker.encoder,
            settings=config.base_responses,
            cache=worker.cache,
            layout=worker.layout,
            branches=self.run.objective.branches if branches is None else branches,
            with_reference=False,
            seed=config.seed,
        )

    @property
    def base_lengths(self) -> list[int]:
        """Tokens of the sample's base responses."""
        found = [row.encoded.response_ids.get("base") for row in self.rows]
        return [len(ids) for ids in found if ids]


def anchor_sample(run: Run, surveyor: Surveyor, rows: Sequence[tuple[int, Preference]]) -> AnchoredSample:
    """Anchor a sample of rows: of those that the cache lacks something for, where there are any.

    Args:
        run: with its base loaded.
        surveyor: that has looked at the rows.
        rows: with their lengths in tokens.
    """
    sample = AnchoredSample(run, surveyor)
    ordered = [row for _, row in sorted(rows, key=lambda item: item[0])]
    lacking = [row for row in ordered if id(row) in surveyor.lacking]
    size = run.config.base_responses.batch_size if "base" in run.objective.branches else _ROWS
    chunks = max(1, min(_MOST_CHUNKS, len(lacking) // (10 * size)))
    picked = evenly(lacking, chunks * size)
    for number in range(chunks if lacking else 0):
        # Each of them has short and long rows; the first one warms up.
        sample.add(picked[number::chunks])
    if len(sample.rows) < _ROWS:
        taken = set(map(id, picked))
        others = [row for row in ordered if id(row) not in taken]
        if others:
            sample.add(evenly(others, _ROWS - len(sample.rows)))
    return sample
