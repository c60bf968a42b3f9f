"""docs/evaluation.md and what is written say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pluralign.preferences import Preference

DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"
NAMES_OF_DATA = {"people", "groups", "topics", "sources", "skipped"}


def keys(value: Any, inside: str = "") -> Iterator[str]:
    """Every key of the schema; those that are ids, groups, topics or sources are skipped."""
    if isinstance(value, dict):
        for key, item in value.items():
            if inside not in NAMES_OF_DATA:
                yield key
            if inside != "base" or key not in ("settings", "generation"):
                yield from keys(item, "" if inside in NAMES_OF_DATA else key)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


def written(population: Any, rows: list[Preference], tmp_path: Path) -> dict[str, Any]:
    probes = tmp_path / "probes.jsonl"
    probes.write_text(json.dumps({"question": "?", "options": ["a", "b"], "answer": 0}) + "\nbroken\n")
    adapters = {user: population.adapter(user, 0.2) for user in ("ann", "ben")}
    found = population.evaluate(adapters, population.anchored(rows), probes=str(probes), skipped={"cem": "no pairs"})
    content: dict[str, Any] = json.loads(found.write(tmp_path / "evaluation.json").read_text())
    return content


def test_every_key_is_documented(population: Any, make_rows: Callable[..., list[Preference]], tmp_path: Path) -> None:
    content = written(population, make_rows(["ann", "ben"], pairs=2), tmp_path)
    document = DOCUMENT.read_text(encoding="utf-8")
    words = {part for quoted in re.findall(r"`([^`\n]+)`", document) for part in (quoted, *re.split(r"[.\s]", quoted))}
    summary = content.pop("summary")
    groups = content.pop("groups")
    assert set(keys(content)) - words == set()
    for part in (summary, *groups.values()):
        measures = {key.rpartition(".")[0] or key for key in part}
        assert {measure for measure in measures if measure not in words and f"{measure}.mean" not in words} == set()
        assert part.keys() == summary.keys()


def test_identities_are_there_where_they_are_asked_for_and_documented(
    population: Any, make_rows: Callable[..., list[Preference]], tmp_path: Path
) -> None:
    rows = population.anchored(make_rows(["ann", "ben"], pairs=2))
    adapters = {user: population.adapter(user, 0.2) for user in ("ann", "ben")}
    found = population.evaluate(adapters, rows, other_identities={"random": rows, "missing": rows})
    content = json.loads(found.write(tmp_path / "evaluation.json").read_text())["identities"]
    section = DOCUMENT.read_text(encoding="utf-8").partition("### `identities`")[2].partition("\n### ")[0]
    words = {part for quoted in re.findall(r"`([^`\n]+)`", section) for part in re.split(r"[.\s]", quoted)}
    assert set(keys(content)) - words == set()
    assert content["groups"].keys() == {"group-0", "group-1"}
    # One way of measuring, whatever there was to measure.
    nothing = population.evaluate(adapters, [], other_identities={}).as_dict()["identities"]
    assert set(keys(nothing["all"])) == content["all"].keys()
    for identity in ("right", "random", "missing"):
        low, high = content["all"][identity]["accuracy_interval"]
        assert 0 <= low <= content["all"][identity]["accuracy"] <= high <= 1


def test_every_part_has_the_same_keys_whatever_there_is(
    population: Any, make_rows: Callable[..., list[Preference]], tmp_path: Path
) -> None:
    full = written(population, make_rows(["ann", "ben"], pairs=2), tmp_path)
    bare = population.evaluate({"ann": population.adapter("ann")}, [], generate=False, cross_table=0).as_dict()
    assert bare.keys() == full.keys()
    assert bare["base"].keys() == full["base"].keys()
    assert bare["summary"].keys() == full["summary"].keys()
    assert bare["people"]["ann"].keys() == full["people"]["ann"].keys()
    for part in ("pairs", "base_responses"):
        assert bare["people"]["ann"][part].keys() == full["people"]["ann"][part].keys()


def test_shares_counts_and_intervals_are_in_their_ranges(
    population: Any, make_rows: Callable[..., list[Preference]], tmp_path: Path
) -> None:
    content = written(population, make_rows(["ann", "ben"], pairs=2), tmp_path)
    for person in content["people"].values():
        pairs, retention = person["pairs"], person["retention"]["measures"]["base_sum"]["all"]
        for value, interval in (
            (pairs["accuracy"], pairs["accuracy_interval"]),
            (retention["kept"], retention["kept_interval"]),
        ):
            assert value is None or 0 <= interval[0] <= value <= interval[1] <= 1
        assert pairs["margin_interval"][0] <= pairs["margin"] <= pairs["margin_interval"][1]
        assert person["base_responses"]["kl_per_token"] >= 0
        assert person["cross"]["people"].keys() == {"ann", "ben"}
