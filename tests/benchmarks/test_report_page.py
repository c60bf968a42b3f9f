"""How soon the report answers: the page says what the committed results say."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_the_page_is_that_of_the_results():
    folder = ROOT / "benchmarks" / "report_page"
    spec = spec_from_file_location("report_page", folder / "page.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    results = json.loads((folder / "page.json").read_text())
    assert module.table(results) in (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert all(one["bytes"] < 3_000_000 for one in results["cases"].values())
    slow = results["cases"]["one run of 10,000"]["milliseconds"]["slow"]
    said = [
        round(slow[what]["busy"]["median"] / 1000, digits) for what, digits in (("load", 0), ("hover", 1), ("click", 1))
    ]
    assert said == [6, 0.2, 0.7]
