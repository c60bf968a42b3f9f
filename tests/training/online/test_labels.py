"""Pairs from verdicts, people who label in their own time, and other labels for what was sampled."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pluralign.annotators.people import LabelsNeededError
from pluralign.annotators.protocol import AnnotatorError, Request, Verdict
from pluralign.cli import main
from pluralign.errors import InputError
from pluralign.online_config import RelabelConfig
from pluralign.training import train
from pluralign.training.online.files import Candidates, Response, read_candidates, read_pairs
from pluralign.training.online.labelling import pairs_of_verdicts
from pluralign.training.online.relabelling import relabel
from pluralign.training.online.run import online

Make = Callable[..., Any]


def candidates(*texts: str) -> Candidates:
    responses = tuple(Response(text, True, -1.0, -1.5, 3) for text in texts)
    return Candidates("0/a/0", "a", "a", "?", 0, responses)


@pytest.mark.parametrize(
    ("form", "texts", "verdict", "expected"),
    [
        ("best_worst", "abcd", Verdict(scores=(0, 3, 1, -1)), ["bd"]),
        ("best_worst", "abc", Verdict(ranking=(2, 0, 1)), ["cb"]),
        ("all", "abc", Verdict(scores=(1, 2, 1)), ["ba", "bc"]),
        ("all", "abc", Verdict(ranking=(2, 0, 1)), ["ca", "cb", "ab"]),
        ("all", "aba", Verdict(scores=(2, 1, 0)), ["ab", "ba"]),
        ("sampled", "ab", Verdict(scores=(0, 1)), ["ba"]),
        ("sampled", "ab", Verdict(tie=True), []),
        ("best_worst", "abc", Verdict(scores=(1, 1, 1)), []),
        ("all", "ab", Verdict(abstained=True, reason="no idea"), []),
    ],
)
def test_pairs_are_what_the_form_says(form: Any, texts: str, verdict: Verdict, expected: list[str]) -> None:
    found = pairs_of_verdicts([candidates(*texts)], [verdict], form)
    assert [pair.chosen.text + pair.rejected.text for pair in found.pairs] == expected
    assert sum(found.without.values()) == (not expected)


def test_a_run_stops_for_people_and_goes_on_with_what_some_have_said(
    make_rows: Make, make_online: Make, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    config = make_online(make_rows("ab"), pairs={"phases": 1}, annotator={"people": str(table)})
    for _ in range(2):
        with pytest.raises(LabelsNeededError, match="comparisons wait for a choice") as stop:
            online(config)
    assert stop.value.exit_code == 1
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["choice"] = str(1 + number % 2) if number % 3 else ""
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(LabelsNeededError):
        online(config)
    with pytest.warns(UserWarning, match="gave no pair"):
        result = online(replace(config, annotator=replace(config.annotator, missing="skip")))
    assert set(result.adapters) == {"a", "b"}
    pairs = read_pairs(Path(config.output_dir) / "phases" / "0000" / "pairs-0000.jsonl")
    chosen = {row["row"]: row[f"response_{row['choice']}"] for row in rows if row["choice"]}
    assert {pair.row: pair.chosen.text for pair in pairs} == chosen


def test_what_was_sampled_can_be_labelled_by_somebody_else(
    make_rows: Make, make_online: Make, make_config: Make, counting: Any, capsys: Any, monkeypatch: Any
) -> None:
    columns = {"group": "g", "topic": 3, "row": "the table's", "parts": ["no plain value"]}
    rows = make_rows("ab", **{name: lambda number, value=value: value for name, value in columns.items()})
    config = make_online(rows, pairs={"phases": 2})
    online(config, counting())

    class Opposite:
        name, asked = "opposite", 0

        def annotate(self, requests: Any) -> list[Verdict]:
            if self.asked + len(requests) > 5 and self.asked:
                raise AnnotatorError(self.name, "it has enough")
            self.asked += len(requests)
            return [replace(one, scores=tuple(-s for s in one.scores)) for one in counting().annotate(requests)]

    given = RelabelConfig(run=config.output_dir)
    given.annotator.batch_size = 4
    with pytest.raises(AnnotatorError, match="it has enough"):
        relabel(given, Opposite())
    second = counting()
    made = relabel(given, second)
    files = sorted(Path(config.output_dir).glob("phases/*/candidates-*.jsonl"))
    sampled = {row.row: row for path in files for row in read_candidates(path)}
    distinct = [row for row in sampled.values() if len({one.text for one in row.responses}) > 1]
    # What the first one said is not asked for again.
    assert len(second.asked) == len(distinct) - 4 and made.prompts == len(sampled)
    own = {pair.row: pair for path in files for pair in read_pairs(path.parent / "pairs-0000.jsonl")}
    found = {pair.row: pair for pair in read_pairs(made.path)}
    turned = [row for row, pair in found.items() if pair.chosen == own[row].rejected]
    assert len(turned) == 4 and found.keys() == own.keys() and len(own) == made.pairs
    assert all(pair.references == (pair.chosen.logp, pair.rejected.logp) for pair in found.values())
    # The prompt's own columns stay, but for those that a pair has itself.
    assert all(pair.columns == {"group": "g", "topic": 3} == own[row].columns for row, pair in found.items())
    table = [json.loads(line) for line in made.path.read_text().splitlines()]
    offline = make_config(table, "offline", data={"validation": 0.0})
    assert set(train(replace(offline, reference=replace(offline.reference, compute="table"))).adapters) == {"a", "b"}
    with pytest.raises(InputError, match="the table is there"):
        relabel(given, counting())
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    again = made.path.with_name("again.jsonl")
    arguments = ["relabel", config.output_dir, "--annotator.function", "liking:annotate", "--output", str(again)]
    assert main(arguments) == 0 and f"pairs: {again}" in capsys.readouterr().out.replace("\n", "")
    with pytest.raises(InputError, match="there are no candidates"):
        relabel(RelabelConfig(run=str(made.path.parent / "state")), counting())


def test_requests_are_what_was_sampled() -> None:
    assert candidates("x", "y").request() == Request("?", ("x", "y"), "a", "0/a/0")
