"""Probes: what is read, what is refused and where, and which of them are asked."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluralign.errors import InputError
from pluralign.evaluation import load_probes
from pluralign.evaluation.probes import ProbeSet, collect
from pluralign.preferences import Place
from pluralign.world import World

GOOD = {"id": "a", "question": "Two and two?", "options": ["three", "four"], "answer": "four"}

TRIVIA = (
    b"some words before\n\n#Q What is the capital of France?\n^ Paris\nA Lyon\nB Paris\nC Nice\nD Lille\n\n"
    b"#Q Finish the line:\r\nA line that begins like an option\r\n\r\n^ Pen\xe9lope\r\nA Ann\r\nB Pen\xe9lope\r\n\r\n"
    b"#Q Caf\xc3\xa9s are many.\n^ True\nA True\nB False\n"
    b"#Q Twice the same?\n^ one\nA one\nB one\n"
    b"#Q The answer is not there?\n^ none\nA one\nB two\n"
    b"#Q No answer?\nA one\nB two\n"
    b"#Q Letters jump?\n^ one\nA one\nC two\n"
)


def write(path: Path, *rows: Any) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def read(source: str, **settings: Any) -> ProbeSet:
    (found,) = load_probes(source, **settings)
    return found


def test_answer_is_an_index_or_a_text(tmp_path: Path) -> None:
    numbers = {"question": "2 - 1?", "options": ["0", "1"]}
    found = read(
        write(tmp_path / "p.jsonl", GOOD, {**numbers, "answer": 0}, {**numbers, "answer": "0"}, "", GOOD | {"id": 9})
    )
    assert [probe.answer for probe in found.probes] == [1, 0, 0, 1]
    assert [probe.id for probe in found.probes] == ["a", "2", "3", "9"]
    assert (found.probes[0].topic, found.probes[0].scope, found.probes[0].prefix) == ("all", "outside", None)
    assert found.problems == []


def test_prefixes_are_read_and_plain_is_the_bases(tmp_path: Path) -> None:
    prefixes = {"plain": "It is", "formal": "Indeed it is"}
    rows = [GOOD | {"prefixes": prefixes}, GOOD | {"id": "b", "prefix": "", "prefixes": prefixes}]
    first, second = read(write(tmp_path / "p.jsonl", *rows)).probes
    assert (first.prefix, second.prefix) == ("It is", "")
    assert first.prefixes == prefixes


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("{broken", None),
        (["a", "list"], None),
        ({key: GOOD[key] for key in ("id", "options", "answer")}, "question"),
        (GOOD | {"question": "  "}, "question"),
        (GOOD | {"question": [{"content": "no role"}]}, "question"),
        (GOOD | {"options": ["four"]}, "options"),
        (GOOD | {"options": ["four", 4]}, "options"),
        (GOOD | {"options": ["four", " "]}, "options"),
        (GOOD | {"options": ["four", "four"]}, "options"),
        (GOOD | {"answer": 2}, "answer"),
        (GOOD | {"answer": -1}, "answer"),
        (GOOD | {"answer": True}, "answer"),
        (GOOD | {"answer": "five"}, "answer"),
        (GOOD | {"answer": None}, "answer"),
        (GOOD | {"id": ""}, "id"),
        (GOOD | {"id": "first"}, "id"),
        (GOOD | {"topic": 3}, "topic"),
        (GOOD | {"scope": "elsewhere"}, "scope"),
        (GOOD | {"prefix": 3}, "prefix"),
        (GOOD | {"question": "half a \ud83d pair"}, None),
        (GOOD | {"prefixes": {"formal": 3}}, "prefixes"),
    ],
)
def test_a_bad_row_is_reported_with_its_place(tmp_path: Path, row: Any, column: str | None) -> None:
    path = write(tmp_path / "p.jsonl", GOOD | {"id": "first"}, row, GOOD | {"id": "last"})
    found = read(path)
    assert [probe.id for probe in found.probes] == ["first", "last"]
    (problem,) = found.problems
    assert (problem.place, problem.column) == (Place(path, 2), column)


def test_bytes_that_are_not_utf8_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"question": "\xff"}\n' + json.dumps(GOOD).encode())
    found = read(str(path))
    assert "UTF-8" in str(found.problems[0])
    assert len(found.probes) == 1


def test_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "named.anyhow"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()))
    assert len(read(str(path)).probes) == 1


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{}\n[]\n", gzip.compress(b"{}", mtime=0)[:-4]])
def test_a_file_without_a_usable_probe_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.jsonl"):
        load_probes(str(path))


@pytest.mark.parametrize("source", ["missing.jsonl", "trivia:missing", "arc:missing.json", "world:one", "."])
def test_a_source_that_is_not_there_is_refused_by_name(source: str) -> None:
    with pytest.raises(InputError) as error:
        load_probes(source)
    assert error.value.where == source


def test_sample_is_fixed_by_the_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *(GOOD | {"id": str(number)} for number in range(50)))
    first, again, other = (read(path, max_probes=10, seed=seed) for seed in (1, 1, 2))
    ids = [int(probe.id) for probe in first.probes]
    assert ids == sorted(ids)
    assert len(ids) == 10
    assert first.probes == again.probes
    assert first.probes != other.probes
    assert first.available == 50
    assert len(read(path, max_probes=99).probes) == 50
    with pytest.raises(InputError, match="max_probes"):
        load_probes(path, max_probes=0)


def test_several_sources_stay_apart(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.jsonl", GOOD), write(tmp_path / "2.jsonl", GOOD)
    assert [found.name for found in load_probes([one, two])] == [one, two]
    assert load_probes(None) == []


def test_trivia_format(tmp_path: Path) -> None:
    (tmp_path / "trivia").mkdir()
    path = tmp_path / "trivia" / "places"
    path.write_bytes(TRIVIA)
    found = read(f"trivia:{path}")
    assert [(probe.question, probe.options, probe.answer) for probe in found.probes] == [
        ("What is the capital of France?", ("Lyon", "Paris", "Nice", "Lille"), 1),
        ("Finish the line:\nA line that begins like an option", ("Ann", "Penélope"), 1),
        ("Cafés are many.", ("True", "False"), 0),
    ]
    assert {probe.topic for probe in found.probes} == {"places"}
    assert [problem.place.row for problem in found.problems] == [21, 25, 29, 32]
    assert all(problem.place.file == str(path) for problem in found.problems)


def test_trivia_as_file_folder_and_archive_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "trivia"
    folder.mkdir()
    (folder / "places").write_bytes(TRIVIA)
    (folder / "README").write_bytes(b"no questions here")
    archive = tmp_path / "trivia.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in (("places", TRIVIA), ("../../escape", TRIVIA.replace(b"#Q", b"")), ("folder", None)):
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            member.type = tarfile.REGTYPE if content else tarfile.DIRTYPE
            tar.addfile(member, io.BytesIO(content or b""))
    published = tmp_path / "published"
    published.mkdir()
    shutil.copy(archive, published)
    sources = [f"trivia:{path}" for path in (folder / "places", folder, archive, published)]
    questions = [[(probe.id, probe.question, probe.answer) for probe in read(source).probes] for source in sources]
    assert questions[0] == questions[1] == questions[2] == questions[3]
    assert any("no line starts with #Q" in str(problem) for problem in read(sources[1]).problems)
    assert not (tmp_path.parent / "escape").exists()


def test_arc_format(tmp_path: Path) -> None:
    def item(options: str, answer: Any, question: str = "Which is wet?") -> dict[str, Any]:
        asked = f"Please choose the correct answer to the question: {question}"
        text = f"{asked}\n\n{options}\n\nAnswer format: answer1/answer2"
        return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}

    rows = [
        item("Answer1: dry sand Answer2: the sea Answer3: a stone", "answer2"),
        item("Answer1: one\nAnswer2: two", "answer1", "Two lines?\nYes."),
        item("Answer1: dry Answer2: wet", "answer3"),
        item("Answer1: dry Answer3: wet", "answer1"),
        item("no options", "answer1"),
        {"answer": "answer1"},
        "text",
    ]
    path = tmp_path / "arc.json.gz"
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    found = read(f"arc:{path}")
    assert [(probe.question, probe.options, probe.answer) for probe in found.probes] == [
        ("Which is wet?", ("dry sand", "the sea", "a stone"), 1),
        ("Two lines?\nYes.", ("one", "two"), 0),
    ]
    assert [problem.place.row for problem in found.problems] == [3, 4, 5, 6, 7]


def test_a_folder_is_no_split_of_arc(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Name one of its files"):
        load_probes(f"arc:{tmp_path}")


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe"])
def test_arc_that_is_no_list_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "arc.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"arc\.json"):
        load_probes(f"arc:{path}")


def test_the_worlds_probes_are_all_usable() -> None:
    found = read("world")
    assert (len(found.probes), found.problems) == (len(World(0).probes()), [])
    assert {probe.scope for probe in found.probes} == {"inside", "outside"}
    assert all(probe.prefix == probe.prefixes["plain"] for probe in found.probes)
    assert read("world:1").probes[0].question != found.probes[0].question


@given(
    st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=6, unique=True),
    st.text(min_size=1).filter(str.strip),
    st.data(),
)
def test_every_legal_row_comes_through_json(options: list[str], question: str, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(options) - 1))
    answer = data.draw(st.sampled_from([index, options[index]]))
    row = json.loads(json.dumps({"question": question, "options": options, "answer": answer}))
    (probe,) = collect("memory", [(Place("memory", 1), row)]).probes
    assert (probe.question, list(probe.options), probe.answer) == (question, options, index)
