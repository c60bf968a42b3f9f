"""Two runs compared: differences and their intervals, what is refused, conditions, files, the table."""

from __future__ import annotations

import copy
import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pluralign.compare_config import CompareConfig
from pluralign.errors import InputError
from pluralign.evaluation.comparing import Comparison, compare
from pluralign.evaluation.paired import paired_differences
from pluralign.evaluation.results import Evaluation, by_group, summarize

NAMES = [f"p{number:02d}" for number in range(24)]


def person(rng: random.Random, shift: float) -> dict[str, Any]:
    accuracy = min(20, max(0, round((0.4 + rng.random() / 2 + shift) * 20))) / 20
    behaviour = {"style": rng.random(), "right": 0.5, "degenerate": 0.0}
    return {
        "adapter": "x",
        "group": None,
        "pairs": {"n": 20, "accuracy": accuracy, "margin": rng.gauss(1, 1), "base_ranking_accuracy": 0.45},
        "base_responses": {"n": 8, "kl_per_token": rng.random() / 10},
        "retention": {
            **{"kept": 0.9 + rng.random() / 10, "kept_own": None, "accuracy": 0.8, "base_accuracy": 0.85},
            "measures": {"base_sum": {"all": {"n": 100}}},
        },
        "behaviour": {"person": behaviour, "base": behaviour, "samples": [{"prompt": "q", "chosen": "a"}]},
    }


def made(
    names: list[str], seed: int, shift: float = 0.0, change: Callable[[Evaluation], None] | None = None
) -> Evaluation:
    rng = random.Random(seed)
    base = {
        **{"model": "nano", "fingerprint": "f" * 64, "tokenizer_fingerprint": "t", "seed": 0},
        **{"settings": {"max_prompts": 64}, "generation": {"max_new_tokens": 64, "batch_size": 32}},
    }
    evaluation = Evaluation(base, {name: person(rng, shift) for name in names}, {}, {})
    if change:
        change(evaluation)
    people, skipped = evaluation.people, evaluation.skipped
    return Evaluation(base, people, by_group(people), summarize(people, skipped), skipped)


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., Comparison]:
    """A function of one or two evaluations, and keys of the configuration."""

    def run(*evaluations: Evaluation, **keys: Any) -> Comparison:
        folders = [tmp_path / name for name in "ab"[: len(evaluations)]]
        for folder, evaluation in zip(folders, evaluations, strict=True):
            evaluation.write(folder / "evaluation.json")
        return compare(CompareConfig(runs=list(map(str, folders)), **keys))

    return run


def printed(comparison: Comparison, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


# ---- differences ----


def test_a_run_beside_itself_differs_in_nothing(compared: Callable[..., Comparison]) -> None:
    found = compared(made(NAMES, 1), made(NAMES, 1))
    assert found.shared == NAMES and not found.different and not found.remarks
    for key, one in found.differences.items():
        assert one.difference == 0 and one.a == one.b, key
        assert one.interval == ((0, 0) if "." in key else None)
    assert found.differences["pairs.accuracy.mean"].people == 24
    assert "better" not in printed(found)


def test_every_figure_of_both_summaries_is_compared_over_the_shared_people(compared: Callable[..., Comparison]) -> None:
    one, other = made(NAMES, 1), made([*NAMES[:-1], "zoe"], 2, 0.1)
    found = compared(one, other)
    numbers = {
        key
        for key, value in one.summary.items()
        if isinstance(value, int | float) and isinstance(other.summary[key], int | float)
    }
    assert numbers <= found.differences.keys()
    assert {f"pairs.accuracy.{name}" for name in ("worst_decile", "worst_decile_of_a", "gap_90_10", "gini")} <= set(
        found.differences
    )
    assert "pairs.margin.gini" not in found.differences
    people = NAMES[:-1]
    values = [[run.people[name]["pairs"]["accuracy"] for name in people] for run in (one, other)]
    mean = found.differences["pairs.accuracy.mean"]
    assert (mean.a, mean.b, mean.people) == (pytest.approx(np.mean(values[0])), pytest.approx(np.mean(values[1])), 23)
    lowest = sorted(values[0])[2]
    of_a = [b for a, b in zip(*values, strict=True) if a < lowest]
    ties = [b for a, b in zip(*values, strict=True) if a == lowest]
    expected = (sum(of_a) + (3 - len(of_a)) * np.mean(ties)) / 3
    assert found.differences["pairs.accuracy.worst_decile_of_a"].b == pytest.approx(expected)
    assert "in A only, and in no difference: p23" in found.remarks
    assert "in B only, and in no difference: zoe" in found.remarks
    assert found.differences["skipped"].interval is None


def test_differences_are_repeatable_and_pairing_narrows_them() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0, 1, 60)
    second = first + rng.normal(0.1, 0.05, 60)
    found = paired_differences(first, second, gini=False)
    assert found == paired_differences(first, second, gini=False)
    low, high = found["mean"].interval or (math.nan, math.nan)
    assert 0.05 < low < 0.1 < high < 0.15
    spread = float(np.std(second - first) / math.sqrt(60))
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)


@pytest.mark.parametrize(("statistic", "share"), [("mean", 0.92), ("worst_decile", 0.85), ("gini", 0.9)])
def test_intervals_hold_the_truth_as_often_as_they_say(statistic: str, share: float) -> None:
    """50 people with 40 pairs each: docs/compare.md says how often."""
    rng = np.random.default_rng(7)

    def drawn(people: int) -> tuple[Any, Any]:
        ability = rng.beta(8, 3, people)
        better = np.clip(ability + rng.normal(0.03, 0.08, people), 0, 1)
        return rng.binomial(40, ability) / 40, rng.binomial(40, better) / 40

    truth = paired_differences(*drawn(200_000), draws=2)[statistic].difference
    intervals = [paired_differences(*drawn(50), draws=500, seed=seed)[statistic].interval for seed in range(300)]
    held = [low <= truth <= high for low, high in filter(None, intervals)]
    # Of 300 intervals of 95%, 276 or more hold the truth but for one time in a hundred.
    assert share <= np.mean(held) <= 0.985


def test_one_person_has_no_interval(compared: Callable[..., Comparison]) -> None:
    found = compared(made(["p00", "p01"], 1), made(["p01", "p02"], 2))
    mean = found.differences["pairs.accuracy.mean"]
    assert mean.people == 1 and mean.interval is None and mean.difference is not None
    assert "pairs.accuracy: one person has it in both runs, and an interval takes two" in found.remarks
    assert "interval takes two" in printed(found)
    few = compared(made(NAMES[:5], 1), made(NAMES[:5], 2))
    assert few.remarks == ["intervals are too short where people are few: these are of 5 at most"]
    nobody = compared(made(["p00"], 1), made(["p02"], 2))
    assert not nobody.shared and "pairs.accuracy.mean" not in nobody.differences
    with pytest.raises(InputError, match=r"no figure difference\.pairs\.accuracy\.mean"):
        compared(made(["p00"], 1), made(["p02"], 2), fail_if="difference.pairs.accuracy.mean < 0")


def test_who_lacks_a_value_is_named_and_left_out_of_that_measure_alone(compared: Callable[..., Comparison]) -> None:
    def change(evaluation: Evaluation) -> None:
        evaluation.people["p03"]["retention"]["kept"] = None
        evaluation.people["p04"]["base_responses"]["kl_per_token"] = math.nan
        evaluation.skipped["[b]ed"] = "why"

    found = compared(made(NAMES, 1), made(NAMES, 2, change=change))
    assert (
        found.differences["retention.kept.mean"].people == found.differences["base_responses.kl_per_token.gap"].people
    )
    assert (found.differences["retention.kept.mean"].people, found.differences["pairs.margin.mean"].people) == (23, 24)
    assert found.remarks == [
        "B: base_responses.kl_per_token is no number for p04",
        "B: retention.kept has no value for p03",
        "B: skipped, and in no figure: [b]ed",
    ]
    text = printed(found)
    assert "retention.kept (of 23)" in text and "skipped, and in no figure: [b]ed" in text


# ---- the yardstick ----


def on_another_base(evaluation: Evaluation) -> None:
    evaluation.base["fingerprint"] = "0" * 64


def of_other_rows(evaluation: Evaluation) -> None:
    evaluation.people["p03"]["pairs"]["n"] = 19


def ranked_otherwise(evaluation: Evaluation) -> None:
    evaluation.people["p03"]["pairs"]["base_ranking_accuracy"] = 0.6


def of_other_texts(evaluation: Evaluation) -> None:
    evaluation.people["p03"]["behaviour"]["samples"] = [{"prompt": "q", "chosen": "b"}]


def of_other_probes(evaluation: Evaluation) -> None:
    evaluation.people["p03"]["retention"]["measures"]["base_sum"]["all"]["n"] = 50


def of_easier_probes(evaluation: Evaluation) -> None:
    evaluation.people["p03"]["retention"]["base_accuracy"] = 0.8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (on_another_base, r"the bases differ: nano \(f{12}\) and nano \(0{12}\)"),
        (of_other_rows, r"the held-out rows differ for 1 of 24 people \(p03\)"),
        (ranked_otherwise, "the held-out rows differ"),
        (of_other_texts, "the held-out rows differ"),
        (of_other_probes, r"the probes differ for 1 of 24 people \(p03\)"),
        (of_easier_probes, "the probes differ"),
    ],
)
def test_another_yardstick_is_refused_unless_it_is_asked_for(
    compared: Callable[..., Comparison], change: Callable[[Evaluation], None], named: str
) -> None:
    runs = made(NAMES, 1), made(NAMES, 2, change=change)
    with pytest.raises(InputError, match=rf"{named}.*--different"):
        compared(*runs)
    found = compared(*runs, different=True)
    assert len(found.different) == 1 and f"NOT THE SAME YARDSTICK: {found.different[0]}" in printed(found, 200)
    assert found.as_dict()["different"] == found.different


def test_where_files_say_which_rows_were_held_out_nothing_else_counts(compared: Callable[..., Comparison]) -> None:
    def named(digest: str) -> Callable[[Evaluation], None]:
        def change(evaluation: Evaluation) -> None:
            ranked_otherwise(evaluation)
            for results in evaluation.people.values():
                results["held_out"] = digest

        return change

    def conditioned(evaluation: Evaluation) -> None:
        for results in evaluation.people.values():
            results["held_out"] = "one"

    # The base may rank the same pairs otherwise, under prompts that say who asks.
    assert not compared(made(NAMES, 1, change=conditioned), made(NAMES, 2, change=named("one"))).different
    with pytest.raises(InputError, match="held-out rows differ for 24 of 24 people"):
        compared(made(NAMES, 1, change=conditioned), made(NAMES, 2, change=named("two")))


def test_a_tie_that_rounding_turned_over_is_no_other_yardstick(compared: Callable[..., Comparison]) -> None:
    def change(evaluation: Evaluation) -> None:
        evaluation.people["p03"]["pairs"]["base_ranking_accuracy"] = 0.5
        evaluation.people["p03"]["retention"]["base_accuracy"] = 0.84

    assert not compared(made(NAMES, 1), made(NAMES, 2, change=change)).different


def test_answers_that_were_made_otherwise_are_said(compared: Callable[..., Comparison]) -> None:
    def change(evaluation: Evaluation) -> None:
        evaluation.base["generation"] = {"max_new_tokens": 32, "batch_size": 8}

    (remark,) = compared(made(NAMES, 1), made(NAMES, 2, change=change)).remarks
    assert remark == "answers were made in other ways (max_new_tokens 64 and 32): so much of behaviour is not the runs'"


# ---- conditions ----


def test_conditions_are_on_the_last_run_and_on_what_changed(compared: Callable[..., Comparison]) -> None:
    worse, better = made(NAMES, 1), made(NAMES, 1, 0.1)
    found = compared(
        worse,
        better,
        fail_if=[
            "difference.pairs.accuracy.worst_decile < 0.05",
            "difference.pairs.accuracy.mean.low > 0 and pairs.accuracy.gini < 1",
            "retention.kept.mean < 0.9 or skipped > 0",
        ],
    )
    assert [outcome.holds for outcome in found.outcomes] == [False, True, False] and found.failed
    assert found.outcomes[2].figures == {
        "retention.kept.mean": found.runs["b"].figures["retention.kept.mean"],
        "skipped": 0,
    }
    text = printed(found, 200)
    assert "FAILED: difference.pairs.accuracy.mean.low > 0" in text and "passed: retention.kept.mean < 0.9 or" in text
    alone = compared(worse, fail_if="pairs.accuracy.worst_decile > 0.1")
    assert alone.failed and not alone.differences
    assert not compared(worse).failed


@pytest.mark.parametrize(
    ("condition", "named"),
    [
        ("retention.kept.meen < 1", "Did you mean retention.kept.mean"),
        ("retention.kept_own.mean < 1", "retention.kept_own.mean has no value"),
        ("pairs.accuracy.worst_person == 1", "is 'p"),
        ("base_responses.kl_per_token.worst > 1", r"kl_per_token is no number for p04, and .*worst leaves them out"),
        ("skipped < 0 and base_responses.kl_per_token.gap > 1", "is no number for p04"),
        ("difference.base_responses.kl_per_token.mean > 1", "is no number for p04"),
        ("difference.people.low > 1", "no figure difference.people.low"),
        ("retention.kept.mean", "it ends where one of"),
    ],
)
def test_a_condition_never_passes_for_want_of_a_number(
    compared: Callable[..., Comparison], condition: str, named: str
) -> None:
    def change(evaluation: Evaluation) -> None:
        evaluation.people["p04"]["base_responses"]["kl_per_token"] = None

    with pytest.raises(InputError, match=named):
        compared(made(NAMES, 1), made(NAMES, 2, change=change), fail_if=condition)


def test_a_difference_takes_two_runs(compared: Callable[..., Comparison]) -> None:
    with pytest.raises(InputError, match=r"difference\.skipped is asked for, and there is one run"):
        compared(made(NAMES, 1), fail_if="difference.skipped > 0")


# ---- files ----


def test_the_file_is_json_with_a_schema_and_says_it_all(compared: Callable[..., Comparison], tmp_path: Path) -> None:
    def change(evaluation: Evaluation) -> None:
        evaluation.people["p04"]["base_responses"]["kl_per_token"] = math.nan

    runs = made(NAMES, 1), made(NAMES[:-1], 2, change=change)
    output = tmp_path / "deep" / "compared.json"
    found = compared(*runs, output=str(output), fail_if="skipped > 0", seed=3)
    content = json.loads(output.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["schema_version"] == 1 and content["bootstrap"] == {"draws": 10_000, "seed": 3}
    assert content["runs"]["a"]["only_here"] == ["p23"]
    assert content["runs"]["b"]["without_value"] == [
        {"measure": "base_responses.kl_per_token", "reason": "is no number", "people": ["p04"]}
    ]
    assert content["runs"]["b"]["figures"]["pairs.accuracy.gini"] == found.runs["b"].figures["pairs.accuracy.gini"]
    assert content["conditions"] == [{"condition": "skipped > 0", "holds": False, "figures": {"skipped": 0.0}}]
    mean = content["differences"]["pairs.accuracy.mean"]
    assert set(mean) == {"a", "b", "difference", "interval", "people"} and len(mean["interval"]) == 2
    document = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    for part in (content, content["runs"]["a"], mean, content["conditions"][0]):
        assert all(f"`{key}`" in document for key in part)
    assert json.loads(json.dumps(found.as_dict())) == content


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    with pytest.raises(
        InputError, match=rf"{tmp_path}/my run: there is no evaluation.json.*--run '{tmp_path}/my run'` makes"
    ):
        compare(CompareConfig(runs=str(tmp_path / "my run")))
    with pytest.raises(InputError, match="absent: there is no such folder or file"):
        compare(CompareConfig(runs=[str(tmp_path / "absent")]))
    for runs in ([], ["a", "b", "c"]):
        with pytest.raises(InputError, match=f"there are {len(runs)} runs to compare"):
            compare(CompareConfig(runs=runs))
    broken = copy.deepcopy(made(["p00"], 1))
    broken.people["p00"] = []  # type: ignore[assignment]
    broken.write(tmp_path / "broken.json")
    with pytest.raises(InputError, match="results of p00 are no object"):
        compare(CompareConfig(runs=str(tmp_path / "broken.json")))


# ---- the table ----


def test_the_table_fits_80_columns_and_says_who_is_better(compared: Callable[..., Comparison]) -> None:
    worse, better = made(NAMES, 1), made(NAMES, 1, 0.1)
    found = compared(worse, better)
    for width in (80, 100):
        rows = printed(found, width).splitlines()
        assert max(map(len, rows)) <= width
        assert not any("…" in row for row in rows)
    (row,) = [row for row in rows if row.split()[:1] == ["mean"]][:1]
    assert row.split()[-1] == "better"
    # Single people, and those chosen for being low in A, get no verdict.
    for label in ("worst person", "best person", "A's worst tenth"):
        assert all(row.split()[-1].endswith("]") for row in rows if row.strip().startswith(label))
    reverse = printed(compared(better, worse))
    assert "worse" in reverse and "better" not in reverse


def test_one_run_alone_is_shown_over_its_people(compared: Callable[..., Comparison]) -> None:
    text = printed(compared(made(NAMES, 1)))
    (row,) = [row for row in text.splitlines() if "pairs.accuracy" in row]
    assert len(row.split()) == 8
    assert "kept_own" not in text and "B - A" not in text


def test_hostile_names_stay_on_their_lines(compared: Callable[..., Comparison]) -> None:
    names = ["[bold]x[/bold]", "line\nbreak", "\x1b[31mred", "half \ud800"]
    found = compared(made(names, 1), made([*names, "y" * 5000], 2), output=None)
    text = printed(found)
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 100
    assert json.dumps(found.as_dict())


def asked_tasks(evaluation: Evaluation, broken: str | None = None, **accuracies: float) -> None:
    """Everybody's answers to tasks of lm-eval, worse from person to person; a broken policy's are no numbers."""
    for place, (name, results) in enumerate(evaluation.people.items()):
        values = {task: None if name == broken else value - place / 100 for task, value in accuracies.items()}
        results["knowledge"] = {
            **{"score": None if name == broken else 0.5, "base_score": 0.8, "difference": None},
            "undefined": 7 * (name == broken),
            "tasks": {
                task.replace("_", "-"): {"headline": "acc,none", "metrics": {"acc,none": {"value": value}}}
                for task, value in values.items()
            },
        }


def test_every_task_of_lm_eval_is_a_figure_that_a_line_can_be_held_on(compared: Callable[..., Comparison]) -> None:
    one, other = (made(NAMES, 1, change=lambda run, at=at: asked_tasks(run, arc_easy=at)) for at in (0.9, 0.6))
    assert other.summary["knowledge.tasks.arc-easy.worst"] == pytest.approx(0.6 - 0.23)
    assert other.summary["knowledge.tasks.arc-easy.worst_person"] == NAMES[-1]
    keys = ["knowledge.tasks.arc-easy.worst_decile < 0.5", "difference.knowledge.tasks.arc-easy.mean.high < -0.29"]
    found = compared(one, other, fail_if=[*keys, "knowledge.tasks.arc-easy.mean > 0.9"])
    assert [outcome.holds for outcome in found.outcomes] == [True, True, False]
    assert found.differences["knowledge.tasks.arc-easy.worst_decile"].difference == pytest.approx(-0.3)
    assert "knowledge.tasks.arc-easy" in printed(found) and "worse" in printed(found)
    with pytest.raises(InputError, match=r"no figure knowledge\.tasks\.arc\.mean\. Did you mean"):
        compared(other, fail_if="knowledge.tasks.arc.mean < 0.5")
    # A task that one run was not asked is in no difference, and an older file has its figures all the same.
    one.summary = {key: value for key, value in one.summary.items() if "tasks" not in key}
    lone = compared(made(NAMES, 1), one, fail_if="knowledge.tasks.arc-easy.mean > 0.5")
    assert lone.failed and "knowledge.tasks.arc-easy.mean" not in lone.differences
    assert "nobody has it in both runs" in " ".join(lone.remarks) and "arc-easy" in printed(lone)


def test_a_broken_policy_is_no_gap_in_what_tasks_say(compared: Callable[..., Comparison]) -> None:
    run = made(NAMES, 1, change=lambda run: asked_tasks(run, broken="p03", facts=0.9))
    for key in ("knowledge.score.mean", "knowledge.tasks.facts.worst"):
        with pytest.raises(InputError, match="is no number for p03"):
            compared(run, fail_if=f"{key} < 0.1")
