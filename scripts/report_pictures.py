"""The pictures of the report in the documentation: two runs on the embedded world, their page, and what a browser sees.

    python scripts/report_pictures.py --folder runs/pictures

Needs Chromium (Debian: `apt-get install chromium`) and Pillow. The runs take some minutes on two cores; those that are
in the folder already are left as they are, and a killed script goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pluralign
from pluralign.config import TrainConfig
from pluralign.resolve import resolve
from pluralign.storage import write_text
from pluralign.world import World

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "docs" / "report"
METHODS = ("bapo", "dpo")
PEOPLE = slice(30, 54)
"""Twenty-four of the world's people: all styles, in all or some topics; of fourteen one label in ten is wrong."""
PAIRS = 120
PHONE, DESKTOP = {"width": 390, "height": 1260, "phone": True}, {"width": 1280, "height": 1120}
PERSON = "bardic-044"
"""Whose answers are shown: in all topics another manner than the base's."""
COLOURS = 96
"""Of a picture's palette: a page has few, and a file of the documentation is to be small."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "pictures", help="of the runs and their page")
    parser.add_argument("--runs-only", action="store_true", help="make the runs and stop")
    arguments = parser.parse_args()
    runs = make_runs(arguments.folder)
    if arguments.runs_only:
        return
    output = arguments.folder / "report.html"
    pluralign.report({"runs": [str(run) for run in runs], "output": str(output), "overwrite": True})
    take_pictures(output)


def make_runs(folder: Path) -> list[Path]:
    """One table, a run a method."""
    world = World(0)
    rows = world.preferences(world.users(PEOPLE.stop)[PEOPLE], pairs_per_user=PAIRS)
    table = folder / "preferences.jsonl"
    write_text(table, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    runs = [folder / method for method in METHODS]
    for method, run in zip(METHODS, runs, strict=True):
        settings = {
            "method": method,
            "data": {"path": str(table), "validation": 0.2},
            "output_dir": str(run),
            "training": {"max_steps": 80, "learning_rate": 5e-4, "warmup_steps": 5},
            "evaluation": {"probes": "world", "max_probes": 200, "max_prompts": 24},
        }
        pluralign.train(resolve(TrainConfig, settings))
    return runs


def take_pictures(page_file: Path) -> None:
    """Write the pictures: what a window shows first on phone and desktop, in both colours, and parts of the page."""
    sys.path.insert(0, str(ROOT / "tests" / "reporting"))
    import chromium  # the driver of the browser that the tests use

    PLACE.mkdir(parents=True, exist_ok=True)
    with chromium.Browser() as browser:
        for width, look in (("phone", PHONE), ("desktop", DESKTOP)):
            for colours in ("light", "dark"):
                page = browser.page(**look, dark=colours == "dark")
                page.open(page_file)
                page.show("#tradeoff")
                page.run("scrollTo(0, 0)")
                _save(page, f"{width}-{colours}")
                page.close()
        page = browser.page(**DESKTOP)
        page.open(page_file)
        for part in ("people", "cross", "answers", "training"):
            page.show(f"#{part}")
            if part == "answers":
                numbers = page.run("[...document.querySelectorAll('#answers-person option')].map((one) => one.value)")
                names = page.all_texts("#answers-person option")
                page.put("#answers-person", dict(zip(names, numbers, strict=True))[PERSON])
            _save(page, part, selector=f"#{part}")


def _save(page: Any, name: str, **what: str) -> None:
    from PIL import Image

    path = PLACE / f"{name}.png"
    page.screenshot(path, **what)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS)
    small.save(path, optimize=True)
    print(path.relative_to(ROOT), f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
