"""The page as a file: what is in it, what is not, how large it is, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pluralign.errors import InputError
from pluralign.report_config import ReportConfig
from pluralign.reporting import page as page_module

Make = Callable[..., Path]
HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&amp;\u2028\x07{{7*7}}'
ASSETS = Path(page_module.__file__).parent / "assets"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.raw.append((self.cdata_elem, data))
        else:
            self.words.append(data)

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.raw if name == tag]


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


def test_the_page_has_everything_in_itself(make_run: Make, report: Make) -> None:
    found = parsed(report(make_run()))
    assert [dict(attributes).get("type") for tag, attributes in found.elements if tag == "script"] == [
        "application/json",
        None,
        None,
    ]
    for tag, attributes in found.elements:
        assert not {"src", "srcset", "onclick", "onload", "style"} & attributes.keys()
        if tag in ("a", "link"):
            assert (attributes["href"] or "").startswith(("#", "data:,"))


def test_only_what_the_page_was_written_with_may_run(make_run: Make, report: Make) -> None:
    found = parsed(report(make_run()))
    (policy,) = [one["content"] or "" for tag, one in found.elements if tag == "meta" and "http-equiv" in one]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    _, library, program = found.texts("script")
    (style,) = found.texts("style")
    assert f"script-src {digest(library)} {digest(program)};" in policy and f"style-src {digest(style)};" in policy


def test_what_people_wrote_stays_text(tmp_path: Path, make_run: Make, change: Any, report: Make, island: Any) -> None:
    folder = make_run("run <b>&", people=[HOSTILE, "plain-1", "plain-2"])

    def poison(content: dict[str, Any]) -> None:
        for person in content["people"].values():
            person["group"] = HOSTILE
            for sample in person["behaviour"]["samples"]:
                sample.update(prompt=HOSTILE, base=HOSTILE, person=f"{HOSTILE}\ud800", chosen=HOSTILE)
        content["skipped"]["<i>"] = HOSTILE
        content["base"]["model"] = HOSTILE

    change(folder, poison)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    (folder / "metrics.jsonl").write_text(
        lines.replace('"epoch"', f'"group/{json.dumps(HOSTILE)[1:-1]}/weight": 1, "epoch"')
    )
    path = report(folder)
    found = parsed(path)
    assert sum(tag == "script" for tag, _ in found.elements) == 3
    assert not {"img", "b", "i"} & {tag for tag, _ in found.elements}
    data = island(path)
    assert any(HOSTILE[:20] in label for label in data["people"])
    ((_, answers), *_) = data["runs"][0]["answers"]
    assert answers[0]["prompt"].startswith('</script><script>alert("x")') and "\\x07" in answers[0]["prompt"]
    assert "".join(text for kind, text in answers[0]["pieces"] if kind in "=+").endswith("\\ud800")
    assert "49" not in "".join(found.words[:60])


def test_the_same_runs_make_the_same_page(make_run: Make, report: Make) -> None:
    runs = make_run("a", people=12), make_run("b", people=12, method="dpo")
    assert report(*runs).read_bytes() == report(*runs).read_bytes()


def test_pseudonyms_leave_nothing_that_tells_of_people(make_run: Make, change: Any, report: Make, island: Any) -> None:
    secret = "Zaphod"
    users = [f"{secret}-{number}" for number in range(6)]
    changes = {"data": f"/home/{secret}/{secret}.jsonl", "conditioning": {"template": f"{secret}: {{prompt}}"}}
    folder = make_run(f"{secret}-run", people=users, weights=True, changes=changes)

    def edit(content: dict[str, Any]) -> None:
        text = json.dumps(content["people"]).replace("terse", secret).replace("thrush", secret)
        content["people"] = json.loads(text)
        content["skipped"][f"{secret}-9"] = f"the row of {secret} is empty"
        content["base"]["model"] = f"/home/{secret}/model"
        content["base"]["probes"][0]["source"] = f"{secret}.jsonl"

    change(folder, edit)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + f"  machine: {{host: {secret}}}\n")
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("group/terse", f"group/{secret}"))
    written = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["people"].values()
    samples = [sample for person in written for sample in person["behaviour"]["samples"]]
    # A word or two may stand in any program; what people wrote is longer.
    texts = {sample[key] for sample in samples for key in ("prompt", "chosen", "base", "person")}
    texts = {one for one in texts if len(one) > 12}
    full = report(folder).read_text(encoding="utf-8")
    assert secret in full and len(texts) > 20 and any(one in full for one in texts)
    path = report(folder, pseudonyms=True)
    text = path.read_text(encoding="utf-8")
    assert secret not in text and secret.lower() not in text
    assert not [one for one in texts if one in text]
    data = island(path)
    assert {"person 1", "person 7"} <= set(data["people"]) and not data["runs"][0]["answers"]
    assert "run 1 (bapo)" in text and "(withheld)" in text and "People and groups are numbered" in text


def test_machine_time_and_memory_are_those_of_the_calls(make_run: Make, report: Make) -> None:
    run = make_run(people=2)
    words = " ".join(parsed(report(run, pseudonyms=True)).words)
    assert "Linux 6.1.0, Example Processor, 8 cores, 34.4 GB of memory" in words
    taken = "0:12:00 (preparation 0:00:25, training 0:10:00, evaluation 0:01:35)"
    assert f"{taken}; 2 calls, the first begun 2026-03-01 09:00 UTC" in words and "1.5 GB" in words
    (run / "calls.json").unlink()
    assert " ".join(parsed(report(run)).words).count("not recorded") == 3


def test_runs_on_other_data_are_refused_unless_asked_for_and_then_it_is_said(make_run: Make, report: Make) -> None:
    runs = make_run("a"), make_run("b", data="another")
    with pytest.raises(InputError, match="no comparison: the data is not the same") as error:
        report(*runs)
    assert "--different" in str(error.value)
    text = report(*runs, different=True).read_text(encoding="utf-8")
    assert "These runs are no comparison of methods: the data is not the same (a " in text
    assert "Two runs on different data or bases" in text
    hidden = report(*runs, different=True, pseudonyms=True).read_text(encoding="utf-8")
    assert "the data is not the same." in hidden


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path, make_run: Make, report: Make) -> None:
    run, output = make_run(people=2), tmp_path / "mine.html"
    output.write_text("mine")
    with pytest.raises(InputError, match="the file is there"):
        report(run, output=str(output), overwrite=False)
    assert output.read_text() == "mine"
    assert report(run, output=str(output)).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "run"]


def test_a_place_that_is_no_page_is_refused(tmp_path: Path, make_run: Make, report: Make) -> None:
    run = make_run(people=2)
    for output, named in ((tmp_path, "it is a folder"), (run / "evaluation.json", "ends in .html")):
        with pytest.raises(InputError, match=named):
            report(run, output=str(output))
    assert json.loads((run / "evaluation.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    "changes",
    [{"people": 1}, {"probes": False}, {"cross": 0}, {"samples": 0}, {"groups": False}, {"weights": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_there_is_a_page_whatever_was_measured(make_run: Make, report: Make, island: Any, changes: Any) -> None:
    data = island(report(make_run(**changes)))
    run = data["runs"][0]
    assert len(run["results"]["person"]) == run["measured"]
    assert bool(run["answers"]) == ("samples" not in changes)
    assert ("retention.kept" in run["results"]["values"]) == ("probes" not in changes)


def test_there_is_a_page_where_nothing_was_measured_and_nothing_logged(
    make_run: Make, change: Any, report: Make, island: Any
) -> None:
    run = make_run(people=2)
    change(run, lambda content: content["people"].clear())
    change(run, lambda content: content["skipped"].update(ann="no pairs", ben="no pairs"))
    (run / "metrics.jsonl").unlink()
    (run / "unfinished.json").write_text("{}")
    path = report(run)
    text = path.read_text(encoding="utf-8")
    assert "0 people measured" in text and "is not finished" in text
    assert [reason for _, reason in island(path)["runs"][0]["skipped"]] == ["no pairs", "no pairs"]


def test_a_value_that_some_people_lack_is_null_on_the_page(
    make_run: Make, change: Any, report: Make, island: Any
) -> None:
    run = make_run(people=5)
    change(run, lambda content: content["people"]["terse-002"].update(retention=None))
    data = island(report(run))
    kept = data["runs"][0]["results"]["values"]["retention.kept"]
    assert kept.count(None) == 1 and len(kept) == 5


def test_figures_are_those_of_the_evaluation(make_run: Make, report: Make, island: Any) -> None:
    run = make_run(people=9)
    data = island(report(run))
    people = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["people"]
    results = data["runs"][0]["results"]
    for row, number in enumerate(results["person"]):
        pairs = people[data["people"][number]]["pairs"]
        assert results["values"]["pairs.accuracy"][row] == round(1000 * pairs["accuracy"])
        low, high = pairs["accuracy_interval"]
        assert [results[end]["pairs.accuracy"][row] for end in ("low", "high")] == [
            round(1000 * low),
            round(1000 * high),
        ]
        assert results["pairs"][row] == pairs["n"]
    maps = data["runs"][0]["cross"]
    assert [one["title"] for one in maps] == ["people", "groups"] and len(maps[0]["cells"]) == 81
    groups = data["runs"][0]["groups"]
    assert sum(row["people"] for row in groups) == 9
    assert [row["values"]["pairs.accuracy"][0] for row in groups] == sorted(
        r["values"]["pairs.accuracy"][0] for r in groups
    )


def test_a_page_that_would_be_too_large_has_less_in_it_and_says_so(
    make_run: Make, report: Make, island: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(people=[f"{number:04d}" * 40 for number in range(300)])
    full = report(run).stat().st_size
    few = [dataclasses.replace(budget, rows=200 - 50 * place) for place, budget in enumerate(page_module.BUDGETS[:3])]
    monkeypatch.setattr(page_module, "BUDGETS", (page_module.BUDGETS[0], *few))
    monkeypatch.setattr(page_module, "MOST_BYTES", full - 1)
    path = report(run)
    assert path.stat().st_size < full
    assert len(island(path)["runs"][0]["results"]["person"]) == 200
    assert "200 of 300 people are on this page" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_ten_thousand_people_fit(ten_thousand: Path, island: Any) -> None:
    assert ten_thousand.stat().st_size <= page_module.MOST_BYTES
    run = island(ten_thousand)["runs"][0]
    assert len(run["results"]["person"]) == 10_000 and 50 < len(run["curves"]["metrics"]["loss"]["singles"]) <= 100


def test_the_library_is_the_one_that_the_notice_names() -> None:
    notice = (ASSETS / "NOTICE").read_text(encoding="utf-8")
    (digest,) = re.findall(r"[0-9a-f]{64}", notice)
    assert hashlib.sha256((ASSETS / "echarts.min.js").read_bytes()).hexdigest() == digest
    (version,) = re.findall(r"ECharts (\d+\.\d+\.\d+)", notice)
    assert f'version="{version}"' in (ASSETS / "echarts.min.js").read_text(encoding="utf-8")
    assert all((ASSETS / name).is_file() for name in re.findall(r"LICENSE-\w+", notice))


def test_every_key_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(ReportConfig):
        assert f"`{field.name}`" in document or f"--{field.name}" in document
