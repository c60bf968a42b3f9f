"""Quantile bands over people, from one pass over the lines of metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pluralign.errors import InputError
from pluralign.reporting.curves import MOST_GROUPS, QUANTILES, Log


def write(path: Path, lines: Iterable[dict[str, Any]], end: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def line(user: str, step: int, **values: float) -> dict[str, Any]:
    return {"user": user, "step": step, **{key.replace("__", "/"): value for key, value in values.items()}}


def test_bands_are_quantiles_over_people(tmp_path: Path) -> None:
    people = [f"p{number}" for number in range(11)]
    lines = [line(user, step, loss=number / step) for number, user in enumerate(people) for step in (10, 20)]
    curves = Log(write(tmp_path / "m", lines)).curves(["p3", "stranger"], every=10)
    assert curves is not None and curves.steps == [10, 20] and curves.people == 11
    loss = curves.metrics["loss"]
    for place, step in enumerate((10, 20)):
        expected = np.quantile(np.arange(11) / step, QUANTILES)
        assert [band[place] for band in loss.bands] == pytest.approx(expected, rel=1e-3)
    assert loss.count == [11, 11] and loss.singles == {"p3": [0.3, 0.15]} and not loss.validation
    assert set(curves.metrics) == {"loss"} and not curves.groups


def test_people_log_at_steps_of_their_own(tmp_path: Path) -> None:
    lines = [*(line("a", step, loss=1) for step in (10, 20, 30)), line("b", 10, loss=3), line("b", 13, loss=5)]
    curves = Log(write(tmp_path / "m", lines)).curves(["a", "b"], every=10)
    assert curves is not None and curves.steps == [10, 20, 30]
    assert curves.metrics["loss"].singles == {"a": [1, 1, 1], "b": [3, 5, None]}
    assert curves.metrics["loss"].count == [2, 2, 1]


def test_lines_that_are_nearer_than_configured_are_all_there(tmp_path: Path) -> None:
    lines = [line(user, step, loss=step) for user in ("a", "b") for step in range(1, 6)]
    curves = Log(write(tmp_path / "m", lines)).curves(["a"], every=10)
    assert curves is not None and curves.steps == [1, 2, 3, 4, 5]
    assert curves.metrics["loss"].singles == {"a": [1, 2, 3, 4, 5]}


def test_a_long_run_keeps_to_so_many_positions(tmp_path: Path) -> None:
    lines = [line("a", step, loss=step) for step in range(10, 10_001, 10)]
    curves = Log(write(tmp_path / "m", lines)).curves(["a"], every=10, positions=60)
    assert curves is not None and len(curves.steps) <= 60 and curves.steps[-1] == 10_000
    values = curves.metrics["loss"].singles["a"]
    assert values == sorted(values) and values[0] == pytest.approx(90, rel=0.02)
    fine = Log(tmp_path / "m").curves([], every=0.1, positions=60)
    assert fine is not None and len(fine.steps) <= 60


def test_validation_and_group_weights_stand_beside(tmp_path: Path) -> None:
    weights = {f"group/g{number}/weight": number / 100 for number in range(MOST_GROUPS + 3)}
    lines = [{**line("a", 10, loss=1.0), **weights}, line("a", 10, eval_loss=2.0), line("b", 10, eval_loss=4.0)]
    curves = Log(write(tmp_path / "m", lines)).curves([], every=10)
    assert curves is not None and curves.metrics["loss"].validation == [3.0]
    assert len(curves.groups) == MOST_GROUPS and curves.groups_left_out == 3
    assert next(iter(curves.groups)) == f"g{MOST_GROUPS + 2}"


def test_what_is_no_number_is_left_out_and_nothing_logged_is_no_curve(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"user": "a", "step": 1, "loss": NaN, "logps/base": "x"}\n{"user": "a", "step": 1, "loss": 2}\n')
    curves = Log(path).curves([], every=1)
    assert curves is not None and set(curves.metrics) == {"loss"} and curves.metrics["loss"].bands[2] == [2.0]
    assert Log(tmp_path / "nowhere").curves([], every=1) is None
    assert Log(write(tmp_path / "empty", [])).curves([], every=1) is None


def test_a_torn_end_is_passed_over_and_a_broken_line_is_named(tmp_path: Path) -> None:
    lines = [line("a", 1, loss=1.0)]
    assert Log(write(tmp_path / "torn", lines, end='{"user": "a", "st')).users == {"a": 0}
    for broken in ("{oh\n", '{"user": "a"}\n', "[]\n"):
        with pytest.raises(InputError, match=r"line 2: not an object"):
            Log(write(tmp_path / "broken", lines, end=broken))
