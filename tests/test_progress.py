"""Progress bars on a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from pluralign import progress


def test_an_id_that_looks_like_markup_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "_console", lambda: Console(file=terminal, force_terminal=True, width=100))
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))
    with progress.progress_bar() as bar:
        bar.add_task("[/b] [red]")
        bar.refresh()
    assert "[/b] [red]" in terminal.getvalue()
