"""Files to rows: JSONL, JSON, CSV, Parquet, Arrow, and gzip of these. What the columns mean is decided elsewhere."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from pluralign.errors import InputError
from pluralign.preferences.schema import BadRow, Place, Problem, excerpt

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

SUFFIXES = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""Format by the end of a file's name, `.gz` taken off. JSON lines and a JSON array are told apart by content."""

MESSAGE_COLUMNS = frozenset({"prompt", "chosen", "rejected", "base", "completion", "messages"})
"""Columns whose CSV cells may hold messages, as JSON."""

_ARROW_BATCH = 16_384
_OBJECT = "Each line is one JSON object."
_QUOTED = "A cell with a comma, a quote or a line end stands in double quotes, quotes inside it doubled."
_EMPTY_FILE = "Was it written to its end, and is it the right file?"


@dataclass(slots=True)
class Table:
    """Rows as their file has them.

    Attributes:
        name: the file, or the data set, as messages name it.
        rows: 1-based row numbers and cells by column.
        columns: every column that some row has.
        problems: rows that could not be read at all.
        stem: the file's name up to its first dot; None where there is no file.
    """

    name: str
    rows: list[tuple[int, Row]] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    stem: str | None = None

    def add(self, number: int, row: Any) -> None:
        """Append a row; one that is no object becomes a problem."""
        if not isinstance(row, dict):
            self.refuse(number, f"the row is {excerpt(row)}, not an object with columns", _OBJECT)
            return
        if not row.keys() <= self.columns:
            self.columns.update(row)
        self.rows.append((number, row))

    def refuse(self, number: int, found: str, fix: str = "") -> None:
        """Note a row that cannot be read."""
        self.problems.append(BadRow(None, found, fix).at(Place(self.name, number)))


def read_table(path: Path | str) -> Table:
    """Read a file whose format its name tells, or its first bytes where the name says nothing.

    Raises:
        InputError: the file as a whole cannot be read: missing, empty, of unknown format, not UTF-8, cut short.
    """
    path = Path(path)
    table = Table(str(path), stem=path.name.split(".", 1)[0] or path.name)
    with _whole_file(path):
        file_format = _format_of(path)
        _READERS[file_format](path, table)
    if not table.rows and table.problems:
        first = table.problems[0]
        found = f"none of its {len(table.problems)} rows can be read; the first: {first.found}"
        raise InputError(found, where=str(first.place), fix=first.fix)
    if not table.rows:
        raise InputError("holds no rows", where=table.name, fix=_EMPTY_FILE)
    return table


def read_lines(path: Path | str) -> list[str]:
    """The lines of a text file, with their ends.

    Raises:
        InputError: the file is missing, not UTF-8, cut short.
    """
    path = Path(path)
    with _whole_file(path), _open_text(path, newline="\n") as file:
        return list(file)


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[None]:
    """What can go wrong with a file as a whole, said in words."""
    where = str(path)
    try:
        # Opening a pipe that nobody writes to would wait for ever.
        if path.exists() and not path.is_file():
            found = "it is a folder" if path.is_dir() else "it is a pipe or a device, which cannot be read twice"
            raise InputError(found, where=where, fix="Give a file.")
        yield
    except FileNotFoundError:
        raise InputError("there is no such file", where=where) from None
    except UnicodeDecodeError:
        raise _encoding_error(path) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        found = f"the gzip data is broken or cut short ({error})"
        raise InputError(found, where=where, fix="Is the download complete?") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=where) from None


def format_by_name(path: Path | str) -> str | None:
    """`json`, `csv`, `parquet` or `arrow` by the end of the name; None where it says nothing."""
    name = Path(path).name.lower().removesuffix(".gz")
    return SUFFIXES.get(Path(name).suffix)


def _format_of(path: Path) -> str:
    with _open(path) as file:
        head = file.read(4096)
    if not head:
        raise InputError("is empty", where=str(path), fix=_EMPTY_FILE)
    named = format_by_name(path)
    if named:
        return named
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith(("{", "[")):
        return "json"
    if not MESSAGE_COLUMNS.isdisjoint(cell.strip(' "') for cell in text.partition("\n")[0].strip().split(",")):
        return "csv"
    raise InputError(
        "neither its name nor its content tells a format that can be read",
        where=str(path),
        fix="It is one of JSONL, a JSON array, CSV, Parquet, Arrow, or gzip of these.",
    )


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where it is gzip, whatever its name."""
    return cast(IO[bytes], gzip.open(path, "rb")) if _is_gzip(path) else open(path, "rb")


def _open_text(path: Path, newline: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline=newline)


def _encoding_error(path: Path) -> InputError:
    """Name the first byte that is not UTF-8. A second pass: a decoder that reads ahead knows no position."""
    fix = "Save the file as UTF-8."
    with _open(path) as file:
        start = 0
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                return InputError("the file is UTF-16, not UTF-8", where=str(path), fix=fix)
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte {start + error.start} of the file, 0x{line[error.start]:02x}, is not UTF-8"
                return InputError(found, where=f"{path}, line {number}", fix=fix)
            start += len(line)
    return InputError("the file is not UTF-8", where=str(path), fix=fix)


# JSON


def _read_json(path: Path, table: Table) -> None:
    # Lines end at "\n" alone: JSON strings may hold the other characters that Unicode counts as line ends.
    with _open_text(path, newline="\n") as file:
        first = next((character for character in iter(lambda: file.read(1), "") if not character.isspace()), "")
    with _open_text(path, newline="\n") as file:
        if first == "[":
            _read_json_array(file.read(), table)
        else:
            _read_json_lines(file, table)


def _read_json_lines(lines: Iterable[str], table: Table) -> None:
    loads, add = json.loads, table.add
    for number, line in enumerate(lines, 1):
        try:
            add(number, loads(line))
        except (ValueError, RecursionError) as error:
            if line.strip():
                table.refuse(number, f"broken JSON ({_reason(error)})", _OBJECT)


def _read_json_array(text: str, table: Table) -> None:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        number, reason = _broken_element(text), _reason(error)
        raise InputError(f"broken JSON ({reason})", where=str(Place(table.name, number))) from None
    for number, row in enumerate(rows, 1):
        table.add(number, row)


def _broken_element(text: str) -> int:
    """The 1-based element of a JSON array at which reading fails."""
    decoder, number = json.JSONDecoder(), 1
    position = text.index("[") + 1
    while True:
        try:
            _, position = decoder.raw_decode(text, _skip_space(text, position))
        except (ValueError, RecursionError):
            return number
        position = _skip_space(text, position)
        if text[position : position + 1] != ",":
            return number
        number, position = number + 1, position + 1


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)


# CSV


def _read_csv(path: Path, table: Table) -> None:
    # The module's limit of 128 KiB a cell is global, and long responses pass it.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _open_text(path, newline="") as file:
            # Strict: a quote that never closes would otherwise swallow all further rows into one cell.
            reader = csv.reader(file, strict=True)
            try:
                _read_csv_rows(reader, table)
            except csv.Error as error:
                where = f"{table.name}, line {reader.line_num}"
                raise InputError(f"broken CSV ({error})", where=where, fix=_QUOTED) from None
    finally:
        csv.field_size_limit(limit)
    _type_csv_columns(table)


def _read_csv_rows(reader: Iterator[list[str]], table: Table) -> None:
    header = next(reader, [])
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"the header names column {repeated[0]!r} twice", where=table.name)
    table.columns.update(header)
    number = 0
    for cells in reader:
        if not cells:
            continue
        number += 1
        if len(cells) != len(header):
            table.refuse(number, f"the row has {len(cells)} cells, the header {len(header)}", _QUOTED)
            continue
        # An empty cell is all that CSV has for a missing one.
        table.rows.append((number, {name: cell or None for name, cell in zip(header, cells, strict=True)}))


def _type_csv_columns(table: Table) -> None:
    """CSV knows text only: messages are read from JSON, other columns are numbers where all their cells are."""
    for column in table.columns & MESSAGE_COLUMNS:
        for _, row in table.rows:
            cell = row[column]
            if cell and cell.startswith("[{"):
                row[column] = _json_or_text(cell)
    for column in table.columns - MESSAGE_COLUMNS - {"user", "group"}:
        cells = [row[column] for _, row in table.rows]
        numbers = [_number(cell) for cell in cells]
        if numbers.count(None) > cells.count(None):
            continue
        for number, (_, row) in zip(numbers, table.rows, strict=True):
            row[column] = number


def _json_or_text(cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _number(cell: str | None) -> int | float | None:
    if cell is None or not (cell[0] == "-" or cell[0].isdigit()):
        return None
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, int | float) else None


# Parquet and Arrow


def _read_parquet(path: Path, table: Table) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(_arrow_source(path)) as file:
            add_batches(file.iter_batches(_ARROW_BATCH), table)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"not a whole Parquet file ({_first_line(error)})", where=table.name) from None


def _read_arrow(path: Path, table: Table) -> None:
    import pyarrow

    with _open(path) as file:
        is_file = file.read(6) == b"ARROW1"
    try:
        if is_file:
            with pyarrow.ipc.open_file(_arrow_source(path)) as reader:
                add_batches((reader.get_batch(index) for index in range(reader.num_record_batches)), table)
        else:
            with pyarrow.ipc.open_stream(_arrow_source(path)) as reader:
                add_batches(reader, table)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"not a whole Arrow file ({_first_line(error)})", where=table.name) from None


def _arrow_source(path: Path) -> Any:
    import pyarrow

    if not _is_gzip(path):
        return pyarrow.memory_map(str(path))
    with gzip.open(path, "rb") as file:
        return pyarrow.BufferReader(file.read())


def add_batches(batches: Iterable[pyarrow.RecordBatch], table: Table) -> None:
    """Append the rows of Arrow record batches.

    Raises:
        InputError: a text cell is not UTF-8 (names row and column), or one of Arrow's type `json` is not JSON.
    """
    for batch in batches:
        names = batch.schema.names
        table.columns.update(names)
        start = len(table.rows) + 1
        columns = [_cells(batch.column(index), table.name, name, start) for index, name in enumerate(names)]
        rows = (dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True))
        table.rows.extend(enumerate(rows, start))


def _cells(column: pyarrow.Array, file: str, name: str, start: int) -> list[Any]:
    import pyarrow

    try:
        if isinstance(column.type, pyarrow.JsonType):
            return [None if cell is None else json.loads(cell) for cell in column.to_pylist()]
        return column.to_pylist()
    except json.JSONDecodeError as error:
        raise InputError(f"a cell is broken JSON ({error})", where=f"{file}, column {name!r}") from None
    except UnicodeDecodeError:
        for number, cell in enumerate(column, start):
            try:
                cell.as_py()
            except UnicodeDecodeError as error:
                where = f"{Place(file, number)}, column {name!r}"
                raise InputError(f"the cell is not UTF-8 ({error.reason})", where=where) from None
        raise


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


_READERS = {"json": _read_json, "csv": _read_csv, "parquet": _read_parquet, "arrow": _read_arrow}
