"""The page as its readers meet it: opened from disk in a headless Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Make = Callable[..., Path]
HOSTILE = '</script><img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'
POINT = """
(() => {
  const chart = echarts.getInstanceByDom(document.querySelector('#tradeoff-chart'));
  const series = chart.getOption().series.find((one) => one.name === 'run 0');
  const point = series.data[%d];
  const [x, y] = chart.convertToPixel({xAxisIndex: 0, yAxisIndex: 0}, point);
  const box = chart.getDom().getBoundingClientRect();
  return [box.x + x + point[3], box.y + y + point[4], point[2]];
})()
"""
FADED = "document.querySelector('#tradeoff-chart canvas[data-zr-dom-id^=zr_1]').style.opacity"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SECTIONS = "[...document.querySelectorAll('section:not([hidden])')].map((one) => one.id)"


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function of a page's path that opens it and looks at all of it; afterwards nobody may have complained."""
    pages: list[Any] = []

    def open_page(path: Path, **look: Any) -> Any:
        page = browser.page(**look)
        pages.append(page)
        page.open(path)
        for section in page.run(SECTIONS):
            page.show(f"#{section}")
        assert page.requests == [path.as_uri()]
        return page

    yield open_page
    for page in pages:
        assert page.complaints == []
        assert page.run("window.harmed") is None
        page.close()


def test_everything_is_drawn_and_nothing_is_asked_of_a_network(two_runs: Path, opened: Any) -> None:
    page = opened(two_runs)
    assert set(page.run(SECTIONS)) == {
        *("glance", "tradeoff", "people", "groups", "cross", "answers", "training", "made")
    }
    drawn = page.run("[...document.querySelectorAll('.chart')].filter((one) => one.offsetParent).length")
    assert drawn == page.run("document.querySelectorAll('.chart[data-drawn]:has(canvas)').length") == 12
    assert page.run("document.querySelectorAll('nav a:not([hidden])').length") == 8
    assert "agrees with people most often" in page.run("document.querySelector('h1').textContent")


def test_a_pointer_on_a_point_names_the_person(two_runs: Path, island: Any, opened: Any) -> None:
    page = opened(two_runs)
    page.show("#tradeoff-chart")
    x, y, person = page.run(POINT % 3)
    page.hover(x, y, "document.querySelector('.tip')")
    assert island(two_runs)["people"][person] in page.run("document.querySelector('.tip').textContent")


def test_a_click_on_a_point_filters_the_tables_and_can_be_undone(two_runs: Path, island: Any, opened: Any) -> None:
    name_of = island(two_runs)["people"]
    page = opened(two_runs)
    page.show("#tradeoff-chart")
    x, y, person = page.run(POINT % 5)
    page.click(x, y)
    page.until("!document.querySelector('#selection').hidden")
    assert page.run(FADED) == "0.25"
    names = "#people-table tbody th"
    assert page.all_texts(names) == [name_of[person]] * 2
    assert page.all_texts("#people-table tbody td:nth-child(2)") == ["bapo", "dpo"]
    assert page.all_texts("#groups-table tbody th") == [name_of[person].partition("-")[0]]
    assert name_of[person] in page.run("document.querySelector('#answers-note').textContent")
    page.run("document.querySelector('#selection-clear').click()")
    assert page.run("document.querySelector('#selection').hidden") and len(page.all_texts(names)) == 20
    assert len(page.all_texts("#groups-table tbody th")) == 6 and page.run(FADED) == "1"


def test_a_chart_that_nobody_saw_shows_who_was_chosen_when_it_is_scrolled_to(two_runs: Path, opened: Any) -> None:
    page = opened(two_runs)
    height = "document.querySelector('#people-chart canvas').getBoundingClientRect().height"
    page.show("#people-chart")
    tall = page.run(height)
    page.show("#made")
    page.run("document.querySelector('#people-table tbody button').click()")
    page.show("#people-chart")
    page.until(f"{height} < {tall / 2}")
    page.press("Escape")
    assert page.run(height) == tall


def test_what_a_pointer_does_a_keyboard_does_too(two_runs: Path, opened: Any) -> None:
    page = opened(two_runs)
    names = "#people-table tbody th"
    third = page.all_texts(names)[2]
    page.run("document.querySelectorAll('#people-table tbody th button')[2].focus()")
    page.press("Enter")
    assert page.all_texts(names) == [third] * 2
    page.press("Escape")
    assert len(page.all_texts(names)) == 20


def test_tables_sort_filter_and_go_on(two_runs: Path, opened: Any) -> None:
    page = opened(two_runs)
    column = "#people-table tbody td[data-label=kept]"
    heads = "[...document.querySelectorAll('#people-table thead button')]"
    page.run(f"{heads}.find((one) => one.textContent === 'kept').click()")
    kept = [float(text.partition("%")[0]) for text in page.all_texts(column)]
    assert kept == sorted(kept)
    page.run("document.querySelector('#people-more').click()")
    assert len(page.all_texts(column)) == 40
    page.put("#people-find", "BARDIC-0")
    names = page.all_texts("#people-table tbody th")
    assert len(names) == 6 and all(name.startswith("bardic-0") for name in names)
    page.put("#people-find", "")
    page.put("#people-run", "1")
    assert page.run("document.querySelector('#cross-run').value") == "1"
    name = page.all_texts("#groups-table tbody button")[0]
    page.run("document.querySelector('#groups-table tbody button').click()")
    assert {name} == set(page.all_texts("#people-table td.group"))


@pytest.mark.parametrize(
    ("width", "dark"), [(320, True), (390, False), (390, True), (820, False)], ids=lambda value: str(value)
)
def test_nothing_is_wider_than_the_window(make_run: Make, report: Make, opened: Any, width: int, dark: bool) -> None:
    long_names = [f"somebody.with.a.rather.long.address.{number}@subdomain.example.org" for number in range(12)]
    page = opened(report(make_run(people=long_names)), width=width, height=844, phone=width < 400, dark=dark)
    assert page.run(WIDER) == 0
    page.run("document.querySelector('#people-table tbody button').click()")
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.run(WIDER) == 0
    assert page.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)"
    )


def test_what_people_wrote_is_shown_and_does_nothing(make_run: Make, change: Any, report: Make, opened: Any) -> None:
    run = make_run(people=[HOSTILE, "\x00\x1b[31m\u202ereversed", "__proto__", "constructor"])

    def poison(content: dict[str, Any]) -> None:
        for person in content["people"].values():
            person["group"] = HOSTILE
            for sample in person["behaviour"]["samples"]:
                sample.update(prompt=HOSTILE, base=f"a {HOSTILE}", person=f"b {HOSTILE}", chosen=HOSTILE)

    change(run, poison)
    page = opened(report(run))
    body = page.run("document.body.innerText")
    assert HOSTILE[:30] in body and "\\x00\\x1b[31m\\u202ereversed" in body and "__proto__" in body
    assert page.run("document.querySelectorAll('img, main script').length") == 0
    assert HOSTILE in page.run("document.querySelector('.answer .prompt').textContent")
    page.show("#tradeoff-chart")
    for number in range(4):
        page.hover(*page.run(POINT % number)[:2], "document.querySelector('.tip')")
    assert page.run("document.querySelectorAll('.tip img, .tip script').length") == 0


@pytest.mark.parametrize(
    "changes",
    [{"people": 1}, {"people": 2, "probes": False}, {"people": 3, "cross": 0, "samples": 0, "groups": False}],
    ids=["one", "no probes", "little"],
)
def test_a_page_of_little_works(make_run: Make, report: Make, opened: Any, changes: dict[str, Any]) -> None:
    page = opened(report(make_run(**changes)))
    shown = set(page.run(SECTIONS))
    assert {"tradeoff", "people", "training"} <= shown and ("cross" in shown) == ("cross" not in changes)


def test_a_page_of_nobody_works(make_run: Make, change: Any, report: Make, opened: Any) -> None:
    run = make_run(people=2)
    change(run, lambda content: content["people"].clear())
    change(run, lambda content: content["skipped"].update(ann="no pairs"))
    (run / "metrics.jsonl").unlink()
    assert opened(report(run)).run(SECTIONS) == ["glance", "skipped", "made"]


def test_eight_runs_and_identities_work(make_run: Make, change: Any, report: Make, opened: Any) -> None:
    runs = [make_run(f"run-{number}", people=6, method="dpo", seed=number) for number in range(8)]
    share = {"accuracy": 0.8, "accuracy_interval": [0.6, 0.9], "margin": 1.0}
    part = {"n": 5, "right": share, "random": share, "missing": None, "accuracy_difference": 0.1}
    part |= {"accuracy_difference_interval": [-0.1, 0.2], "margin_difference": 0, "margin_difference_interval": None}
    change(runs[0], lambda content: content.update(identities={"all": part, "groups": {"x": part}, "reason": None}))
    page = opened(report(*runs))
    assert "identities" in page.run(SECTIONS)
    assert "+10.0 (−10.0 to +20.0)" in page.run("document.querySelector('#identities-table').textContent")
    assert page.run(WIDER) == 0


INK = """
[...document.querySelectorAll('canvas.paper')].map((copy) => {
  const pixels = copy.getContext('2d').getImageData(0, 0, copy.width, copy.height).data;
  let ink = 0;
  for (let at = 3; at < pixels.length; at += 4) if (pixels[at]) ink += 1;
  return [copy.getBoundingClientRect().width, ink];
})
"""


def test_paper_gets_every_chart_in_the_colours_of_the_day(two_runs: Path, browser: Any) -> None:
    page = browser.page(width=1000, dark=True)
    page.open(two_runs)
    printed = page.pdf()
    assert printed.startswith(b"%PDF") and len(printed) > 100_000
    assert page.complaints == []
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    copies = page.run(INK)
    assert len(copies) == page.run("[...document.querySelectorAll('.chart')].filter((one) => one.offsetParent).length")
    assert all(0 < width <= 660 and ink > 2_000 for width, ink in copies)
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert page.run("document.querySelectorAll('.paper').length") == 0
    page.close()


def test_without_a_program_the_summary_is_there(make_run: Make, report: Make, browser: Any) -> None:
    page = browser.page()
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    page.open(report(make_run()))
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    text = page.run("document.body.innerText")
    assert "the median adapter judges" in text and "data hash" in text and "need JavaScript" in text
    page.close()


def test_where_all_have_the_same_a_finer_measure_is_shown(
    make_run: Make, change: Any, report: Make, opened: Any
) -> None:
    run = make_run(people=5)

    def level(content: dict[str, Any]) -> None:
        for person in content["people"].values():
            person["pairs"]["accuracy"] = 1.0

    change(run, level)
    page = opened(report(run))
    assert page.run("document.querySelector('#tradeoff-up').value") == "pairs.margin"
    assert page.run("document.querySelector('#tradeoff-across').value") == "retention.kept"
    assert "Everybody's accuracy is 100.0%" in page.run("document.querySelector('#tradeoff-caption').textContent")
    page.put("#tradeoff-up", "pairs.accuracy")
    assert "Everybody's" not in page.run("document.querySelector('#tradeoff-caption').textContent")


def test_of_a_chosen_person_every_figure_is_there(two_runs: Path, opened: Any) -> None:
    page = opened(two_runs, width=390, height=844, phone=True)
    page.run("document.querySelector('#people-table tbody button').click()")
    cells = "[...document.querySelectorAll('#people-table tbody tr:first-child td')]"
    visible = f"{cells}.filter((one) => one.offsetParent).map((one) => one.dataset.label)"
    assert {"pairs", "accuracy", "kept", "margin", "ranking accuracy", "KL a token"} <= set(page.run(visible))
    assert page.run(WIDER) == 0


def test_ten_thousand_people_can_be_looked_at(ten_thousand: Path, opened: Any) -> None:
    page = opened(ten_thousand)
    page.show("#tradeoff-chart")
    x, y, _ = page.run(POINT % 9_000)
    page.hover(x, y, "document.querySelector('.tip')")
    page.click(x, y)
    page.until("!document.querySelector('#selection').hidden")
    assert page.run("document.querySelectorAll('#people-table tbody tr').length") == 1
    assert page.run(WIDER) == 0
