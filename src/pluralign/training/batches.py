"""From anchored rows to batches: branches by name, references beside them, and every other column carried along."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pluralign.errors import InputError
from pluralign.models.rows import ResponseBatch, collate
from pluralign.preferences.schema import Preference

if TYPE_CHECKING:
    from pluralign.models.anchoring import Anchored

Batch = dict[str, Any]
"""`responses` (`ResponseBatch`), `reference` (branch -> [B]), `weight` [B], `counts` [B], `columns` (name -> list)."""


@dataclass(slots=True)
class Example:
    """One row as the collator takes it.

    Attributes:
        row: the anchored row.
        weight: how much its loss counts, >= 0.
        counts: False for a row that only fills up the last batch of several processes: it weighs nothing and is in no
            metric.
    """

    row: Anchored
    weight: float = 1.0
    counts: bool = True


class AnchoredDataset(Dataset[Example]):
    """Anchored rows of one person, with their weights.

    An index of `len(self)` and more gives row `index % len(self)` as a filler that does not count (see `EpochSampler`).

    Args:
        rows: at least one.
        weight_column: a column of non-negative numbers; None weighs every row 1.

    Raises:
        InputError: a row has no such column, or a weight that is no finite number >= 0.
    """

    def __init__(self, rows: Sequence[Anchored], *, weight_column: str | None = None) -> None:
        self.rows = rows
        self.weights = [row_weight(row.preference, weight_column) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if index < len(self.rows):
            return Example(self.rows[index], self.weights[index])
        return Example(self.rows[index % len(self.rows)], 0.0, counts=False)


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
    """

    def __init__(
        self, length: int, *, multiple: int = 1, seed: int | None = None, epoch: Callable[[], int] = lambda: 0
    ) -> None:
        self.length, self.seed, self.epoch = length, seed, epoch
        self.filled = math.ceil(length / multiple) * multiple

    def __len__(self) -> int:
        return self.filled

    def __iter__(self) -> Iterator[int]:
        if self.seed is None:
            order = list(range(self.length))
        else:
            # The generator takes 64 bits: seed and epoch side by side never meet those of another seed.
            generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch())
            order = torch.randperm(self.length, generator=generator).tolist()
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
        return {
            "responses": responses,
            "reference": self._references(rows),
            "weight": torch.tensor([example.weight for example in examples], dtype=self.dtype),
            "counts": torch.tensor([example.counts for example in examples]),
            "columns": _columns(rows),
        }

    def _references(self, rows: Sequence[Anchored]) -> dict[str, Tensor]:
        """Reference log-probs [B] of every branch, or none where rows carry none at all."""
        if not any(row.reference for row in rows):
            return {}
        return {
            name: torch.tensor([row.reference.get(name, 0.0) for row in rows], dtype=self.dtype)
            for name in self.branches
        }


def _columns(rows: Sequence[Anchored]) -> dict[str, list[Any]]:
    """`user`, `group` and every column the library does not know, a value a row; None where a row has none."""
    names = {name: None for row in rows for name in row.preference.columns}
    columns: dict[str, list[Any]] = {name: [row.preference.columns.get(name) for row in rows] for name in names}
    columns["user"] = [row.preference.user for row in rows]
    columns["group"] = [row.preference.group for row in rows]
    return columns


def row_weight(row: Preference, column: str | None) -> float:
    """The weight of a row; 1 without a column.

    Raises:
        InputError: the row has no such column, or no finite number >= 0 in it.
    """
    if column is None:
        return 1.0
    place = f"{row.place}, column {column!r}"
    if column not in row.columns:
        raise InputError("there is no such column", where=place, fix="weighting.column names a column of the table.")
    value = row.columns[column]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise InputError(f"holds {value!r}", where=place, fix="A weight is a finite number of 0 or more.")
    return float(value)
