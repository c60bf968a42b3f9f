"""Prompts for `pluralign generate`: what is a prompt, what is a file of them, and what is neither."""

import json

import pyarrow
import pyarrow.parquet as parquet
import pytest

from pluralign.errors import InputError
from pluralign.preferences import read_prompts

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def prompts(*given):
    return [row.prompt for row in read_prompts(list(given))]


def test_prompts_and_files_in_the_order_given(tmp_path):
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\ufeff" + "".join(json.dumps({"prompt": one}) + "\n" for one in ("a\u2028b", MESSAGES)))
    text = tmp_path / "with a space.txt"
    text.write_text("one\r\n\n  two\n")
    table = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["three"], "user": ["ann"]}), table)
    given = prompts("first", str(lines), str(text), str(table), "last")
    assert given == ["first", "a\u2028b", MESSAGES, "one", "  two", "three", "last"]
    assert prompts("What stands in notes.txt") == ["What stands in notes.txt"]
    assert [row.prompt for row in read_prompts("alone")] == ["alone"]


def test_every_prompt_knows_its_place(tmp_path):
    text = tmp_path / "p.txt"
    text.write_text("\none\n")
    assert [str(row.place) for row in read_prompts(["x", str(text)])] == ["--prompts, row 1", f"{text}, row 2"]


def test_group_and_columns_stay_where_they_are_asked_for(tmp_path):
    table = tmp_path / "p.jsonl"
    rows = [{"prompt": "x", "user": 3, "group": "g", "chosen": "y", "topic": "t"}, {"prompt": "z", "topic": None}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_prompts(str(table), columns=True)
    assert (first.user, first.group, first.columns) == ("3", "g", {"topic": "t"})
    assert (second.user, second.group, second.columns) == (None, None, {})
    plain, _ = read_prompts(str(table))
    assert (plain.user, plain.group, plain.columns, plain.chosen) == ("3", None, {}, None)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": 3}\n', r"a\.jsonl, row 2, column 'prompt': the cell holds 3"),
        ("a.jsonl", b'{"prompt": "x"}\n{\n', r"a\.jsonl, row 2: broken JSON"),
        ("a.jsonl", b'{"prompt": "x"}\n{"q": 1}\n', r"a\.jsonl, row 2, column 'prompt': the row has no prompt"),
        ("a.jsonl", b'{"q": "x"}\n', r"a\.jsonl: there is no column `prompt`"),
        ("a.jsonl", b'{"prompt": " "}\n', r"a\.jsonl, row 1, column 'prompt': the cell is empty"),
        ("a.jsonl", b'{"prompt": "\\ud800"}\n', r"a\.jsonl, row 1, column 'prompt': .*lone surrogate"),
        ("a.jsonl", b'{"prompt": [{"role": "user"}]}\n', r"a\.jsonl, row 1, column 'prompt': message 1 has no content"),
        ("a.txt", b"x\ncaf\xe9\n", r"a\.txt, line 2: byte 5 of the file, 0xe9, is not UTF-8"),
        ("a.txt", b"\n", "no prompt is given"),
        ("a.csv", None, r"a\.csv: there is no such file"),
        ("a.txt", None, r"a\.txt: there is no such file"),
    ],
)
def test_what_cannot_be_asked_names_its_place(name, content, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=named):
        read_prompts(name)


def test_a_folder_is_no_file_and_nothing_is_no_prompt(tmp_path):
    (tmp_path / "p.txt").mkdir()
    with pytest.raises(InputError, match=r"p\.txt: it is a folder"):
        read_prompts(str(tmp_path / "p.txt"))
    for empty in ([], [""], " "):
        with pytest.raises(InputError, match="--prompts"):
            read_prompts(empty)
