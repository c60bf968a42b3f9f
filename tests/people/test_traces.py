"""The search for traces: finds an id wherever it stands, and nothing where only others stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pluralign.people.traces import Traces
from pluralign.preferences import folder_name

ids = st.one_of(
    st.sampled_from(["a", "42", "none", "user", "loss", "ann", "anna", "anna-maria", "a.b@c.org", "O'Neil", '"', "é"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
)


def write(run: Path, people: list[str]) -> None:
    """What a run leaves of some people."""
    (run / "adapters").mkdir()
    for user in people:
        folder = run / "adapters" / folder_name(user)
        folder.mkdir()
        (folder / "pluralign.json").write_text(json.dumps({"user": user, "base": "nano"}, ensure_ascii=False))
        (folder / "adapter_config.json").write_text(json.dumps({"bias": "none", "r": 42, "peft_type": "LORA"}))
    index = {"schema_version": 1, "people": {user: folder_name(user) for user in people}, "skipped": {}}
    (run / "adapters" / "index.json").write_text(json.dumps(index))
    lines = [json.dumps({"user": user, "step": 42, "loss": 0.42}) for user in people]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (run / "config.yaml").write_text("seed: 42\nparameters: {per: user, note: none}\n")


@given(people=st.lists(ids, min_size=2, max_size=4, unique=True))
def test_whoever_is_there_is_found_and_whoever_is_not_is_not(people: list[str], tmp_path_factory: Any) -> None:
    gone, *left = people
    assume(folder_name(gone) not in map(folder_name, left))
    run = tmp_path_factory.mktemp("run")
    write(run, left)
    assert Traces(gone, left).in_run(run)[0] == []
    for user in left:
        others = [other for other in left if other != user]
        found, files = Traces(user, others).in_run(run)
        places = " ".join(found)
        assert files == 2 * len(left) + 3
        assert "index.json: people" in places and "metrics.jsonl" in places and "pluralign.json: user" in places


@pytest.mark.parametrize("text", ["émile 🙂 said", json.dumps({"x": ["émile 🙂"]}), folder_name("émile 🙂")])
def test_an_id_is_found_as_it_is_as_json_escapes_it_and_as_its_folder_is_called(text: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_text(text)
    assert Traces("émile 🙂", []).in_run(tmp_path) == (["note: its content"], 1)


def test_an_id_within_another_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "note").write_text('"anna-maria", anna-maria/x, joanna')
    assert Traces("anna", ["anna-maria"]).in_run(tmp_path)[0] == []
    (tmp_path / "note").write_text("anna-lisa")
    assert Traces("anna", ["anna-maria"]).in_run(tmp_path)[0] == ["note: its content"]


def test_an_ordinary_id_is_looked_for_where_people_stand_and_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("42 users with the loss of 42")
    assert Traces("42", []).in_run(tmp_path)[0] == []
    (tmp_path / "note").write_text('the user "42"')
    assert Traces("42", []).in_run(tmp_path)[0] == ["note: its content"]
