from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pluralign.config import AnchorTableConfig, DataConfig, GenerationConfig
from pluralign.errors import InputError
from pluralign.models.anchored_table import SCHEMA_VERSION, _array, _decoded
from pluralign.models.anchoring import (
    Anchored,
    adopt_anchored,
    anchor,
    anchor_preferences,
    anchored_facts,
    read_anchored,
    write_anchored,
)
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.encoding import BRANCHES, Encoder
from pluralign.preferences import Preference, load_preferences

SETTINGS = GenerationConfig(max_new_tokens=5)
CALL = {"function": {"name": "find", "arguments": {"near": [1.5, 2], "open": None}}, "type": "function"}
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
TOOL = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]


def encoder_of(base: Base, **limits: Any) -> Encoder:
    settings = {"max_prompt_length": 64, "max_response_length": 32, "context_length": 256, **limits}
    return Encoder(base.tokenizer, **settings)


def anchored(base: Base, rows: list[Preference], folder: Path, **changes: Any) -> list[Anchored]:
    options = {"settings": SETTINGS, "cache": Cache(folder), "layout": "shared", "branches": BRANCHES, **changes}
    return anchor_preferences(base, rows, encoder=encoder_of(base), **options)


TEXTS = [
    Preference("What?", " This.", " That.", user="ann", group="g", columns={"weight": 0.5, "note": "x"}),
    Preference("What?", " That.", " This.", user="../..", group="g", columns={"weight": 2}),
    Preference("Only an anchor", None, None, user="ann", group="h"),
    Preference("One answer", " good", None, user="bob", group="h", base=" mine", base_finished=False),
]
MESSAGES = [
    Preference(CHAT, [{"role": "assistant", "content": "Hello"}], [{"role": "assistant", "content": "Go"}], user="ann"),
    Preference(TOOL, [{"role": "assistant", "content": "Here"}], [{"role": "assistant", "content": "There"}], user="b"),
    Preference("plain", " text", " too", user="c"),
]


@pytest.mark.parametrize("rows", [TEXTS, MESSAGES, MESSAGES[:1]], ids=["text", "mixed", "messages"])
def test_a_table_gives_back_what_was_in_memory(tiny_base: Base, tmp_path: Path, rows: list[Preference]) -> None:
    before = anchored(tiny_base, rows, tmp_path / "cache")
    path = tmp_path / "table.parquet"
    write_anchored(path, before, tiny_base, encoder=encoder_of(tiny_base))
    after = read_anchored(path, base=tiny_base, encoder=encoder_of(tiny_base))
    assert [row.encoded for row in after] == [row.encoded for row in before]
    assert [row.reference for row in after] == [row.reference for row in before]
    for one, other, number in zip(after, before, range(1, 10), strict=False):
        there = {name: value for name, value in one.preference.columns.items() if value is not None}
        assert there == other.preference.columns
        assert str(one.preference.place) == f"{path}, row {number}"
        assert (
            replace(one.preference, place=other.preference.place, columns=other.preference.columns) == other.preference
        )


def test_rows_get_the_bases_own_answer_where_they_have_none(tiny_base: Base, tmp_path: Path) -> None:
    rows = anchored(tiny_base, TEXTS, tmp_path)
    assert [row.preference.base == TEXTS[3].base for row in rows] == [False, False, False, True]
    assert rows[0].preference.base == rows[1].preference.base
    assert not rows[0].preference.base_finished
    eos = tiny_base.tokenizer.eos_token_id
    assert rows[0].encoded.response_ids["base"][-1] != eos
    assert rows[0].encoded.response_ids["chosen"][-1] == eos
    assert [row.reference.keys() == row.encoded.response_ids.keys() for row in rows] == [True] * 4
    assert rows[2].reference.keys() == {"base"}
    assert TEXTS[0].base is None  # what was given is not changed


def test_only_the_branches_that_are_wanted_cost_anything(
    tiny_base: Base, tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    forwards = count_forwards(tiny_base.model)
    rows = anchored(tiny_base, TEXTS[:2], tmp_path, branches=("chosen", "rejected"), with_reference=False)
    assert not forwards
    assert [(row.preference.base, row.reference) for row in rows] == [(None, {}), (None, {})]
    rows = anchored(tiny_base, TEXTS[:2], tmp_path, branches=("chosen",))
    assert forwards == [1]  # one prompt, whose two responses share its row
    assert [row.reference.keys() for row in rows] == [{"chosen"}, {"chosen"}]


def test_a_second_run_runs_no_model(
    make_base: Callable[..., Base], tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    first = anchored(make_base(), TEXTS, tmp_path)
    again = make_base()
    forwards = count_forwards(again.model)
    assert anchored(again, TEXTS, tmp_path) == first
    assert not forwards


def test_an_answer_that_ends_at_once_is_one_end_token(tiny_base: Base, tmp_path: Path) -> None:
    eos = tiny_base.tokenizer.eos_token_id
    with torch.no_grad():
        prompt = tiny_base.tokenizer("Why?")["input_ids"]
        first = int(tiny_base.model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    tiny_base.model.generation_config.eos_token_id = [first]
    rows = anchored(tiny_base, [Preference("Why?", " so", " no")], tmp_path)
    assert (rows[0].preference.base, rows[0].preference.base_finished) == ("", True)
    assert rows[0].encoded.response_ids["base"] == [eos]
    assert rows[0].reference["base"] < 0


def test_the_file_says_what_it_is_and_trainers_of_others_read_it(tiny_base: Base, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    rows = anchored(tiny_base, TEXTS, tmp_path / "cache")
    write_anchored(path, rows, tiny_base, encoder=encoder_of(tiny_base), facts={"seed": 3})
    facts = anchored_facts(path)
    assert facts is not None
    assert facts["schema_version"] == SCHEMA_VERSION
    assert facts["base_fingerprint"] == tiny_base.fingerprint
    assert facts["tokenizer_fingerprint"] == tiny_base.tokenizer_fingerprint
    assert (facts["base"], facts["dtype"], facts["max_prompt_length"], facts["seed"]) == ("tiny", "float32", 64, 3)
    data = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf"))
    assert data.column_names == [
        *("prompt", "chosen", "rejected", "base", "base_finished", "user", "group"),
        *("ref_chosen_logps", "ref_rejected_logps", "ref_base_logps", "weight", "note"),
    ]
    assert data["prompt"] == [row.prompt for row in TEXTS]
    assert data["ref_chosen_logps"] == [row.reference.get("chosen") for row in rows]
    write_anchored(path, anchored(tiny_base, MESSAGES, tmp_path / "cache"), tiny_base, encoder=encoder_of(tiny_base))
    data = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf"))
    assert data["prompt"] == [row.prompt for row in MESSAGES]
    assert data["chosen"] == [row.chosen for row in MESSAGES]


def test_the_loader_of_preferences_reads_it_like_any_table(tiny_base: Base, tmp_path: Path) -> None:
    completions = [Preference("Say it.", " it", None), Preference(CHAT, [{"role": "assistant", "content": "It"}], None)]
    for rows in (TEXTS[:3], MESSAGES, completions, completions[:1]):
        path = tmp_path / "table.parquet"
        before = anchored(tiny_base, rows, tmp_path / "cache")
        write_anchored(path, before, tiny_base, encoder=encoder_of(tiny_base))
        loaded = load_preferences(DataConfig(path=str(path)))
        assert not loaded.problems
        for name in ("prompt", "chosen", "rejected", "base", "base_finished", "user"):
            assert [getattr(row, name) for row in loaded] == [getattr(row.preference, name) for row in before]


def test_a_table_of_another_base_dtype_or_limit_is_refused(make_base: Callable[..., Base], tmp_path: Path) -> None:
    base, path = make_base(), tmp_path / "table.parquet"
    write_anchored(path, anchored(base, TEXTS, tmp_path / "cache"), base, encoder=encoder_of(base))
    other, quantized = make_base(seed=1), make_base()
    quantized.model.is_loaded_in_4bit = True
    for reader, encoder, message in (
        (other, encoder_of(other), f"base_fingerprint '{base.fingerprint}'.*Compute them again"),
        (replace(base, tokenizer_fingerprint="x"), encoder_of(base), "tokenizer_fingerprint"),
        (quantized, encoder_of(quantized), "quantization 'none', and here it is '4bit'"),
        (base, encoder_of(base, max_response_length=8), "max_response_length 32, and here it is 8"),
        (base, encoder_of(base, chat_template="always"), "chat_template 'messages'"),
    ):
        with pytest.raises(InputError, match=rf"table\.parquet: .*{message}"):
            read_anchored(path, base=reader, encoder=encoder)
        with pytest.raises(InputError, match=message):
            adopt_anchored(
                load_preferences(DataConfig(path=str(path))),
                base=reader,
                encoder=encoder,
                cache=Cache(tmp_path / "other"),
                layout="shared",
            )
    half = replace(base, model=base.model.bfloat16())
    with pytest.raises(InputError, match="dtype 'float32', and here it is 'bfloat16'"):
        read_anchored(path, base=half, encoder=encoder_of(base))


def test_a_table_of_an_older_version_is_of_a_base_that_is_not_quantized(
    make_base: Callable[..., Base], tmp_path: Path
) -> None:
    base, path = make_base(), tmp_path / "table.parquet"
    rows = anchored(base, TEXTS, tmp_path / "cache")
    write_anchored(path, rows, base, encoder=encoder_of(base))
    table = pyarrow.parquet.read_table(path)
    facts = json.loads(table.schema.metadata[b"pluralign"])
    assert facts.pop("quantization") == "none"
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"pluralign": json.dumps(facts)}), path)
    found = read_anchored(path, base=base, encoder=encoder_of(base))
    assert [row.reference for row in found] == [row.reference for row in rows]
    base.model.is_loaded_in_4bit = True
    with pytest.raises(InputError, match="quantization 'none', and here it is '4bit'"):
        read_anchored(path, base=base, encoder=encoder_of(base))


def test_an_adopted_table_stands_in_for_the_cache(
    tiny_base: Base, tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    path = tmp_path / "table.parquet"
    before = anchored(tiny_base, TEXTS[:3], tmp_path / "there")
    write_anchored(path, before, tiny_base, encoder=encoder_of(tiny_base))
    rows, cache = load_preferences(DataConfig(path=str(path))), Cache(tmp_path / "here")
    forwards = count_forwards(tiny_base.model)
    adopt_anchored(rows, base=tiny_base, encoder=encoder_of(tiny_base), cache=cache, layout="shared")
    after = anchored(tiny_base, list(rows), tmp_path, cache=cache)
    assert not forwards
    assert [row.reference for row in after] == [row.reference for row in before]


def test_a_file_that_is_no_anchored_table_is_named(tiny_base: Base, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"]}), tmp_path / "plain.parquet")
    (tmp_path / "text.parquet").write_text("no")
    newer = pyarrow.table({"prompt": ["a"]}).replace_schema_metadata({"pluralign": json.dumps({"schema_version": 99})})
    pyarrow.parquet.write_table(newer, tmp_path / "newer.parquet")
    for name, message in (("plain", "no anchored table"), ("text", "no anchored table"), ("gone", "no anchored table")):
        assert anchored_facts(tmp_path / f"{name}.parquet") is None
        with pytest.raises(InputError, match=rf"{name}\.parquet: .*{message}"):
            read_anchored(tmp_path / f"{name}.parquet", base=tiny_base, encoder=encoder_of(tiny_base))
    with pytest.raises(InputError, match="schema version 99"):
        read_anchored(tmp_path / "newer.parquet", base=tiny_base, encoder=encoder_of(tiny_base))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(cells=st.lists(JSON, min_size=1, max_size=5))
def test_columns_the_library_does_not_know_come_back_as_they_were(cells: list[Any]) -> None:
    column = pyarrow.table({"mine": _array("mine", cells)}).column("mine")
    assert list(_decoded(column)) == cells


def test_a_cell_that_no_file_can_hold_is_named(tiny_base: Base, tmp_path: Path) -> None:
    rows = [Preference("a", " b", " c", columns={"mine": object()})]
    with pytest.raises(InputError, match=r"column 'mine': .*neither as Parquet nor as JSON"):
        write_anchored(
            tmp_path / "x.parquet", anchored(tiny_base, rows, tmp_path / "c"), tiny_base, encoder=encoder_of(tiny_base)
        )
    assert not (tmp_path / "x.parquet").exists()
    numbers = [math.nan, 1.0, None]
    assert pyarrow.types.is_float64(_array("weight", numbers).type)


def saved(base: Base, folder: Path) -> str:
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return str(folder)


def preferences_file(path: Path) -> str:
    rows = [
        {"prompt": f"Question {number % 3}?", "chosen": " yes", "rejected": f" no {number}", "user": f"u{number % 2}"}
        for number in range(6)
    ]
    path.write_text(
        "\n".join(json.dumps(row) for row in [*rows, {"prompt": "x", "chosen": 3, "rejected": " b", "user": "u0"}])
    )
    return str(path)


def config(model: str, data: str, output: Path, **changes: Any) -> AnchorTableConfig:
    return AnchorTableConfig(
        model=model, data=DataConfig(path=data), output=str(output), base_responses=SETTINGS, device="cpu", **changes
    )


def test_the_command_says_what_is_lost(make_base: Callable[..., Base], tmp_path: Path) -> None:
    model = saved(make_base(), tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "a", "chosen": " b" * 600, "rejected": " c"}))
    with pytest.warns(UserWarning, match="of 1 rows, 0 had a prompt cut on the left and 1 a response cut on the right"):
        anchor(config(model, str(data), tmp_path / "cut.parquet"))
    data.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": ""}))
    with pytest.warns(UserWarning, match="rows left out"), pytest.raises(InputError, match="no row can be used"):
        anchor(config(model, str(data), tmp_path / "none.parquet"))
    assert not (tmp_path / "none.parquet").exists()


def test_the_command_writes_a_table_that_another_base_renews(make_base: Callable[..., Base], tmp_path: Path) -> None:
    model, other = saved(make_base(), tmp_path / "model"), saved(make_base(seed=1), tmp_path / "other")
    data = preferences_file(tmp_path / "data.jsonl")
    with pytest.warns(UserWarning, match=r"rows left out:\n.*data\.jsonl, row 7, column 'chosen'"):
        first = anchor(config(model, data, tmp_path / "first.parquet"))
    assert first == tmp_path / "first.parquet"
    table = pyarrow.parquet.read_table(first).to_pydict()
    assert len(table["prompt"]) == 6
    assert all(None not in table[f"ref_{name}_logps"] for name in BRANCHES)
    with pytest.raises(InputError, match=r"first\.parquet: the file is there already.*--overwrite"):
        anchor(config(model, data, first))
    # Anchored again to its own base it is the same; to another, answers and log-probs are new.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = pyarrow.parquet.read_table(anchor(config(model, str(first), tmp_path / "again.parquet"))).to_pydict()
    assert again == table
    with pytest.warns(UserWarning, match=r"first\.parquet was anchored to another base"):
        renewed = pyarrow.parquet.read_table(anchor(config(other, str(first), first, overwrite=True))).to_pydict()
    for name in ("prompt", "chosen", "rejected", "user"):
        assert renewed[name] == table[name]
    for name in ("base", "ref_chosen_logps", "ref_base_logps"):
        assert all(one != before for one, before in zip(renewed[name], table[name], strict=True))
