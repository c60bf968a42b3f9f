"""The page itself: data, program and looks in one HTML file that asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pluralign import __version__
from pluralign.errors import InputError
from pluralign.report_config import ReportConfig
from pluralign.reporting.content import Budget, Labels, content, labels_of
from pluralign.reporting.curves import Log
from pluralign.reporting.gather import Run, cautions, differences, read_runs
from pluralign.reporting.glance import FEWEST, glance
from pluralign.reporting.headline import as_text, headline
from pluralign.reporting.provenance import origins, settings
from pluralign.storage import check_place, write_bytes

ASSETS = Path(__file__).parent / "assets"
MOST_BYTES = 3_000_000
BUDGETS = (
    Budget(rows=10_000, singles=50, positions=60, texts=250_000),
    Budget(rows=10_000, singles=50, positions=40, texts=100_000),
    Budget(rows=7_000, singles=50, positions=40, texts=80_000),
    Budget(rows=4_000, singles=50, positions=30, texts=60_000),
    Budget(rows=1_000, singles=25, positions=30, texts=40_000),
    Budget(rows=200, singles=10, positions=20, texts=20_000),
)
"""Tried in this order until the page is no larger than it may be: ids and groups can be long, and runs many."""
PROGRAM = (
    "data.js",
    "charts.js",
    "tradeoff.js",
    "dots.js",
    "people.js",
    "cross.js",
    "answers.js",
    "training.js",
    "page.js",
)
_ENDINGS = (".html", ".htm")


def write_report(config: ReportConfig) -> Path:
    """Write runs as one HTML page, whole or not at all.

    Args:
        config: which runs, and where to.

    Returns:
        The file.

    Raises:
        InputError: a run is missing, has no evaluation or cannot be read; runs are on different data or bases and
            `different` is not set; the file is there and `overwrite` is not set. Nothing was written.
    """
    output = Path(config.output).expanduser()
    _check_output(output, config)
    runs = read_runs([config.runs] if isinstance(config.runs, str) else config.runs)
    apart = differences(runs)
    if apart and not config.different:
        raise InputError(
            f"these runs are no comparison: {'; '.join(apart)}",
            fix="Make a report of each, or set --different to have them on one page, which then says so.",
        )
    page = _fitting(runs, pseudonyms=config.pseudonyms)
    # An id may hold half a surrogate pair, which UTF-8 has no bytes for; JSON's own escape has.
    write_bytes(output, page.encode("utf-8", "backslashreplace"))
    return output


def as_island(value: Any) -> Markup:
    """JSON that can stand in a page whatever is in it: no sign of it ends the element, or begins another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _check_output(output: Path, config: ReportConfig) -> None:
    check_place(output)
    if output.suffix.lower() not in _ENDINGS:
        raise InputError("the report is a page", where=str(output), fix="Name a file that ends in .html.")
    if output.exists() and not config.overwrite:
        raise InputError("the file is there", where=str(output), fix="Name another, or set --overwrite to replace it.")


def _fitting(runs: Sequence[Run], *, pseudonyms: bool) -> str:
    """The page with as much in it as there is room for."""
    labels = labels_of(runs, pseudonyms=pseudonyms)
    logs = [Log(run.folder.metrics) for run in runs]
    page = ""
    for budget in BUDGETS:
        page = _page(runs, labels, content(runs, logs, labels, budget, pseudonyms=pseudonyms), pseudonyms)
        if len(page.encode("utf-8", "backslashreplace")) <= MOST_BYTES:
            break
    return page


def _page(runs: Sequence[Run], labels: Labels, data: dict[str, Any], pseudonyms: bool) -> str:
    names = dict(zip((id(run) for run in runs), labels.runs, strict=True))
    apart = differences(runs)
    said = headline(runs, labels.people.label, lambda run: names[id(run)], comparable=not apart)
    own, others = settings(runs, pseudonyms=pseudonyms)
    style, library, program = _style(), _asset("echarts.min.js"), _program()
    return _template().render(
        policy=_policy(scripts=(library, program), style=style),
        title=as_text(said.title),
        headline=said,
        runs=labels.runs,
        methods=labels.methods,
        notes=_notes(runs, labels, data, apart, pseudonyms),
        glance=glance(runs, labels.people.label),
        fewest=FEWEST,
        origins=origins(runs, pseudonyms=pseudonyms),
        own_settings=own,
        other_settings=others,
        style=style,
        library=library,
        program=program,
        data=as_island(data),
        version=__version__,
    )


def _notes(runs: Sequence[Run], labels: Labels, data: dict[str, Any], apart: list[str], pseudonyms: bool) -> list[str]:
    """What a reader has to know before the figures."""
    notes = []
    if apart:
        # Hashes tell runs apart by their names, which pseudonyms leave out.
        what = [one.partition(" (")[0] if pseudonyms else one for one in apart]
        notes.append(f"These runs are no comparison of methods: {'; '.join(what)}.")
    notes += cautions(runs)
    notes += [f"{name} is not finished." for run, name in zip(runs, labels.runs, strict=True) if not run.finished]
    for run, part in zip(runs, data["runs"], strict=True):
        on_page = len(part["results"]["person"])
        if on_page < len(run.people):
            notes.append(
                f"{part['name']}: {on_page:,} of {len(run.people):,} people are on this page, the worst and a fixed "
                "sample of the others. Sentences, means, groups and bands are of all."
            )
    if pseudonyms:
        notes.append("People and groups are numbered; prompts, answers, paths and reasons are left out.")
    return notes


def _policy(*, scripts: Sequence[str], style: str) -> str:
    """A content security policy under which only what this page was written with runs, and nothing is fetched."""
    sources = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {sources}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _program() -> Markup:
    return Markup("\n".join(["'use strict';", "(() => {", *map(_asset, PROGRAM), "})();"]))


def _style() -> Markup:
    return _asset("page.css")


@cache
def _asset(name: str) -> Markup:
    # A newline of another system would be another text to the browser, with another hash.
    return Markup((ASSETS / name).read_text(encoding="utf-8").replace("\r\n", "\n"))


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
