"""Predictors from table to file and back, on the command line, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pluralign.cli import main
from pluralign.config import EmbeddingConfig, FewshotFitConfig, ModuleTrainingConfig
from pluralign.errors import InputError
from pluralign.fewshot import predictor, predictor_file
from pluralign.fewshot.answers import Answers, Question
from pluralign.fewshot.choosing import Annotator
from pluralign.fewshot.predictor import Predictor, fit_predictor
from pluralign.fewshot.predictor_file import load_predictor, save_predictor
from pluralign.fewshot.running import fit_fewshot, predict_fewshot
from pluralign.resolve import resolve

TOPICS = ("sport", "music", "food", "travel", "books", "games", "work", "garden")


def rows(groups: range, questions: int = 16) -> list[dict[str, Any]]:
    """Groups that like or dislike everything, more or less, and a little by chance."""
    found = []
    for group in groups:
        draw = np.random.default_rng(group)
        liking = draw.uniform(0.1, 0.9)
        for number in range(questions):
            like = float(np.clip(liking + draw.normal() * 0.05, 0.02, 0.98))
            text = f"Do you enjoy {TOPICS[number % 8]} {'alone' if number < 8 else 'with friends'}?"
            row = {"group": f"g{group}", "question": text, "options": ["Yes, I do", "No, I do not"]}
            found.append({**row, "distribution": [like, 1 - like]})
    return found


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def answers(lines: list[dict[str, Any]]) -> Answers:
    found = Answers()
    for line in lines:
        found.add(line["group"], Question(line["question"], tuple(line["options"])), np.array(line["distribution"]))
    return found


def test_a_predictor_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_file, "SCHEMA_VERSION", 3)
    save_predictor(fit_predictor(answers(rows(range(8))), FewshotFitConfig()), tmp_path / "old.safetensors")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"its schema version is 3, and this program reads 5.*fit again"):
        load_predictor(tmp_path / "old.safetensors")


@pytest.mark.parametrize("lacking", ["questions", "known.mean_weights", "head"])
def test_a_predictor_that_lacks_something_is_refused(lacking: str, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_predictor(fit_predictor(answers(rows(range(8))), FewshotFitConfig()), path)
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in list(file.keys()) if name != lacking}
        head = json.loads(file.metadata()["pluralign"])
    if lacking == "head":
        del head["tastes"]
    save_file(arrays, path, {"pluralign": json.dumps(head)})
    with pytest.raises(InputError, match="something in it is not there") as error:
        load_predictor(path)
    assert error.value.where == str(path)
    save_file(arrays, path, {"pluralign": "[]"})
    with pytest.raises(InputError, match="its schema version is None"):
        load_predictor(path)


@pytest.mark.parametrize("kind", ["taste", "gpo"])
def test_many_groups_are_predicted_as_each_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(FewshotFitConfig, {"predictor": kind, "module": {"steps": 3}})
    fitted = fit_predictor(answers(rows(range(12))), config)
    # Some answered what others did not, in another order.
    new = [line for number, line in enumerate(rows(range(20, 26))[::-1]) if number % 3 == 0]
    asked = [Question("Tea?", ("Yes", "No"))]
    whole = fitted.predict(answers(new), asked)
    monkeypatch.setattr(predictor, "PART", 12)
    parts = list(answers(new).parts(12))
    assert len(parts) > 1 and [group for part in parts for group in part.groups] == list(answers(new).groups)
    for one, other in zip(whole, fitted.predict(answers(new), asked), strict=True):
        assert one.group == other.group
        np.testing.assert_allclose(one.shares, other.shares, atol=1e-6)


def test_options_in_another_order_are_no_other_question() -> None:
    fitted = fit_predictor(answers(rows(range(12))), FewshotFitConfig())
    context = answers(rows(range(20, 21), questions=8))
    asked = Question("Do you enjoy music with friends?", ("Yes, I do", "No, I do not"))
    turned = Question(asked.text, asked.options[::-1])
    one, other = fitted.predict(context, [asked, turned])
    assert one.known and other.known
    np.testing.assert_allclose(one.shares, other.shares[::-1], atol=0.05)
    answered = context.questions[0]
    with pytest.raises(InputError, match=r"group 'g20' has answered 'Do you enjoy sport alone.', which is to be"):
        fitted.predict(context, [Question(answered.text, answered.options[::-1])])
    assert fitted.ask(context, [Question(answered.text, answered.options[::-1]), asked])[0][0] == asked


def test_a_judge_says_the_same_of_responses_in_any_order() -> None:
    judge = Annotator(fit_predictor(answers(rows(range(8))), FewshotFitConfig()), answers(rows(range(20, 21))))
    responses = ["Yes, I do", "No, I do not", "Perhaps, on Sundays", "Never in my life", "Always, and gladly"]
    (shares,) = judge.shares(["Do you enjoy tea?"], [responses])
    (turned,) = judge.shares(["Do you enjoy tea?"], [responses[::-1]])
    assert shares == turned[::-1] and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["taste", "gpo"])
def test_a_predictor_read_back_says_the_same(kind: str, tmp_path: Path) -> None:
    config = resolve(FewshotFitConfig, {"predictor": kind, "module": {"steps": 3}})
    fitted = fit_predictor(answers(rows(range(20))), config)
    save_predictor(fitted, tmp_path / "one.safetensors")
    again = load_predictor(tmp_path / "one.safetensors")
    context = answers([line for line in rows(range(20, 22)) if "alone" in line["question"]])
    questions = [
        Question("Do you enjoy music with friends?", ("Yes, I do", "No, I do not")),
        Question("Tea?", ("Yes", "No")),
    ]
    first, second = fitted.predict(context, questions), again.predict(context, questions)
    assert [(one.group, one.known) for one in first] == [("g20", True), ("g20", False), ("g21", True), ("g21", False)]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.shares, other.shares, atol=1e-12)
        assert (one.low is None) == (other.low is None) == (kind == "gpo")
        if one.low is not None and one.high is not None and other.low is not None:
            assert (one.low <= one.shares).all() and (one.shares <= one.high).all()
            np.testing.assert_allclose(one.low, other.low, atol=1e-12)
    assert again.summary() == fitted.summary()
    assert again.config == fitted.config and again.config["module"]["steps"] == 3
    assert kind == "gpo" or again.fitted.tastes.new.lift is not None, "new questions are read in a space of their own"


def test_the_commands_predict_a_new_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [write(tmp_path / f"{n}.jsonl", rows(range(6 * n, 6 * n + 6))) for n in range(2)]
    new = rows(range(30, 31))
    mine = write(tmp_path / "mine.jsonl", new[:8])
    asked = write(
        tmp_path / "asked.jsonl", [{name: line[name] for name in ("question", "options")} for line in new[8:]]
    )
    fitted, out = tmp_path / "p.safetensors", tmp_path / "predictions.jsonl"
    assert main(["fewshot", "fit", *map(str, tables), "--output", str(fitted)]) == 0
    assert "learned of 12 groups and 16 questions; alignment" in capsys.readouterr().out
    arguments = ["--predictor", str(fitted), "--answers", str(mine), "--questions", str(asked), "--output", str(out)]
    assert main(["fewshot", "predict", *arguments]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["question"] for line in found] == [line["question"] for line in new[8:]]
    for line, truth in zip(found, new[8:], strict=True):
        assert line["distribution"][0] == pytest.approx(truth["distribution"][0], abs=0.15)
        assert line["low"][0] < line["distribution"][0] < line["high"][0] and line["known"]


def test_what_to_ask_next_is_what_tells_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = rows(range(12))
    # What nobody answers by their liking tells nothing of it.
    for group in range(12):
        share = float(np.random.default_rng(100 + group).uniform(0.1, 0.9))
        asked = {"question": "Heads or tails?", "options": ["Heads it is", "Tails it is"]}
        lines.append({"group": f"g{group}", **asked, "distribution": [share, 1 - share]})
    made = fit_fewshot({"data": str(write(tmp_path / "all.jsonl", lines)), "output": str(tmp_path / "p.safetensors")})
    pool = write(tmp_path / "pool.jsonl", [lines[3], lines[5], lines[-1]])
    mine = write(tmp_path / "mine.jsonl", [{**lines[5], "group": "me"}])
    keys = ["--predictor", str(made.path), "--questions", str(pool)]
    assert main(["fewshot", "ask", *keys, "--output", str(tmp_path / "next.jsonl")]) == 0
    assert capsys.readouterr().out.startswith("Do you enjoy")
    worth = [json.loads(line)["worth"] for line in (tmp_path / "next.jsonl").read_text().splitlines()]
    assert len(worth) == 3 and worth == sorted(worth, reverse=True)
    # Of what nobody answers by their liking, only its own answer tells anything.
    tails = write(tmp_path / "tails.jsonl", [lines[-1]])
    assert main(["fewshot", "ask", *keys, "--targets", str(tails)]) == 0
    assert capsys.readouterr().out.startswith("Heads or tails?")
    assert main(["fewshot", "ask", *keys, "--answers", str(mine), "--targets", str(mine)]) == 2
    assert "group 'me' has answered" in capsys.readouterr().err
    assert main(["fewshot", "ask", *keys, "--answers", str(mine)]) == 0
    assert lines[5]["question"] not in capsys.readouterr().out
    assert main(["fewshot", "ask", *keys, "--answers", str(write(tmp_path / "all2.jsonl", lines))]) == 2
    assert "there are answers of 12" in capsys.readouterr().err


def test_preferences_are_read_as_answers(tmp_path: Path) -> None:
    lines = []
    for user in range(6):
        for number in range(10):
            sides = (
                f"A short reply on {TOPICS[number % 8]} {number}.",
                f"A reply that is long, long, long on {number}.",
            )
            chosen, rejected = sides if user % 2 else sides[::-1]
            lines.append({"user": f"u{user}", "prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected})
    table = write(tmp_path / "pairs.jsonl", lines[:40])
    made = fit_fewshot({"data": str(table), "output": str(tmp_path / "p.safetensors")})
    assert made.predictor.groups == 4 and len(made.predictor.seen) == 10
    mine = write(tmp_path / "mine.jsonl", lines[40:45])
    asked = write(tmp_path / "asked.jsonl", lines[45:50])
    found = predict_fewshot(
        {
            "predictor": str(made.path),
            "answers": str(mine),
            "questions": str(asked),
            "output": str(tmp_path / "out.jsonl"),
        }
    )
    # User 4 prefers the long replies, as do users 0 and 2.
    assert all(one.question.options[int(one.shares.argmax())].startswith("A reply that is long") for one in found)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    table = write(tmp_path / "groups.jsonl", rows(range(8)))
    path = fit_fewshot({"data": str(table), "output": str(tmp_path / "p.safetensors")}).path
    with pytest.raises(InputError, match="the file is there"):
        fit_fewshot({"data": str(table), "output": str(path)})
    with pytest.raises(InputError, match="none has two answers"):
        one = write(tmp_path / "one.jsonl", rows(range(3), questions=1))
        fit_fewshot({"data": str(one), "output": str(tmp_path / "q.safetensors")})
    pair = {"user": "me", "prompt": "Tea?", "chosen": "Yes", "rejected": "Yes"}
    with pytest.raises(InputError, match=r"row 2, column 'rejected': .*user 'me': chosen and rejected are equal"):
        fit_fewshot({"data": str(write(tmp_path / "same.jsonl", [{**pair, "chosen": "No"}, pair]))})
    with pytest.raises(InputError, match=r"mine\.jsonl, row 2: group 'g20' has answered"):
        mine = write(tmp_path / "mine.jsonl", rows(range(20, 21), questions=2))
        asked = write(tmp_path / "asked.jsonl", rows(range(20, 21), questions=2)[1:])
        predict_fewshot({"predictor": str(path), "answers": str(mine), "questions": str(asked)})
    with pytest.raises(InputError, match="data names no table"):
        fit_fewshot({"output": str(tmp_path / "q.safetensors")})
    context, asked = answers(rows(range(20, 21))), Question("Tea?", ("Yes", "No"))
    fitted = load_predictor(path)
    with pytest.raises(InputError, match=r"group 'g20' has answered 'Do you enjoy sport alone.', which is to be"):
        fitted.predict(context, [context.questions[0]])
    with pytest.raises(InputError, match=r"level is 0\.7"):
        fitted.predict(context, [asked], level=0.7)
    with pytest.raises(InputError, match="group 'empty' has no answers"):
        fitted.predict(Answers(groups={"empty": {}}), [asked])
    other = Predictor(fitted.embeddings, "another", fitted.fitted, fitted.seen, 8)
    with pytest.raises(InputError, match="'ngrams' is not the model that the predictor was fitted with"):
        other.predict(context, [asked])
    for content, found in ((b"", "cannot be read"), (b"{}" * 40, "cannot be read")):
        (tmp_path / "no.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=found):
            load_predictor(tmp_path / "no.safetensors")
    for keys, found in (
        ({"seed": -1}, "seed is -1"),
        ({"module": {"groups": 0}}, r"module\.groups is 0"),
        ({"module": {"learning_rate": -1}}, r"module\.learning_rate is -1"),
    ):
        with pytest.raises(InputError, match=found):
            fit_fewshot({"data": str(table), "output": str(tmp_path / "q.safetensors"), **keys})
    with pytest.raises(InputError, match=r"the module's loss is (nan|inf) at step"):
        diverging = {"predictor": "gpo", "module": {"steps": 20, "learning_rate": 1e12, "loss": "gaussian_nll"}}
        fit_fewshot({"data": str(table), "output": str(tmp_path / "q.safetensors"), **diverging})
    with pytest.raises(InputError, match="there is no such file"):
        load_predictor(tmp_path / "nowhere.safetensors")
    with pytest.raises(InputError, match=r"embeddings\.model is 'nowhere/model'"):
        config = FewshotFitConfig(embeddings=EmbeddingConfig(model="nowhere/model"), module=ModuleTrainingConfig())
        fit_predictor(answers(rows(range(8))), config)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "has a layer Dense, without which"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "does not pool by the mean over tokens"),
    ],
)
def test_sentence_models_that_are_more_than_a_mean_are_refused(
    name: str, content: Any, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "model" / name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=found) as error:
        config = FewshotFitConfig(embeddings=EmbeddingConfig(model=str(tmp_path / "model")))
        fit_predictor(answers(rows(range(8))), config)
    assert error.value.where == str(path)
