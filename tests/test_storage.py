"""Files are whole or absent, also when writing fails."""

import os

import pytest

from pluralign.errors import InputError
from pluralign.storage import (
    read_json,
    remove_staging,
    sha256_of_json,
    staged_folder,
    write_bytes,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_json_round_trip_and_no_leftovers(tmp_path):
    write_json(tmp_path / "deep" / "value.json", {"ü": [1, 2.5, None]})
    assert read_json(tmp_path / "deep" / "value.json") == {"ü": [1, 2.5, None]}
    assert names(tmp_path / "deep") == ["value.json"]


def test_nan_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "value.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_replaces_an_older_one_whole(tmp_path):
    for content in ("one", "two"):
        with staged_folder(tmp_path / "out") as staging:
            (staging / content).write_text(content)
            assert not (tmp_path / "out" / content).exists()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["two"]


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path):
    with staged_folder(tmp_path / "out") as staging:
        (staging / "good").write_text("good")
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out") as staging:
        (staging / "bad").write_text("bad")
        raise RuntimeError
    assert names(tmp_path / "out") == ["good"]
    assert names(tmp_path) == ["out"]


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".staging-abc").mkdir()
    (tmp_path / ".staging-abc" / "half").write_text("x")
    (tmp_path / ".staging-def").write_text("x")
    (tmp_path / "kept").write_text("x")
    remove_staging(tmp_path)
    assert names(tmp_path) == ["kept"]


def test_unreadable_json_names_the_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json: not JSON"):
        read_json(tmp_path / "bad.json")


def test_hash_of_json_ignores_the_order_of_keys():
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1}) != sha256_of_json({"a": 2, "b": 1})
