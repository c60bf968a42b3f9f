"""`pluralign people list` and `show`: everybody on a line each, or everything about one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pluralign.errors import InputError
from pluralign.people.register import Entry, Register, sizes_of
from pluralign.preferences import named_people, shown
from pluralign.storage import read_json

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS = 100
_LEFT_OUT = ("adapter", "group", "people", "measures", "topics", "sources", "samples")
"""Keys of a person's results that are too long for a terminal, or stand above already."""


@dataclass
class Shown:
    """Everything about one person, as JSON values.

    Attributes:
        entry: the line of the list.
        adapter: what `adapter_config.json` says; empty without an adapter.
        made_with: what `pluralign.json` says.
        files: file of the adapter -> bytes.
        last_step: the last line of metrics of a training step.
        last_validation: the last line of a validation.
        evaluation: the entry in `evaluation.json`.
    """

    entry: Entry
    adapter: dict[str, Any]
    made_with: dict[str, Any]
    files: dict[str, int]
    last_step: dict[str, Any]
    last_validation: dict[str, Any]
    evaluation: dict[str, Any]


def list_people(run: str) -> list[Entry]:
    """Everybody of a run.

    Raises:
        InputError: there is no such run.
    """
    return Register(run).entries()


def show_person(run: str, user: str) -> Shown:
    """Everything about one person of a run.

    Raises:
        InputError: there is no such run, or nobody of that id.
    """
    register = Register(run)
    if not user:
        raise InputError("--user names nobody", where=str(run), fix="Give an id; `pluralign people list` has them.")
    # Where one policy serves everybody, people have results and no adapter of their own.
    (user,) = named_people([user], [*register.users, *register.measured], where=str(run))
    place = register.adapters.get(user)
    lines = [line for line in register.metrics() if line["user"] == user]
    return Shown(
        entry=register.entry(user),
        adapter=_read(place, "adapter_config.json"),
        made_with=_read(place, "pluralign.json"),
        files=sizes_of(place) if place else {},
        last_step=next((line for line in reversed(lines) if "loss" in line), {}),
        last_validation=next((line for line in reversed(lines) if "eval_loss" in line), {}),
        evaluation=register.measured.get(user, {}),
    )


def people_table(entries: Sequence[Entry]) -> RenderableType:
    """The list for a terminal: at most a hundred people, and what they all take."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    trained = sum(entry.trained for entry in entries)
    caption = f"{trained} adapters, {readable_size(sum(entry.bytes for entry in entries))}"
    if trained < len(entries):
        caption += f"; {len(entries) - trained} people without one"
    if len(entries) > ROWS:
        caption += f"; {len(entries) - ROWS} more people are in the file of --output"
    table = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left", min_width=70)
    table.add_column("person")
    table.add_column("group")
    for title in ("steps", "acc.", "kept", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("note")
    for entry in entries[:ROWS]:
        # Text, not a string: an id may hold what rich takes for markup.
        name, group = Text(shown(entry.user, 30)), Text(shown(entry.group or "", 16))
        numbers = ["" if entry.steps is None else str(entry.steps), _share(entry.accuracy), _share(entry.kept)]
        size = readable_size(entry.bytes) if entry.trained else ""
        table.add_row(name, group, *numbers, size, Text(shown(entry.reason or "", 80)))
    return table


def person_table(person: Shown) -> RenderableType:
    """One person for a terminal."""
    from rich.console import Group

    entry = person.entry
    facts = {
        "id": shown(entry.user),
        "folder": entry.folder or "no adapter",
        "group": entry.group,
        "note": entry.reason,
        "base": person.made_with.get("base"),
        **{name: person.adapter.get(name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")},
    }
    parts = [
        _facts("Person", facts),
        _facts("Files", {name: readable_size(size) for name, size in person.files.items()}),
        _facts("Last step", person.last_step, skip=("user",)),
        _facts("Last validation", person.last_validation, skip=("user",)),
        _facts("Evaluation", _flat(person.evaluation, skip=_LEFT_OUT)),
    ]
    return Group(*(part for part in parts if part is not None))


def as_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The list as the file of `--output` holds it."""
    return {"schema_version": 1, "people": [asdict(entry) for entry in entries]}


def readable_size(size: int) -> str:
    """Bytes with a unit."""
    number, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:.1f} {units[0]}"


def _read(place: Any, name: str) -> dict[str, Any]:
    return read_json(place / name) if place and (place / name).is_file() else {}


def _facts(title: str, facts: Mapping[str, Any], skip: Sequence[str] = ()) -> RenderableType | None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None and name not in skip:
            table.add_row(Text(name), Text(_value(value)))
    return table if table.row_count else None


def _flat(values: Mapping[str, Any], skip: Sequence[str] = (), prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {} if name in skip else _flat(value, skip, f"{prefix}{name}.")
        elif name not in skip:
            found[f"{prefix}{name}"] = value
    return found


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return str(value)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
