"""What was run: configuration, versions, hashes, of several runs beside each other."""

from __future__ import annotations

import re
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rich.filesize import decimal

from pluralign.online_config import OnlineConfig
from pluralign.preferences import shown
from pluralign.reporting.gather import Run
from pluralign.resolve import PRESETS, flat

WITHHELD = "(withheld)"
_NOT_SHOWN = ("plan", "update", "overwrite")
"""Keys that say what a call was to do, and nothing of the run."""
_NOT_RECORDED = "not recorded"
_HASH = re.compile("[0-9a-f]{32,}")


class Row(typing.NamedTuple):
    """A line of a table of runs.

    Attributes:
        key: what it is.
        values: as text, one a run.
        differs: whether the runs do not agree.
    """

    key: str
    values: list[str]
    differs: bool


def origins(runs: Sequence[Run], *, pseudonyms: bool) -> list[Row]:
    """Data, base, probes and what a run says it was made with: versions, and machine, time, memory if known."""
    return _rows([_origin(run, pseudonyms) for run in runs])


def settings(runs: Sequence[Run], *, pseudonyms: bool) -> tuple[list[Row], list[Row]]:
    """The configurations: the keys that differ between runs or from the defaults, and all others."""
    configs = [{key: _shown(run.config, key, pseudonyms) for key in run.config} for run in runs]
    rows = [row for row in _rows(configs) if row.key not in _NOT_SHOWN]
    defaults = {key: _text(value) for key, value in _defaults().items()}
    own = [row for row in rows if row.differs or any(value != defaults.get(row.key) for value in row.values)]
    return own, [row for row in rows if row not in own]


def method_name(run: Run, *, pseudonyms: bool) -> str:
    """The preset's name; of a file its name without the ending."""
    method = run.config.get("method", "")
    if pseudonyms and _may_tell("method", method):
        return "a method of its own"
    return shown(Path(str(method)).stem) or "unknown method"


def _origin(run: Run, pseudonyms: bool) -> dict[str, str]:
    base, made_with = run.evaluation.base, dict(run.made_with)
    model = base.get("model")
    found = {
        "folder": WITHHELD if pseudonyms else str(run.folder.path),
        "data hash": made_with.pop("data_hash", None),
        "base": WITHHELD if pseudonyms and model != _defaults()["model"] else model,
        "base fingerprint": made_with.pop("base_fingerprint", None) or base.get("fingerprint"),
        "tokenizer fingerprint": base.get("tokenizer_fingerprint"),
        "seed": base.get("seed"),
        "held-out pairs": (base.get("held_out") or {}).get("rows"),
        "probes": _probes(base.get("probes") or [], pseudonyms),
        "rows laid out": base.get("layout"),
        "judged by world": base.get("world"),
        "judge of win rates": _judge(run, pseudonyms),
    }
    made_with.pop("schema_version", None)
    versions = made_with.pop("versions", None) or {}
    found |= {f"version of {name}": version for name, version in versions.items()}
    found |= _taken(run.calls)
    # Whatever else a run writes about itself is shown under its own name.
    rest = {
        key.replace("_", " "): WITHHELD if pseudonyms and not _is_hash(value) else value
        for key, value in flat(made_with).items()
    }
    return {key: _text(value) for key, value in (found | rest).items() if value not in (None, "", [])}


def _judge(run: Run, pseudonyms: bool) -> str | None:
    """Who compared answers with the base's: the annotator's name and settings."""
    if not run.evaluation.win_rate:
        return None
    facts = run.evaluation.win_rate.get("annotator") or {}
    if pseudonyms:
        return WITHHELD
    others = [f"{key} {_text(value)}" for key, value in facts.items() if key not in ("name", "files")]
    return ", ".join([str(facts.get("name")), *others])


def _taken(calls: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Machine, time and memory of a run's calls; they say nothing of people."""
    machines = [found for call in calls if isinstance(found := call.get("machine"), Mapping)]
    seconds: Counter[str] = Counter()
    for call in calls:
        seconds.update({str(part): took for part, took in (call.get("seconds") or {}).items()})
    parts = ", ".join(f"{part} {_duration(took)}" for part, took in seconds.items())
    several = f"{len(calls)} calls, the first begun" if len(calls) > 1 else "begun"
    time = f"{_duration(seconds.total())} ({parts}); {several} {_minute(calls[0].get('started'))}" if seconds else ""
    peaks = {
        kind: max((call[key] for call in calls if isinstance(call.get(key), int)), default=0)
        for kind, key in (("", "peak_memory_bytes"), ("accelerator ", "peak_accelerator_bytes"))
    }
    memory = ", ".join(f"{kind}{decimal(peak)}" for kind, peak in peaks.items() if peak)
    found = {"machine": "; ".join(dict.fromkeys(map(_machine, machines))), "time": time, "memory, at most": memory}
    return {key: value or _NOT_RECORDED for key, value in found.items()}


def _machine(found: Mapping[str, Any]) -> str:
    cores, memory = found.get("cores"), found.get("memory_bytes")
    parts = [found.get("system"), found.get("processor"), cores and f"{cores} cores"]
    parts += [memory and f"{decimal(memory)} of memory", found.get("accelerator")]
    return ", ".join(str(part) for part in parts if part)


def _minute(started: Any) -> str:
    """When a call began; the record has it in ISO 8601, in UTC."""
    return f"{str(started)[:16].replace('T', ' ')} UTC"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _is_hash(value: Any) -> bool:
    """Whether a value is hashes or numbers, which quote nobody."""
    values = value if isinstance(value, list) else [value]
    return all(one is None or isinstance(one, int | float) or _HASH.fullmatch(str(one)) for one in values)


def _probes(sources: Sequence[Mapping[str, Any]], pseudonyms: bool) -> str:
    counts = [f"{source.get('used')} of {source.get('available')}" for source in sources]
    if pseudonyms:
        return ", ".join(counts)
    return ", ".join(f"{source.get('source')} ({count})" for source, count in zip(sources, counts, strict=True))


def _rows(columns: Sequence[Mapping[str, str]]) -> list[Row]:
    keys = dict.fromkeys(key for column in columns for key in column)
    values = {key: [column.get(key, "") for column in columns] for key in keys}
    return [Row(key, found, len(set(found)) > 1) for key, found in values.items()]


def _shown(config: Mapping[str, Any], key: str, pseudonyms: bool) -> str:
    value = config[key]
    return WITHHELD if pseudonyms and _may_tell(key, value) else _text(value)


def _may_tell(key: str, value: Any) -> bool:
    """Whether a value is text of the user's own: no number, no default, none of a fixed set, no preset's name."""
    if value is None or isinstance(value, int | float) or value == _defaults().get(key) or value in ([], {}):
        return False
    if key == "method":
        return not (PRESETS / f"{value}.yaml").is_file()
    return value not in _choices().get(key, ())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value in (None, "") or value == {} else str(value)


@cache
def _defaults() -> dict[str, Any]:
    return flat(asdict(OnlineConfig()))


@cache
def _choices() -> dict[str, tuple[Any, ...]]:
    """Dotted key -> the words that it may be, where there is a fixed set of them."""
    return dict(_choices_of(OnlineConfig, ""))


def _choices_of(cls: type[Any], prefix: str) -> typing.Iterator[tuple[str, tuple[Any, ...]]]:
    for name, kind in typing.get_type_hints(cls).items():
        kinds = typing.get_args(kind) if typing.get_origin(kind) is not Literal else (kind,)
        literals = [one for one in (kind, *kinds) if typing.get_origin(one) is Literal]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _choices_of(kind, f"{prefix}{name}.")
        elif literals:
            yield f"{prefix}{name}", tuple(choice for one in literals for choice in typing.get_args(one))
