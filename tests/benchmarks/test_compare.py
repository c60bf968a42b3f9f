"""How often intervals of `compare` hold the truth: the page says what the committed results say."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLUMNS = ("mean", "worst_decile", "worst_decile_of_a", "gap_90_10", "gini", "worst", "best", "gap")


def test_the_table_of_the_page_is_that_of_the_results():
    results = json.loads((ROOT / "benchmarks" / "compare" / "coverage.json").read_text())["people"]
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8").partition("What they are worth")[2]
    rows = [re.findall(r"[\d.]+", line) for line in page.splitlines() if re.match(r"  \| \d+ \|", line)]
    shown = {row[0]: [float(value) for value in row[1:]] for row in rows}
    found = {
        people: [round(row["statistics"][name]["coverage"], 2) for name in COLUMNS] for people, row in results.items()
    }
    assert shown == found
    gains = [row["statistics"]["worst_decile_of_a"]["difference"] for row in results.values()]
    assert all(0.05 < gain < 0.15 for gain in gains)
