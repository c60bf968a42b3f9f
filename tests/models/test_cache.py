from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.models import cache as cache_module
from pluralign.models.cache import Cache, Section, default_folder

FACTS = {"base": "abc", "dtype": "float32"}


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def fill(folder: Path, numbers: range, kind: str = "values") -> Path:
    with Cache(folder).section(kind, FACTS) as section:
        for number in numbers:
            section.put(key(number), number / 3)
    return section.folder


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("segment-*.jsonl"))


def test_values_come_back_exactly_in_another_run(tmp_path: Path) -> None:
    values = {
        key(0): -1 / 3,
        key(1): {"text": "päev\n\x85\r😀", "token_ids": [1, 2], "finished": False},
        key(2): 5e-324,
    }
    with Cache(tmp_path).section("values", FACTS) as section:
        for name, value in values.items():
            assert section.get(name) is None
            section.put(name, value)
    again = Cache(tmp_path).section("values", FACTS)
    assert {name: again.get(name) for name in values} == values
    assert (again.hits, again.misses, section.hits, section.misses, len(again)) == (3, 0, 0, 3, 3)


def test_a_section_says_what_its_values_depend_on_and_shares_none_with_other_facts(tmp_path: Path) -> None:
    folder = fill(tmp_path, range(3))
    assert json.loads((folder / "facts.json").read_text()) == {"schema_version": 1, **FACTS}
    assert len(Cache(tmp_path).section("values", {**FACTS, "dtype": "bfloat16"})) == 0
    assert len(Cache(tmp_path).section("others", FACTS)) == 0


def test_the_first_value_of_a_key_stays(tmp_path: Path) -> None:
    fill(tmp_path, range(1))
    with Cache(tmp_path).section("values", FACTS) as section:
        section.put(key(0), 99.0)
    assert Cache(tmp_path).section("values", FACTS).get(key(0)) == 0.0


@given(data=st.data())
def test_whatever_byte_is_damaged_no_wrong_value_is_ever_read(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = fill(root := tmp_path_factory.mktemp("damaged"), range(8))
    (path,) = segments(folder)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        section = Cache(root).section("values", FACTS)
    assert all(section.get(key(number)) in (None, number / 3) for number in range(8))
    assert len(section) <= 8


def test_a_flipped_byte_is_reported_once_and_recomputed_and_the_other_lines_are_kept(tmp_path: Path) -> None:
    (path,) = segments(fill(tmp_path, range(5)))
    content = bytearray(path.read_bytes())
    content[content.index(b"0.6666") + 3] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"1 damaged line.*{path.name}"):
        section = Cache(tmp_path).section("values", FACTS)
    assert section.damaged == 1
    assert [section.get(key(number)) for number in range(5)] == [0.0, 1 / 3, None, 1.0, 4 / 3]
    section.put(key(2), 2 / 3)
    section.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        healed = Cache(tmp_path).section("values", FACTS)
    assert [healed.get(key(number)) for number in range(5)] == [number / 3 for number in range(5)]


def test_a_segment_of_another_section_is_not_believed(tmp_path: Path) -> None:
    (path,) = segments(fill(tmp_path, range(5)))
    with Cache(tmp_path).section("values", {"base": "other"}) as other:
        other.put(key(100), 1.0)
    (other.folder / path.name).write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match="5 damaged"):
        assert len(Cache(tmp_path).section("values", {"base": "other"})) == 1


def test_values_are_kept_before_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_PENDING_ENTRIES", 10)
    section = Cache(tmp_path).section("values", FACTS)
    for number in range(25):
        section.put(key(number), number / 3)
    assert len(Cache(tmp_path).section("values", FACTS)) == 20
    with pytest.raises(KeyboardInterrupt), section:
        raise KeyboardInterrupt
    assert len(Cache(tmp_path).section("values", FACTS)) == 25


def test_many_small_segments_become_one(tmp_path: Path) -> None:
    for number in range(70):
        folder = fill(tmp_path, range(number, number + 2))
    assert len(segments(folder)) <= 65
    assert len(Cache(tmp_path).section("values", FACTS)) == 71
    Cache(tmp_path).section("values", FACTS)
    assert len(segments(folder)) < 10
    again = Cache(tmp_path).section("values", FACTS)
    assert [again.get(key(number)) for number in range(71)] == [number / 3 for number in range(71)]


def test_segments_that_another_process_merges_meanwhile_are_read_from_where_they_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        folder = fill(tmp_path, range(10 * number, 10 * number + 10))
    read = Section._read

    def merge_first(path: Path) -> bytes:
        if not (merged := folder / "segment-merged.jsonl").exists():
            before = segments(folder)
            merged.write_bytes(b"".join(map(read, before)))
            for one in before:
                one.unlink()
        return read(path)

    monkeypatch.setattr(Section, "_read", staticmethod(merge_first))
    assert len(Cache(tmp_path).section("values", FACTS)) == 30


def test_what_a_killed_writer_left_is_ignored_and_removed_when_it_is_old(tmp_path: Path) -> None:
    folder = fill(tmp_path, range(3))
    young, old = folder / ".staging-young", folder / ".staging-old"
    young.write_text('{"key": "half')
    old.write_text('{"key": "half')
    os.utime(old, (0, 0))
    assert len(Cache(tmp_path).section("values", FACTS)) == 3
    assert young.exists()
    assert not old.exists()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")])
def test_a_folder_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    fill(tmp_path, range(3))
    monkeypatch.setattr(cache_module, "write_bytes", refuse)
    cache = Cache(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in ("values", "others"):
            for number in range(2):
                with cache.section(kind, FACTS) as section:
                    section.put(key(10 + number), 1.5)
    (warning,) = caught
    assert str(tmp_path) in str(warning.message)
    assert error.strerror in str(warning.message)
    assert cache.section("values", FACTS).get(key(1)) == 1 / 3
    assert cache.section("others", FACTS).get(key(11)) == 1.5


def test_a_file_where_the_folder_should_be_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.warns(UserWarning, match="file cannot be written"),
        Cache(tmp_path / "file").section("x", FACTS) as section,
    ):
        section.put(key(1), 1.0)
    assert section.get(key(1)) == 1.0


def test_the_folder_is_the_users_unless_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLURALIGN_CACHE", str(tmp_path))
    assert Cache().folder == tmp_path
    monkeypatch.delenv("PLURALIGN_CACHE")
    assert default_folder() == Path("~/.cache/pluralign")
    assert Cache().folder == Path.home() / ".cache" / "pluralign"


def _work(folder: Path, start: int) -> None:
    for turn in range(10):
        fill(folder, range(start + 10 * turn, start + 10 * (turn + 1)))


def test_processes_share_a_cache_without_a_lock_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Merging at every opening: the processes remove each other's segments all the time.
    monkeypatch.setattr(cache_module, "_MANY_SEGMENTS", 1)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(tmp_path, start)) for start in (0, 50, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    section = Cache(tmp_path).section("values", FACTS)
    assert [section.get(key(number)) for number in range(200)] == [number / 3 for number in range(200)]


def _work_until_killed(folder: Path, ready: Any) -> None:
    cache_module._PENDING_ENTRIES = 5
    section = Cache(folder).section("values", FACTS)
    number = 0
    while True:
        section.put(key(number), number / 3)
        number += 1
        if number == 50:
            ready.set()


def test_a_killed_process_keeps_what_it_flushed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_work_until_killed, args=(tmp_path, ready))
    worker.start()
    assert ready.wait(60)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        section = Cache(tmp_path).section("values", FACTS)
    assert len(section) >= 45
    assert all(section.get(key(number)) == number / 3 for number in range(len(section)))


def test_values_are_taken_out_of_every_section_and_the_others_stay(tmp_path: Path) -> None:
    folders = [fill(tmp_path, range(6), kind) for kind in ("some", "others")]
    with Cache(tmp_path).section("some", {"dtype": "bfloat16"}) as section:
        section.put(key(1), "x")
    cache = Cache(tmp_path)
    gone = {key(1), key(4), key(99)}
    found = cache.find("some", gone)
    assert set(found) == {key(1), key(4)} and set(found[key(1)]) == {1 / 3, "x"} and found[key(4)] == [4 / 3]
    kept = segments(folders[1])
    assert cache.remove("some", gone) == 3
    assert segments(folders[1]) == kept
    left = Cache(tmp_path).section("some", FACTS)
    assert [number for number in range(6) if key(number) in left] == [0, 2, 3, 5]
    assert cache.holding(gone) == (kept, 2)
    assert cache.remove("others", gone) == 2 and cache.holding(gone) == ([], 2)
    assert cache.remove("others", gone) == 0


def test_damaged_lines_go_with_what_is_taken_out_and_half_written_ones_are_seen(tmp_path: Path) -> None:
    folder = fill(tmp_path, range(4))
    (path,) = segments(folder)
    path.write_bytes(path.read_bytes().replace(b'"value":0.6', b'"value":0.7'))
    (folder / ".staging-1").write_bytes(path.read_bytes().split(b"\n")[3])
    cache = Cache(tmp_path)
    assert cache.remove("values", {key(1)}) == 2
    assert cache.holding({key(1), key(2)}) == ([], 2)
    assert cache.holding({key(3)})[0] == [folder / ".staging-1", *segments(folder)]
