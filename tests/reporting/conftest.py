"""Made-up runs, reports of them, and a browser to read them with."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pluralign.report_config import ReportConfig
from pluralign.reporting import write_report


def _load(name: str) -> ModuleType:
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


made_up_runs, chromium = _load("made_up_runs"), _load("chromium")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function of a name and what the population is like that writes the folder of a run."""
    return lambda name="run", **changes: made_up_runs.make_run(tmp_path / name, **changes)


@pytest.fixture
def change() -> Callable[[Path, Callable[[dict[str, Any]], Any]], None]:
    """A function that edits the evaluation of a run."""
    found: Callable[[Path, Callable[[dict[str, Any]], Any]], None] = made_up_runs.change
    return found


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Path]:
    """A function of runs (and keys of the command) that writes a report."""

    def write(*runs: Path, **changes: Any) -> Path:
        settings = {"runs": [str(run) for run in runs], "output": str(tmp_path / "report.html"), "overwrite": True}
        return write_report(ReportConfig(**{**settings, **changes}))

    return write


@pytest.fixture
def island() -> Callable[[Path], dict[str, Any]]:
    """A function of a page that reads the data it carries."""

    def read(page: Path) -> dict[str, Any]:
        text = page.read_text(encoding="utf-8")
        (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
        found: dict[str, Any] = json.loads(data)
        return found

    return read


@pytest.fixture(scope="session")
def ten_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a run with ten thousand people."""
    folder = tmp_path_factory.mktemp("large")
    run = made_up_runs.make_run(folder / "run", people=10_000, samples=2)
    return write_report(ReportConfig(runs=str(run), output=str(folder / "report.html")))


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs with the same forty people."""
    folder = tmp_path_factory.mktemp("two")
    runs = [
        made_up_runs.make_run(folder / "bapo", people=40, weights=True),
        made_up_runs.make_run(folder / "dpo", people=40, method="dpo", forgets=0.12),
    ]
    return write_report(ReportConfig(runs=[str(run) for run in runs], output=str(folder / "report.html")))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A running Chromium; without one the test is skipped, which `make test-all` counts as a failure."""
    if chromium.find() is None:
        pytest.skip("no chromium: install it (Debian: apt-get install chromium), or name it in PLURALIGN_CHROMIUM")
    with chromium.Browser() as running:
        yield running
