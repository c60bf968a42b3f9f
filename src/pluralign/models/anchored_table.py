"""The anchored table: preferences with the base's own responses and reference log-probs beside them, as Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from torch import Tensor

from pluralign.errors import InputError
from pluralign.models.base import Base
from pluralign.models.encoding import BRANCHES, Encoded, Encoder
from pluralign.preferences.schema import Place, Preference
from pluralign.storage import write_bytes

SCHEMA_VERSION = 1
METADATA_KEY = b"pluralign"
REFERENCES = {name: f"ref_{name}_logps" for name in BRANCHES}
"""Branch -> column of its reference log-prob."""
_EARLIER = {"quantization": "none"}
"""What holds where a table of an older version says nothing."""
_OWN_COLUMNS = ("prompt", "chosen", "rejected", "base", "base_finished", "user", "group", *REFERENCES.values())


@dataclass(slots=True)
class Anchored:
    """A preference, its tokens, and what the base model thinks of its responses.

    Attributes:
        preference: the row; with the base's own response where one was asked for.
        encoded: its tokens.
        reference: branch name -> log-prob under the base, summed over the response's tokens, nats; empty where none was
            asked for.
        references: where the loss is taken against each of several, the weight of each and what `reference` is of one;
            never in a table.
        embedding: [D] float32 of the prompt, where the loss asks how alike prompts are; never in a table.
    """

    preference: Preference
    encoded: Encoded
    reference: dict[str, float]
    embedding: Tensor | None = None
    references: Sequence[tuple[float, dict[str, float]]] = ()


def write_anchored(
    path: Path | str, rows: Sequence[Anchored], base: Base, *, encoder: Encoder, facts: Mapping[str, Any] | None = None
) -> None:
    """Write an anchored table; the file is whole or absent.

    Args:
        path: the Parquet file.
        rows: as `anchor_preferences` gives them.
        base: what made the base responses and the reference log-probs.
        encoder: what made the tokens: its limits go into the file's metadata.
        facts: more metadata, as JSON values (how responses were generated).

    Raises:
        InputError: a cell can be written neither as Parquet nor as JSON; names the column.
    """
    metadata = {"schema_version": SCHEMA_VERSION, **_source(base, encoder), **(facts or {})}
    columns = {name: _array(name, values) for name, values in _columns(rows).items()}
    table = pyarrow.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    write_bytes(path, sink.getvalue())


def anchored_facts(path: Path | str) -> dict[str, Any] | None:
    """The metadata of an anchored table; None for any other file, or where there is none.

    Raises:
        InputError: the table is of a newer schema.
    """
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        facts = json.loads(metadata.get(METADATA_KEY, b"null"))
    except (pyarrow.ArrowException, OSError, ValueError):
        return None
    if not isinstance(facts, dict):
        return None
    if facts.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"the anchored table has schema version {facts.get('schema_version')}, and this is {SCHEMA_VERSION}",
            where=str(path),
            fix="Anchor its source again with this version.",
        )
    return facts


def read_anchored(path: Path | str, *, base: Base, encoder: Encoder) -> list[Anchored]:
    """Read an anchored table for a base model.

    Args:
        path: the Parquet file.
        base: must be the one the table was made with, in the same dtype.
        encoder: must have the same limits.

    Raises:
        InputError: the file is no anchored table, or its reference log-probs are of another base, tokenizer, dtype or
            limits; the message says which.
    """
    facts = anchored_facts(path)
    if facts is None:
        raise InputError("the file is no anchored table", where=str(path), fix="Make one: pluralign anchor.")
    for name, value in _source(base, encoder).items():
        # The name is for the reader: the same model may be known by another.
        found = facts.get(name, _EARLIER.get(name))
        if name != "base" and found != value:
            raise InputError(
                f"the reference log-probs were computed with {name} {found!r}, and here it is {value!r}",
                where=str(path),
                fix="Compute them again: pluralign anchor with this file as data and a new output.",
            )
    cells = _read_cells(path)
    preferences = [_preference(row, Place(str(path), number)) for number, row in enumerate(cells, 1)]
    encoded = encoder.encode_many(preferences)
    references = [
        {name: row[column] for name, column in REFERENCES.items() if row.get(column) is not None} for row in cells
    ]
    return [Anchored(*parts) for parts in zip(preferences, encoded, references, strict=True)]


def _source(base: Base, encoder: Encoder) -> dict[str, Any]:
    """What the numbers in a table depend on."""
    return {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        "tokenizer_fingerprint": base.tokenizer_fingerprint,
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "quantization": base.quantization,
        "max_prompt_length": encoder.max_prompt_length,
        "max_response_length": encoder.max_response_length,
        "context_length": encoder.context_length,
        "chat_template": encoder.chat_template,
    }


def _columns(rows: Sequence[Anchored]) -> dict[str, list[Any]]:
    """Cells by column, in the order of the file."""
    preferences = [row.preference for row in rows]
    columns: dict[str, list[Any]] = {}
    for name in ("prompt", *BRANCHES, "base_finished", "user", "group"):
        values = [getattr(one, name) for one in preferences]
        if name == "base_finished":
            values = [None if one.base is None else one.base_finished for one in preferences]
        # A table without users or rejected responses must not come back as one where they are missing.
        if any(value is not None for value in values):
            columns[name] = values
    for name, column in REFERENCES.items():
        columns[column] = [row.reference.get(name) for row in rows]
    others = dict.fromkeys(name for preference in preferences for name in preference.columns)
    for name in others:
        if name not in _OWN_COLUMNS:
            columns[name] = [preference.columns.get(name) for preference in preferences]
    return columns


def _array(name: str, values: list[Any]) -> pyarrow.Array:
    """A column in Parquet's own types where they give every cell back as it was, else as JSON text (Arrow's `json`).

    Messages that differ in their keys or mix with plain text, tool calls, and columns of mixed types are such.
    """
    if name in REFERENCES.values():
        return pyarrow.array(values, pyarrow.float64())
    if all(value is None for value in values):
        return pyarrow.array(values, pyarrow.string())
    try:
        array = pyarrow.array(values)
        if all(map(_same, array.to_pylist(), values)):
            return array
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
        pass  # no Parquet type fits; JSON may
    try:
        texts = [None if value is None else json.dumps(value) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a cell can be written neither as Parquet nor as JSON ({error})", where=f"column {name!r}"
        ) from None
    return pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(texts, pyarrow.string()))


def _same(one: Any, other: Any) -> bool:
    both_nan = one != one and other != other
    return both_nan or (one == other and isinstance(one, bool) == isinstance(other, bool))


def _read_cells(path: Path | str) -> list[dict[str, Any]]:
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"not a whole Parquet file ({error})", where=str(path)) from None
    columns = {name: _decoded(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _decoded(column: pyarrow.ChunkedArray) -> Iterable[Any]:
    cells = column.to_pylist()
    if isinstance(column.type, pyarrow.JsonType):
        return [None if cell is None else json.loads(cell) for cell in cells]
    return cells


def _preference(row: dict[str, Any], place: Place) -> Preference:
    return Preference(
        prompt=row["prompt"],
        **{name: row.get(name) for name in (*BRANCHES, "user", "group")},
        base_finished=row.get("base_finished") is not False,
        columns={name: value for name, value in row.items() if name not in _OWN_COLUMNS},
        place=place,
    )
