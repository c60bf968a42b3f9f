"""Removed means gone: from the folder, from the evaluation of others, from the cache; and what is left is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

import pluralign
from pluralign.cli import main
from pluralign.config import DataConfig, ModelConfig, PeopleRemoveConfig, TrainConfig
from pluralign.errors import InputError
from pluralign.evaluation.results import by_group, read_evaluation, summarize
from pluralign.models import load_base
from pluralign.models.anchoring import anchor_preferences, encoder_of
from pluralign.models.cache import Cache
from pluralign.models.layout import choose_layout
from pluralign.models.matmul import quick_matmul
from pluralign.people.removal import Removal, remove_people
from pluralign.preferences import load_preferences
from pluralign.resolve import resolve
from pluralign.training.index import read_index


def remove(trained: Any, user: str | list[str], **changes: Any) -> Removal:
    return remove_people(PeopleRemoveConfig(str(trained.run), user, **changes))


def bytes_of(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_everything_of_a_person_goes_and_nothing_of_anybody_else(trained: Any) -> None:
    others = [folder for folder in (trained.run / "adapters").iterdir() if folder.is_dir() and folder.name != "alice"]
    before = {folder: bytes_of(folder) for folder in others}
    told = [line for line in (trained.run / "metrics.jsonl").read_text().splitlines() if '"alice"' not in line]
    measured = trained.read("evaluation.json")
    removal = remove(trained, "alice")
    assert removal.proven and removal.users == ["alice"]
    assert not (trained.run / "adapters" / "alice").exists()
    assert {folder: bytes_of(folder) for folder in others} == before
    assert (trained.run / "metrics.jsonl").read_text().splitlines() == told
    index = read_index(trained.run)
    assert "alice" not in index.people and "ed" in index.skipped and len(index.people) == 3
    after = read_evaluation(trained.run / "evaluation.json")
    assert "alice" not in after.people
    for user, results in after.people.items():
        was = measured["people"][user]
        assert {key: value for key, value in results.items() if key != "cross"} == {
            key: value for key, value in was.items() if key != "cross"
        }
        table = {other: cell for other, cell in was["cross"]["people"].items() if other != "alice"}
        assert results["cross"]["people"] == table
        shares = [cell["accuracy"] for other, cell in table.items() if other != user]
        assert results["cross"]["others_accuracy"] == pytest.approx(sum(shares) / len(shares))
    assert after.summary == summarize(after.people, after.skipped) and after.summary["people"] == 3
    assert after.groups == by_group(after.people)
    assert any("6 rows of theirs" in remark for remark in removal.remarks)
    assert sorted(path.name for path in trained.run.iterdir()) == [
        "adapters",
        "calls.json",
        "config.yaml",
        "evaluation.json",
        "metrics.jsonl",
    ]


def test_of_the_cache_goes_what_nobody_else_of_the_table_uses(trained: Any, count_forwards: Any) -> None:
    """Nothing of the others has to be computed again, and everything of the removed person's own does."""
    remove(trained, "alice")
    base = load_base(ModelConfig(model=trained.config()["model"], device="cpu"))
    seen = count_forwards(base.model)
    trained_with = resolve(TrainConfig, trained.run / "config.yaml")
    encoder = encoder_of(base, trained_with.data)
    layout = choose_layout(base.model, base.tokenizer)

    def computed(rows: Any) -> tuple[int, int]:
        """Base responses and log-probs that the cache does not have."""
        counts = {kind: len(trained.lines(kind)) for kind in ("base_responses", "reference_logps")}
        with quick_matmul():
            anchor_preferences(
                base,
                rows,
                encoder=encoder,
                settings=trained_with.base_responses,
                cache=Cache(trained.cache),
                layout=layout,
                branches=("chosen", "rejected", "base"),
            )
        new = {kind: len(trained.lines(kind)) - count for kind, count in counts.items()}
        return new["base_responses"], new["reference_logps"]

    table = load_preferences(DataConfig(path=str(trained.table)))
    del seen[:]
    assert computed([row for row in table if row.user != "alice"]) == (0, 0)
    assert not seen
    # Of six rows, one has a prompt and a chosen response that the others have too.
    assert computed([row for row in table if row.user == "alice"]) == (5, 3 * 5 + 1)


def test_several_go_at_once_and_the_last_one_too(trained: Any) -> None:
    assert remove(trained, "alice,42").proven
    # Texts that others of the table have too stay until these others are gone as well.
    trained.write_table(["alice-marie", "émile 🙂"])
    assert remove(trained, ["alice-marie", "émile 🙂", "ed"]).proven
    assert read_index(trained.run) == ({}, {})
    assert trained.read("evaluation.json")["people"] == {}
    assert (trained.run / "metrics.jsonl").read_bytes() == b""
    assert not trained.lines("base_responses") and not trained.lines("reference_logps")


def test_somebody_without_a_usable_row_has_nothing_in_the_cache(trained: Any) -> None:
    assert remove(trained, "ed").proven
    assert not read_index(trained.run).skipped


def test_who_is_removed_can_come_back(trained: Any) -> None:
    remove(trained, "alice")
    with pytest.warns(UserWarning, match="rows left out"):
        result = pluralign.train(trained.config())
    assert "alice" in result.adapters and "alice" in trained.read("evaluation.json")["people"]


def plant_a_note(run: Path) -> None:
    (run / "notes.txt").write_text("ask Alice? no: alice, on Monday")


def plant_a_name(run: Path) -> None:
    (run / "alice.txt").write_text("")


def plant_a_folder(run: Path) -> None:
    (run / "backup" / "alice").mkdir(parents=True)


def plant_answers(run: Path) -> None:
    (run / "answers.jsonl").write_text('{"base": "x"}\n{"people": {"alice": "yes"}}\n')


def plant_a_comment(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text() + "# without alice\n")


def plant_another_note(run: Path) -> None:
    path = run / "adapters" / "42" / "pluralign.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "merged from alice and bob"}))


def plant_a_header(run: Path) -> None:
    path = run / "adapters" / "42" / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"from": "alice"})


def plant_a_key(run: Path) -> None:
    path = run / "evaluation.json"
    content = json.loads(path.read_text())
    content["people"]["42"]["neighbours"] = {"alice": 0.3}
    path.write_text(json.dumps(content))


PLANTS = [
    (plant_a_note, "notes.txt: its content"),
    (plant_a_name, "alice.txt: its name"),
    (plant_a_folder, "backup/alice: its name"),
    (plant_answers, "answers.jsonl: line 2"),
    (plant_a_comment, "config.yaml: its content"),
    (plant_another_note, "adapters/42/pluralign.json: note"),
    (plant_a_header, "adapters/42/adapter_model.safetensors: its content"),
    (plant_a_key, "evaluation.json: people.42.neighbours"),
]


@pytest.mark.parametrize(("plant", "place"), PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_a_trace_that_is_left_is_found(
    plant: Any, place: str, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(trained.run)
    assert main(["people", "remove", str(trained.run), "--user", "alice"]) == 1
    printed = capsys.readouterr().out
    assert f"A TRACE REMAINS: {place}" in printed and "nothing is left" not in printed


def test_a_text_that_comes_back_into_the_cache_is_found(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "remove", lambda *_: 0)
    removal = remove(trained, "alice")
    assert not removal.proven and any("a text of theirs" in trace for trace in removal.traces)


def test_without_the_table_the_cache_is_not_proven(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kept = trained.table.rename(trained.root / "old.jsonl")
    assert main(["people", "remove", str(trained.run), "--user", "alice"]) == 1
    printed = capsys.readouterr().out
    assert "NOT PROVEN: that the cache has nothing of theirs" in printed and "there is no such file" in printed
    assert "alice" not in read_index(trained.run).people
    # The table of today, without them: known no more, but for the old table.
    trained.write_table(["42"])
    assert main(["people", "remove", str(trained.run), "--user", "alice"]) == 2
    assert main(["people", "remove", str(trained.run), "--user", "alice", "--data", str(kept)]) == 0
    assert main(["people", "remove", str(trained.run), "--user", "alice-marie"]) == 1
    assert "the table has no row of 'alice-marie'" in capsys.readouterr().out
    # Of one whose rows are known, and one whose are not, nothing is claimed for both.
    assert main(["people", "remove", str(trained.run), "--user", "42,émile 🙂"]) == 1
    assert "the table has no row of 'émile 🙂'" in capsys.readouterr().out


def test_leftovers_of_a_training_go_too(trained: Any) -> None:
    events = trained.run / "tensorboard" / "events.out.tfevents.1.host.2.0"
    for folder in (trained.run / "state" / "alice" / "checkpoint-2", events.parent / "alice"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("alice")
    records = [b"train/alice/loss 1", b"train/alice-marie/loss 1", b"brain.Event:2"]
    events.write_bytes(b"".join(len(text).to_bytes(8, "little") + b"crc1" + text + b"crc2" for text in records))
    removal = remove(trained, "alice")
    assert removal.proven
    assert not (trained.run / "state").exists() and list(events.parent.iterdir()) == [events]
    assert b"alice-marie" in events.read_bytes() and b"alice/" not in events.read_bytes()


def test_a_snapshot_of_many_people_is_not_taken_apart(trained: Any) -> None:
    (trained.run / "state").mkdir()
    (trained.run / "state" / "bank.pt").write_bytes(b"")
    with pytest.raises(InputError, match="snapshot holds many people"):
        remove(trained, "alice")
    assert (trained.run / "adapters" / "alice").is_dir()


def test_one_policy_for_all_lets_nobody_go(trained: Any, tmp_path: Path) -> None:
    run = tmp_path / "one"
    pluralign.train({**trained.config(), "output_dir": str(run), "parameters": {"per": "none"}})
    with pytest.raises(InputError, match="one policy for everybody"):
        remove_people(PeopleRemoveConfig(str(run), "alice"))


SEATS: dict[str, dict[str, Any]] = {
    "conditioned": {"conditioning": {"template": "Of {group}.\n{prompt}"}},
    "beside responses to other prompts": {"method": "kto"},
    "both": {"method": "kto", "conditioning": {"template": "Of {group}.\n{prompt}"}},
    "split by prompts that people share": {"method": "kto", "data": {"validation": 0.34, "split_by": "prompt"}},
    "other models asked": {"method": "dpo", "reference": {"models": ["OTHER", "base"]}},
}


@pytest.mark.parametrize("seats", SEATS)
def test_what_other_seats_have_cached_goes_too(seats: str, population: Any, tmp_path: Path, make_base: Any) -> None:
    """Once everybody has gone, in two calls, the cache is empty."""
    values = SEATS[seats]
    if "reference" in values:
        other = make_base()
        other.model.save_pretrained(tmp_path / "other")
        other.tokenizer.save_pretrained(tmp_path / "other")
        values = {**values, "reference": {"models": [str(tmp_path / "other"), "base"]}}
    if "data" in values:
        values = {**values, "data": {"path": str(tmp_path / "population" / "table.jsonl"), **values["data"]}}
    run = population(**values)
    assert run.lines("reference_logps")
    assert remove(run, "alice,42").proven
    run.write_table(["alice-marie", "émile 🙂"])
    assert remove(run, ["alice-marie", "émile 🙂", "ed"]).proven
    assert not run.lines("base_responses")
    assert not run.lines("reference_logps")


def test_other_identities_are_not_proven(population: Any) -> None:
    evaluation = {"generate": False, "identities": True}
    run = population(**SEATS["conditioned"], method="dpo", evaluation=evaluation)
    assert run.read("evaluation.json")["identities"]["all"]["n"] > 0
    removal = remove(run, "alice")
    assert any("under an identity of theirs" in reason for reason in removal.unproven)
    assert not removal.traces
