"""Whose adapters a run holds: any ids, folders that never leave, broken files by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.errors import InputError
from pluralign.preferences.people import folder_name
from pluralign.training.index import read_index, write_index

HOSTILE = [
    "../..",
    "/etc/passwd",
    ".",
    "..",
    "a/b",
    "Ann.Lee",
    "ann",
    "ANN",
    "😀",
    "CON",
    "a" * 10_000,
    "\x00",
    " ",
    "..\\..",
    "~",
]


@given(
    people=st.lists(
        st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(codec="utf-8"), min_size=1)), unique=True
    ),
    skipped=st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"))),
)
def test_the_index_maps_any_ids_to_folders_that_never_leave(
    people: list[str], skipped: dict[str, str], tmp_path_factory: Any
) -> None:
    root = tmp_path_factory.mktemp("run")
    folders = {user: folder_name(user) for user in people}
    for folder in folders.values():
        (root / "adapters" / folder).mkdir(parents=True)
        assert (root / "adapters" / folder).resolve().parent == (root / "adapters").resolve()
    write_index(root, folders, skipped)
    assert read_index(root) == (folders, skipped)
    assert list(root.iterdir()) == [root / "adapters"]


@pytest.mark.parametrize("folder", ["../../etc", "/tmp", "a/b", "", ".", "ann"])
def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path, folder: str) -> None:
    write_index(tmp_path, {"Ann": folder}, {})
    with pytest.raises(InputError, match="user 'Ann' has the folder"):
        read_index(tmp_path)


def test_a_run_without_an_index_or_with_a_broken_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.json: there is no such file"):
        read_index(tmp_path)
    (tmp_path / "adapters").mkdir()
    for content in ("{", "[]", '{"schema_version": 1, "people": []}', '{"schema_version": 2}'):
        (tmp_path / "adapters" / "index.json").write_text(content)
        with pytest.raises(InputError, match=r"index\.json"):
            read_index(tmp_path)
