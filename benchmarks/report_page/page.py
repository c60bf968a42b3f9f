"""How large the report of many people is, and how soon it answers: pages of made-up runs in a headless Chromium.

    python benchmarks/report_page/page.py  # makes the runs, writes their pages, measures; some minutes of one core
    python benchmarks/report_page/page.py --table  # the committed results

Needs Chromium (Debian: `apt-get install chromium`). Runs are those of the tests: documented files with drawn figures, a
person with 12 to 40 held-out pairs, 200 probes, 12 positions of curves, a cross table with eight others, four answers.
A page is opened anew for each repetition. Of a load, a pointer on a point, a click on it, the key that undoes it, and a
search by name two times are taken:

- `busy`: processor time of the page's main thread, which runs the program and lays out, and answers nothing else while
  it does. Other work of the machine hardly changes it.
- `answered`: by a clock, from the event (of a load, from the beginning of the navigation) to the frame after the one in
  which the answer stands. Drawing is by software, without a graphics card, and other work of the machine is in it:
  `load_average` says how many processes wanted its cores.

On a "slow" machine the browser runs at a quarter of its speed, as on a phone. A case that is in the results is
left as it is, and a killed script goes on.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pluralign.progress import progress_bar
from pluralign.report_config import ReportConfig
from pluralign.reporting import write_report
from pluralign.storage import read_json, write_json
from pluralign.training.calls import machine
from pluralign.versions import versions

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "page.json"
CASES = {"one run of 100": (1, 100), "one run of 10,000": (1, 10_000), "two runs of 10,000": (2, 10_000)}
"""What it is called -> runs, and people of each."""
SPEEDS = {"this machine": 1, "slow": 4}
OPENED, ASKED = 5, 10
"""Times that a page is opened, and that each thing is done in it."""
KINDS = ("busy", "answered")
METHODS = (("bapo", 0.01), ("dpo", 0.12))
"""Of the first run and the second: method, and how much is forgotten."""
# Runs before the page's own program: notes when its chart stands, and when something was done.
WATCH = """
window.began = null; window.awaited = null; window.loaded = null;
(function look() {
  if (!document.querySelector('#tradeoff-chart')?.dataset.drawn) requestAnimationFrame(look);
  else requestAnimationFrame(() => { window.loaded = performance.now(); });
})();
for (const kind of ['mousemove', 'mouseup', 'keydown', 'input']) {
  addEventListener(kind, (event) => {
    if (window.began === null && kind === window.awaited) window.began = event.timeStamp;
  }, true);
}
"""
UNTIL = """
new Promise((done) => {
  (function look() {
    if (window.began !== null && (%s)) requestAnimationFrame(() => done(performance.now() - window.began));
    else requestAnimationFrame(look);
  })();
})
"""
POINTS = """
(() => {
  const chart = echarts.getInstanceByDom(document.querySelector('#tradeoff-chart'));
  const box = chart.getDom().getBoundingClientRect();
  const { series } = chart.getOption();
  const at = (point) => chart.convertToPixel({xAxisIndex: 0, yAxisIndex: 0}, point);
  // What lies under the mark of a mean is not pointed at.
  const means = series.filter((one) => one.name === 'mean').flatMap((one) => one.data).map(at);
  return series.filter((one) => /^run \\d/.test(one.name)).flatMap((one) => one.data)
    .map((point) => at(point).map((place, axis) => place + point[3 + axis]))
    .filter((place) => means.every((mean) => Math.hypot(place[0] - mean[0], place[1] - mean[1]) > 15))
    .map(([x, y]) => [box.x + x, box.y + y]);
})()
"""
TIPPED = "document.querySelector('.tip')?.offsetParent"
CHOSEN = "!document.querySelector('#selection').hidden"
NOBODY = "document.querySelector('#selection').hidden"
FIELD = "document.querySelector('#people-find')"


def answers(browser: Any, path: Path, slower: int, repetition: int) -> dict[str, list[tuple[float, float]]]:
    """Of everything that is tried on a page that is opened anew: milliseconds busy, and until the answer."""
    page = browser.page()
    try:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        page.call("Emulation.setCPUThrottlingRate", rate=slower)
        page.call("Performance.enable", timeDomain="threadTicks")
        page.open(path)
        page.until("window.loaded !== null")
        found: dict[str, list[tuple[float, float]]] = {"load": [(_busy(page), page.run("window.loaded"))]}
        page.show("#tradeoff-chart")
        points = page.run(POINTS)
        for number in range(ASKED):
            x, y = points[(number * len(points) // ASKED + repetition) % len(points)]
            page.move(5, 5)
            page.until(f"!({TIPPED})")
            for what, kind, act, condition in (
                ("hover", "mousemove", lambda x=x, y=y: page.move(x, y), TIPPED),
                ("click", "mouseup", lambda x=x, y=y: page.click(x, y), CHOSEN),
                ("undo", "keydown", lambda: page.press("Escape"), NOBODY),
            ):
                found.setdefault(what, []).append(_timed(page, kind, act, condition))
        for text in ("bardic", "terse-00", ""):
            act = _typing(page, text)
            found.setdefault("find", []).append(_timed(page, "input", act, f"{FIELD}.value === {text!r}"))
        assert page.complaints == [], page.complaints
        return found
    finally:
        page.close()


def _typing(page: Any, text: str) -> Callable[[], None]:
    return lambda: page.put("#people-find", text)


def _busy(page: Any) -> float:
    """Milliseconds of processor time of the page's main thread since it began."""
    metrics = page.call("Performance.getMetrics")["metrics"]
    return next(1000 * float(one["value"]) for one in metrics if one["name"] == "TaskDuration")


def _timed(page: Any, kind: str, act: Callable[[], Any], condition: str) -> tuple[float, float]:
    """Milliseconds of an event of a kind: busy, and to the frame after the one in which a condition is true."""
    page.run(f"window.began = null; window.awaited = {kind!r}")
    before = _busy(page)
    act()
    answered: float = page.run(UNTIL % condition)
    return _busy(page) - before, answered


def case(browser: Any, folder: Path, runs: int, people: int) -> dict[str, Any]:
    """A page of so many runs: how long it takes to write, its size, what it answers."""
    import made_up_runs

    made = [
        made_up_runs.make_run(
            folder / f"{method}-{people}", people=people, method=method, forgets=forgets, weights=True
        )
        for method, forgets in METHODS[:runs]
    ]
    began = time.monotonic()
    path = write_report(ReportConfig(runs=list(map(str, made)), output=str(folder / f"{runs}-{people}.html")))
    found: dict[str, Any] = {"runs": runs, "people": people, "write_seconds": round(time.monotonic() - began, 2)}
    page = browser.page()
    page.open(path)
    found["bytes"] = path.stat().st_size
    found["rows"] = page.run(
        "JSON.parse(document.getElementById('data').textContent).runs.map((run) => run.results.person.length)"
    )
    page.close()
    found["milliseconds"] = {}
    with progress_bar() as bar:
        task = bar.add_task(f"{runs} x {people}", total=len(SPEEDS) * OPENED)
        for speed, slower in SPEEDS.items():
            times: dict[str, list[tuple[float, float]]] = {}
            for repetition in range(OPENED):
                for what, some in answers(browser, path, slower, repetition).items():
                    times.setdefault(what, []).extend(some)
                bar.advance(task)
            found["milliseconds"][speed] = {
                what: {kind: _summary(one) for kind, one in zip(KINDS, zip(*some, strict=True), strict=True)}
                for what, some in times.items()
            }
    return found


def _summary(times: Sequence[float]) -> dict[str, float]:
    """Number, median and ends; of a handful an interval would say less than the longest."""
    ends = {"least": min(times), "median": statistics.median(times), "most": max(times)}
    return {"n": len(times), **{name: round(value, 1) for name, value in ends.items()}}


def measured(output: Path, browser: Callable[[], Any]) -> None:
    """Measure every case that the results lack, and add it to them."""
    results: dict[str, Any] = read_json(output) if output.exists() else {"schema_version": 1, "cases": {}}
    for title, size in CASES.items():
        if title in results["cases"]:
            continue
        with tempfile.TemporaryDirectory() as folder, browser() as running:
            found = case(running, Path(folder), *size)
            results["browser"] = running.call("Browser.getVersion")["product"]
        results["how"] = {"opened": OPENED, "asked": ASKED, "slower": SPEEDS, "window": [1280, 900]}
        results |= {"machine": machine(torch.device("cpu")), "versions": versions()}
        # Of a machine that does other work besides, times are longer than of one that does not.
        results["cases"][title] = {**found, "load_average": round(os.getloadavg()[1], 1)}
        write_json(output, results)


def table(results: dict[str, Any]) -> str:
    """The results as the page has them: milliseconds busy on this machine, the median and the longest."""
    names = ("load", "hover", "click", "undo", "find")
    lines = [f"| | rows on the page | MB | {' | '.join(names)} |", "| --- " * (3 + len(names)) + "|"]
    for title, one in results["cases"].items():
        times = one["milliseconds"]["this machine"]
        cells = [f"{times[name]['busy']['median']:.0f} ({times[name]['busy']['most']:.0f})" for name in names]
        rows = " + ".join(f"{count:,}" for count in one["rows"])
        lines.append(f"| {title} | {rows} | {one['bytes'] / 1e6:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="show the committed results and stop")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.table:
        sys.path.insert(0, str(ROOT / "tests" / "reporting"))
        import chromium

        measured(arguments.output, chromium.Browser)
    print(table(read_json(arguments.output)))


if __name__ == "__main__":
    main()
