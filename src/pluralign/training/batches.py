"""From anchored rows to batches: branches by name, references beside them, and every other column carried along."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pluralign.models.rows import ResponseBatch, collate
from pluralign.objectives import Weighed
from pluralign.objectives.composition import Reference
from pluralign.preferences.schema import Preference
from pluralign.training.weighting import NO_GROUP, Weighting

if TYPE_CHECKING:
    from pluralign.models.anchoring import Anchored

Batch = dict[str, Any]
"""`responses` (`ResponseBatch`), `reference` (branch -> [B], or several `Weighed`), `weight` [B], `group` [B], `counts`
[B], `columns` (name -> list), and where rows have them `embeddings` [B, D]."""


@dataclass(slots=True)
class Example:
    """One row as the collator takes it.

    Attributes:
        row: the anchored row.
        weight: how much its loss counts, >= 0.
        group: number of its group, or `NO_GROUP`.
        counts: False for a row that only fills up the last batch of several processes: it weighs nothing and is in no
            metric.
    """

    row: Anchored
    weight: float = 1.0
    group: int = NO_GROUP
    counts: bool = True


class AnchoredDataset(Dataset[Example]):
    """Anchored rows of one person, with their weights.

    An index of `len(self)` and more gives row `index % len(self)` as a filler that does not count (see `EpochSampler`).

    Args:
        rows: at least one.
        weighting: what they count; without it, 1 each.

    Raises:
        InputError: a row has no such column, or a weight that is no finite number >= 0.
    """

    def __init__(self, rows: Sequence[Anchored], weighting: Weighting | None = None) -> None:
        self.rows, self.weighting = rows, weighting
        self.weights = [weighting.weight(row.preference) if weighting else 1.0 for row in rows]
        self.groups = [weighting.group(row.preference) if weighting else NO_GROUP for row in rows]
        self.draw = Draw.of([row.preference for row in rows], weighting)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if index < len(self.rows):
            return Example(self.rows[index], self.weights[index], self.groups[index])
        return Example(self.rows[index % len(self.rows)], 0.0, counts=False)


@dataclass(frozen=True, slots=True)
class Draw:
    """How an epoch draws its rows, where it is not each once in any order.

    Attributes:
        chances: what each row is drawn in proportion to, with replacement, as many as there are rows; None draws each
            row once.
        sides: whether a row is a good completion, where the table has good and bad ones apart: both are spread evenly,
            so that a batch has some of each; None does not ask.
    """

    chances: Sequence[float] | None = None
    sides: Sequence[bool] | None = None

    @classmethod
    def of(cls, rows: Sequence[Preference], weighting: Weighting | None) -> Draw:
        """What a person's rows need."""
        chances = weighting.chances(rows) if weighting else None
        good = [row.chosen is not None for row in rows]
        apart = any(row.chosen is None and row.rejected is not None for row in rows)
        return cls(chances, good if apart and any(good) else None)

    def order(self, count: int, generator: torch.Generator) -> list[int]:
        """The row numbers of an epoch."""
        if self.chances is not None:
            chances = torch.tensor(self.chances, dtype=torch.float64)
            order = torch.multinomial(chances, count, replacement=True, generator=generator).tolist()
        else:
            order = torch.randperm(count, generator=generator).tolist()
        return order if self.sides is None else _spread(order, self.sides)


def _spread(order: list[int], sides: Sequence[bool]) -> list[int]:
    """The same numbers with both sides evenly among each other, each side in its order."""
    parts = [[number for number in order if sides[number] is side] for side in (True, False)]
    placed = [((place + 0.5) / len(part), number) for part in parts for place, number in enumerate(part)]
    return [number for _, number in sorted(placed, key=lambda one: one[0])]


class EpochSampler(Sampler[int]):
    """Row numbers of one epoch: the same on every process, and the same after a resume.

    The order depends on the seed and the epoch alone. With several processes the rows are filled up to whole batches
    with numbers from `length` on, which `AnchoredDataset` turns into rows that weigh nothing: so that every process has
    as many batches as the others, and the losses are those of one process.

    Args:
        length: rows.
        multiple: rows that all processes take in one forward; 1 where there is one process.
        seed: None keeps the table's order.
        epoch: tells the epoch (from 0) when one begins.
        draw: how rows are drawn; without effect where the table's order is kept.
    """

    def __init__(
        self,
        length: int,
        *,
        multiple: int = 1,
        seed: int | None = None,
        epoch: Callable[[], int] = lambda: 0,
        draw: Draw = Draw(),
    ) -> None:
        self.length, self.seed, self.epoch, self.draw = length, seed, epoch, draw
        self.filled = math.ceil(length / multiple) * multiple

    def __len__(self) -> int:
        return self.filled

    def __iter__(self) -> Iterator[int]:
        if self.seed is None:
            order = list(range(self.length))
        else:
            # The generator takes 64 bits: seed and epoch side by side never meet those of another seed.
            generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch())
            order = self.draw.order(self.length, generator)
        yield from order
        yield from range(self.length, self.filled)


@dataclass
class PreferenceCollator:
    """Examples to a batch.

    Attributes:
        pad_id: token that fills rows up.
        branches: branches that go through the policy, in order.
        layout: `shared` runs a prompt once for its branches, `separate` gives each branch a row.
        padding_side: side that is filled up.
        dtype: of references and weights.
    """

    pad_id: int
    branches: Sequence[str]
    layout: Literal["shared", "separate"] = "shared"
    padding_side: Literal["left", "right"] = "right"
    dtype: torch.dtype = torch.float32

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """A batch of B examples; references of branches that a row lacks are 0."""
        rows = [example.row for example in examples]
        responses: ResponseBatch = collate(
            [row.encoded for row in rows],
            pad_id=self.pad_id,
            branches=self.branches,
            layout=self.layout,
            padding_side=self.padding_side,
        )
        embeddings = [row.embedding for row in rows if row.embedding is not None]
        return {
            "responses": responses,
            "reference": self._references(rows),
            "weight": torch.tensor([example.weight for example in examples], dtype=self.dtype),
            "group": torch.tensor([example.group for example in examples]),
            "counts": torch.tensor([example.counts for example in examples]),
            "columns": _columns(rows),
            **({"embeddings": torch.stack(embeddings)} if embeddings else {}),
        }

    def _references(self, rows: Sequence[Anchored]) -> Reference:
        """Reference log-probs [B] of every branch, or none where rows carry none at all; of several, each's."""
        if rows[0].references:
            return [
                Weighed(
                    torch.tensor([row.references[number][0] for row in rows], dtype=self.dtype),
                    self._reference([row.references[number][1] for row in rows]),
                )
                for number in range(len(rows[0].references))
            ]
        return self._reference([row.reference for row in rows])

    def _reference(self, said: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        if not any(said):
            return {}
        return {name: torch.tensor([one.get(name, 0.0) for one in said], dtype=self.dtype) for name in self.branches}


def _columns(rows: Sequence[Anchored]) -> dict[str, list[Any]]:
    """`user`, `group` and every column the library does not know, a value a row; None where a row has none."""
    names = {name: None for row in rows for name in row.preference.columns}
    columns: dict[str, list[Any]] = {name: [row.preference.columns.get(name) for row in rows] for name in names}
    columns["user"] = [row.preference.user for row in rows]
    columns["group"] = [row.preference.group for row in rows]
    return columns
