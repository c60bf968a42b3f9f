"""The conditioning seat in a run: what policy, reference and evaluation are shown."""

from __future__ import annotations

from typing import Any

import pytest

from pluralign.config import EvaluateConfig, EvaluationConfig
from pluralign.errors import InputError
from pluralign.evaluation import evaluate, read_evaluation
from pluralign.training import train

TEMPLATE = "Style : {group}\n{prompt}"


@pytest.fixture
def opposed(make_rows: Any) -> list[dict[str, Any]]:
    """Two groups that choose the opposite of each other, on the same pairs."""
    rows = [{key: value for key, value in row.items() if key != "user"} for row in make_rows(["a"], 24)]
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return [{**row, "group": name} for name, table in (("detailed", rows), ("playful", turned)) for row in table]


def configured(make_config: Any, table: Any, name: str = "run", **changes: Any) -> Any:
    training = {"num_train_epochs": 30, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "logging_steps": 50}
    common = {"parameters": {"per": "none"}, "training": training, "data": {"validation": 0.0}}
    return make_config(table, name, **{**common, **changes})


def test_groups_that_disagree_need_to_be_told_apart(make_config: Any, opposed: Any, metrics: Any) -> None:
    last = {}
    for name, template in (("told", TEMPLATE), ("not told", "")):
        result = train(configured(make_config, opposed, name, conditioning={"template": template}))
        last[name] = [line for line in metrics(result.output_dir) if "loss" in line][-1]["loss"]
    assert last["told"] < 0.3
    assert last["not told"] > 0.65


def test_whether_the_model_listens(make_config: Any, opposed: Any, tmp_path: Any) -> None:
    config = configured(
        make_config,
        opposed,
        conditioning={"template": TEMPLATE},
        data={"validation": str(tmp_path / "run.jsonl")},
        evaluation=EvaluationConfig(generate=False, identities=True),
    )
    result = train(config)
    made = evaluate(
        EvaluateConfig(
            run=str(result.output_dir),
            output=str(tmp_path / "again.json"),
            evaluation=EvaluationConfig(generate=False, identities=True),
        )
    )
    assert made.identities is not None
    everybody = made.identities["all"]
    assert everybody["right"]["accuracy"] > 0.9
    assert everybody["random"]["accuracy"] < 0.1
    assert everybody["missing"]["accuracy"] == pytest.approx(0.5)
    files = (result.output_dir / "evaluation.json", tmp_path / "again.json")
    first, again = (read_evaluation(path).identities for path in files)
    assert first == again


def test_a_row_without_a_value_is_left_out_by_name(make_config: Any, make_rows: Any) -> None:
    rows = make_rows(["a"], mood=lambda number: "calm" if number else None)
    with pytest.warns(UserWarning, match="row 1, column 'mood': the row has no value"):
        assert train(make_config(rows, conditioning={"template": "{mood} {prompt}"})).adapters


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"conditioning": {"template": "{mood} {prompt}"}}, r"conditioning\.template names \{mood\}"),
        ({"conditioning": {"template": "{user}"}}, r"does not say where the prompt goes"),
        ({"conditioning": {"system": "{user}"}}, r"the prompt is text, and only conditioning\.system is set"),
        ({"evaluation": {"identities": True}}, r"evaluation\.identities is set, and prompts are not conditioned"),
    ],
)
def test_what_is_refused(changes: Any, found: str, make_config: Any, make_rows: Any) -> None:
    with pytest.raises(InputError, match=found):
        train(make_config(make_rows(["a"]), **changes))


def test_a_profile_longer_than_the_context_is_named(make_config: Any, make_rows: Any) -> None:
    rows = make_rows(["a"], profile=lambda number: "night " * (2000 if number == 3 else 1))
    with pytest.warns(
        UserWarning, match=r"row 4, column 'profile': what stands for the person leaves the prompt no room"
    ):
        assert train(make_config(rows, conditioning={"template": "{profile}\n{prompt}"})).adapters


def test_a_run_that_grows_says_that_identities_are_gone(make_config: Any, make_rows: Any) -> None:
    rows = make_rows(["a", "b"])
    settings = {"evaluation": EvaluationConfig(generate=False, identities=True)}
    settings["conditioning"] = {"template": "{user} {prompt}"}
    first = make_config(rows, **settings)
    assert (read := read_evaluation(train(first).output_dir / "evaluation.json").identities) and read["all"]["n"]
    grown = make_config([*rows, *make_rows(["c"])], **settings)
    with pytest.warns(UserWarning, match=r"no `identities` any more"):
        result = train(grown)
    assert read_evaluation(result.output_dir / "evaluation.json").identities is None
