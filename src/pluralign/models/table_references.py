"""Reference log-probs that a table brings along, as TRL's precomputed ones and a sampler's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pluralign.models.anchored_table import REFERENCES, Anchored
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoding import Encoded
from pluralign.models.references import reference_logps
from pluralign.models.rows import Layout
from pluralign.preferences.schema import Preference

BROUGHT = ("chosen", "rejected")
"""Branches whose reference log-prob a table may bring; the base's own response is compared with the base."""


def table_reference_fault(row: Preference) -> str | None:
    """Why a row has no reference log-probs of its own that can be used, with its place, or None."""
    for name in BROUGHT:
        if getattr(row, name) is None:
            continue
        column = REFERENCES[name]
        value = row.columns.get(column)
        if value is None:
            return f"{row.place}: there is no {column!r}, and reference.compute is table"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > 0:
            return f"{row.place}, column {column!r}: {value!r} is no log-prob (a number of at most 0)"
    return None


def with_table_references(base: Base, rows: Sequence[Anchored], cache: Cache, *, layout: Layout) -> list[Anchored]:
    """Rows with the reference log-probs that their columns have, and the base's where they have none.

    Args:
        base: with no adapter attached.
        rows: `table_reference_fault` found nothing in those that are learned from.
        cache: of the base's log-probs.
        layout: of `choose_layout`.
    """
    brought = [_brought(row.preference) for row in rows]
    left = [
        Encoded(row.encoded.prompt_ids, {n: ids for n, ids in row.encoded.response_ids.items() if n not in own})
        for row, own in zip(rows, brought, strict=True)
    ]
    found = reference_logps(base, left, cache, layout=layout)
    return [replace(row, reference={**more, **own}) for row, own, more in zip(rows, brought, found, strict=True)]


def _brought(row: Preference) -> dict[str, float]:
    named = {name: row.columns.get(REFERENCES[name]) for name in BROUGHT if getattr(row, name) is not None}
    return {name: float(value) for name, value in named.items() if value is not None}
