"""Every file format gives the same preferences; a file that cannot be read says where and why."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pluralign.config import DataConfig
from pluralign.errors import InputError
from pluralign.preferences import Preferences, data_hash, load_preferences
from pluralign.preferences.keys import row_key

ROWS = [
    {"user": "ann", "prompt": "Why?", "chosen": "Because,\nit is.", "rejected": 'He said "no".', "weight": 0.5},
    {"user": "bob", "prompt": "Où?", "chosen": "Là-bas 🙂", "rejected": "Ici\u2028et là", "weight": 2.0},
]


def load(path, **keys) -> Preferences:
    return load_preferences(DataConfig(path=str(path), **keys))


def contents(preferences: Preferences) -> list[str]:
    return [row_key(row) for row in preferences]


def write_jsonl(path, rows):
    # Half of the point: as most tools write them, and with every character escaped.
    lines = [json.dumps(row, ensure_ascii=index % 2 == 0) for index, row in enumerate(rows)]
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_json(path, rows):
    path.write_bytes(json.dumps(rows, indent=1, ensure_ascii=False).encode())


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()})


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow_file(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_arrow_stream(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "table.jsonl": write_jsonl,
    "table.json": write_json,
    "table.csv": write_csv,
    "table.parquet": write_parquet,
    "table.arrow": write_arrow_file,
    "stream.arrow": write_arrow_stream,
}


def text(min_size=1):
    characters = st.characters(exclude_categories=["Cs"])
    return st.text(characters, min_size=min_size, max_size=20).filter(lambda t: t.strip() and not t.startswith("[{"))


def turn(role):
    return st.fixed_dictionaries({"role": st.just(role), "content": text()})


PAIRS = st.fixed_dictionaries(
    {"user": text(), "prompt": text(), "chosen": text(), "rejected": text(), "weight": st.floats(0, 9)}
)
CONVERSATIONS = st.fixed_dictionaries(
    {
        "prompt": st.lists(turn("user"), min_size=1, max_size=3),
        "chosen": st.lists(turn("assistant"), min_size=1, max_size=1),
        "rejected": st.lists(turn("assistant"), min_size=1, max_size=2),
        "group": text(),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.one_of(st.lists(PAIRS, min_size=1, max_size=4), st.lists(CONVERSATIONS, min_size=1, max_size=4)))
def test_rows_come_back_the_same_from_every_format(tmp_path, rows):
    rows = [row for row in rows if row["chosen"] != row["rejected"]] or ROWS
    found = []
    for name, write in WRITERS.items():
        write(tmp_path / name, rows)
        found.append(load(tmp_path / name))
    for preferences in found:
        assert not preferences.problems
        assert [row.prompt for row in preferences] == [row["prompt"] for row in rows]
        assert [row.chosen for row in preferences] == [row["chosen"] for row in rows]
        assert [row.rejected for row in preferences] == [row["rejected"] for row in rows]
        assert [row.user for row in preferences] == [row.get("user") for row in rows]
        assert [row.group for row in preferences] == [row.get("group") for row in rows]
        assert [row.columns.get("weight") for row in preferences] == [row.get("weight") for row in rows]
    assert len({data_hash(preferences) for preferences in found}) == 1


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rename", ["plain", "gzip", "gzip without .gz", "no suffix", "gzip without suffix"])
def test_format_is_known_by_name_or_by_content(tmp_path, name, rename):
    source = tmp_path / name
    WRITERS[name](source, ROWS)
    target = (
        source
        if rename == "plain"
        else tmp_path / {"gzip": f"{name}.gz", "gzip without .gz": f"z.{name}"}.get(rename, "data")
    )
    if "gzip" in rename:
        target.write_bytes(gzip.compress(source.read_bytes()))
    elif target != source:
        shutil.copy(source, target)
    assert contents(load(target)) == contents(load(source))
    assert [str(row.place) for row in load(target)] == [f"{target}, row 1", f"{target}, row 2"]


@pytest.mark.parametrize("name", ["table.jsonl", "table.json", "table.csv"])
def test_a_byte_order_mark_is_fine(tmp_path, name):
    WRITERS[name](tmp_path / name, ROWS)
    plain = contents(load(tmp_path / name))
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert contents(load(tmp_path / name)) == plain


def test_json_named_file_may_hold_lines_and_the_other_way_round(tmp_path):
    write_jsonl(tmp_path / "lines.json", ROWS)
    write_json(tmp_path / "array.jsonl", ROWS)
    assert contents(load(tmp_path / "lines.json")) == contents(load(tmp_path / "array.jsonl"))


def test_blank_lines_count_as_lines_but_not_as_rows(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(["", json.dumps(ROWS[0]), "   ", json.dumps(ROWS[1]), ""]) + "\r\n")
    assert [row.place.row for row in load(path)] == [2, 4]


def test_long_cells_and_the_limit_of_the_csv_module(tmp_path):
    limit = csv.field_size_limit()
    write_csv(tmp_path / "t.csv", [{**ROWS[0], "chosen": "word " * 100_000}])
    assert len(load(tmp_path / "t.csv")[0].chosen) == 500_000
    assert csv.field_size_limit() == limit


def test_csv_columns_are_numbers_where_all_their_cells_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("user,prompt,chosen,rejected,weight,code,base_finished\n7,1,2,3,0.5,1,true\n8,4,5,6,,x2,false\n")
    first, second = load(path)
    assert (first.user, first.prompt, first.chosen, first.rejected) == ("7", "1", "2", "3")
    assert first.columns == {"weight": 0.5, "code": "1"}
    assert second.columns == {"code": "x2"}
    assert (first.base_finished, second.base_finished) == (True, False)


def test_parquet_columns_of_the_json_type(tmp_path):
    prompts = [json.dumps(row["prompt"]) for row in ROWS]
    column = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(prompts))
    others = {name: [row[name] for row in ROWS] for name in ("user", "chosen", "rejected", "weight")}
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column, **others}), tmp_path / "t.parquet")
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    assert contents(load(tmp_path / "t.parquet")) == contents(load(tmp_path / "t.jsonl"))


def test_keys_that_a_columnar_format_adds_to_messages_are_not_there(tmp_path):
    called = {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]}
    row = {
        "prompt": [{"role": "user", "content": "Where?"}],
        "chosen": [called],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    write_parquet(tmp_path / "t.parquet", [row])
    write_jsonl(tmp_path / "t.jsonl", [row])
    assert load(tmp_path / "t.parquet")[0].rejected == [{"role": "assistant", "content": "No."}]
    assert load(tmp_path / "t.parquet")[0].chosen == load(tmp_path / "t.jsonl")[0].chosen == [called]


# What cannot be read


def test_broken_lines_become_problems_and_the_others_stay(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [
        json.dumps(ROWS[0]),
        '{"user": "x", "prompt"',
        "[1]",
        "null",
        "[" * 100_000,
        "1" * 5_000,
        json.dumps(ROWS[1]),
    ]
    path.write_text("\n".join(lines))
    preferences = load(path)
    assert [row.place.row for row in preferences] == [1, 7]
    assert [problem.place.row for problem in preferences.problems] == [2, 3, 4, 5, 6]
    assert str(preferences.problems[0]).startswith(f"{path}, row 2: broken JSON")


def test_broken_json_array_names_the_element(tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([*ROWS, *ROWS])[:-40])
    with pytest.raises(InputError, match=r"t\.json, row 4: broken JSON"):
        load(path)
    path.write_text(f"[{json.dumps(ROWS[0])}, {json.dumps(ROWS[1])} {json.dumps(ROWS[0])}]")
    with pytest.raises(InputError, match=r"t\.json, row 2: broken JSON"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"", "is empty"),
        ("t.csv", b"", "is empty"),
        ("t.parquet", b"", "is empty"),
        ("t.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("t.jsonl", b" \n\n", "holds no rows"),
        ("t.json", b"[]", "holds no rows"),
        ("t.csv", b"prompt,chosen,rejected\n", "holds no rows"),
        ("t.jsonl", b"hello\nworld\n", r"row 1: none of its 2 rows can be read"),
        ("t.json", b'{\n "prompt": "a"\n}', "none of its 3 rows can be read"),
        ("t.txt", b"hello world", "neither its name nor its content"),
        ("t.jsonl", '{"prompt": "é"}'.encode("latin-1"), r"t\.jsonl, line 1: byte 12 of the file, 0xe9, is not UTF-8"),
        ("t.csv", "prompt,chosen,rejected\na,b,c\na,b,é".encode("cp1252"), r"line 3: byte 33 of the file, 0xe9"),
        ("t.jsonl", '{"prompt": "a"}'.encode("utf-16"), "the file is UTF-16"),
        ("t.jsonl.gz", gzip.compress(b'{"prompt": "a"}' * 99, mtime=0)[:-20], "gzip data is broken or cut short"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}', mtime=0)[:-8] + b"12345678", "gzip data is broken or cut short"),
        ("t.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("t.arrow", b"ARROW1 and no more", "not a whole Arrow file"),
        ("t.arrow", b"neither of the two", "not a whole Arrow file"),
        ("t.csv", b'prompt,chosen,rejected\na,b,"c\nd,e,f\n', r"broken CSV \(unexpected end of data\)"),
        ("t.csv", b"prompt,chosen,chosen\na,b,c\n", "names column 'chosen' twice"),
        ("t.csv", b"prompt;chosen;rejected\na;b;c\n", "is its separator a comma"),
        ("t.jsonl", b'{"text": "a"}\n', r"the columns are 'text': no preferences among them\. Expected one of"),
    ],
)
def test_file_that_cannot_be_read_as_a_whole(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_truncated_parquet_and_arrow(tmp_path):
    for name in ("table.parquet", "table.arrow", "stream.arrow"):
        WRITERS[name](tmp_path / name, ROWS * 50)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="not a whole"):
            load(tmp_path / name)


def test_parquet_text_that_is_not_utf8_names_row_and_column(tmp_path):
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")]
    )
    table = pyarrow.table(
        {"prompt": pyarrow.array(["p", "q"]), "chosen": broken, "rejected": pyarrow.array(["r", "s"])}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet, row 2, column 'chosen': the cell is not UTF-8"):
        load(tmp_path / "t.parquet")


def test_csv_rows_of_another_length_are_problems(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("user,prompt,chosen,rejected\na,p,c,r\na,p,c\na,p,c,r,x\n\na,q,c,r\n")
    preferences = load(path)
    assert [row.place.row for row in preferences] == [1, 4]
    assert [problem.found for problem in preferences.problems] == [
        "the row has 3 cells, the header 4",
        "the row has 5 cells, the header 4",
    ]


# Where the tables are


def test_several_files_and_a_folder_are_read_in_order(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", ROWS[:1])
    write_csv(tmp_path / "a.csv", ROWS[1:])
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / ".hidden.jsonl").write_text("not json")
    listed = load_preferences(DataConfig(path=[str(tmp_path / "b.jsonl"), str(tmp_path / "a.csv")]))
    assert [row.user for row in listed] == ["ann", "bob"]
    assert [row.user for row in load(tmp_path)] == ["bob", "ann"]


def test_a_folder_saved_by_datasets_is_read(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    assert contents(load(tmp_path / "saved")) == contents(load(tmp_path / "t.jsonl"))


def test_people_in_one_file_and_none_in_the_other_are_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    with pytest.raises(InputError, match=r"b\.jsonl: has no column 'user', .*a\.jsonl has"):
        load(tmp_path)


@pytest.mark.parametrize(
    "path", ["no/such.jsonl", "prefs", "/no/such/folder", "a" * 5_000, "a/b/c", "nul\0name", "..", "./owner/name"]
)
def test_missing_files_never_reach_the_network(tmp_path, monkeypatch, path):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        load(path)


def test_empty_folder_and_empty_list(tmp_path):
    with pytest.raises(InputError, match="holds no file of a known format"):
        load(tmp_path)
    with pytest.raises(InputError, match="names no file"):
        load_preferences(DataConfig(path=[]))


def test_hub_data_sets_are_loaded_with_split_and_revision(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **keys):
        asked.append((name, keys))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    preferences = load("owner/name", split="test[:2]", revision="v1")
    write_jsonl(tmp_path / "t.jsonl", ROWS)
    assert asked == [("owner/name", {"split": "test[:2]", "revision": "v1"})]
    assert contents(preferences) == contents(load(tmp_path / "t.jsonl"))
    assert str(preferences[1].place) == "owner/name (test[:2]), row 2"


def test_hub_data_set_offline_is_a_clear_error():
    with pytest.raises(InputError, match=r"owner/no-such-set \(train\): cannot be loaded .*no such local file"):
        load("owner/no-such-set")


def test_a_local_folder_goes_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    write_jsonl(tmp_path / "owner/name/t.jsonl", ROWS)
    assert len(load("owner/name")) == 2


def test_the_world_is_the_default():
    preferences = load_preferences(DataConfig())
    assert preferences.name == "world"
    assert len(preferences.by("user")) >= 2
    assert not preferences.problems
    assert contents(load_preferences(DataConfig(), seed=5)) == contents(preferences)


def test_hash_is_of_the_content_and_its_order_not_of_the_file(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS[::-1])
    write_jsonl(tmp_path / "c.jsonl", [*ROWS, {**ROWS[0], "chosen": ""}])
    write_jsonl(tmp_path / "d.jsonl", [ROWS[0], {**ROWS[1], "weight": 3.0}])
    write_csv(tmp_path / "e.csv", ROWS)
    hashes = {name: data_hash(load(tmp_path / name)) for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", "e.csv")}
    assert hashes["a.jsonl"] == hashes["e.csv"]
    assert len(set(hashes.values())) == 4
