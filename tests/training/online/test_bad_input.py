"""What prompts, responses and plans may be like: clear errors, and nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pluralign.errors import InputError
from pluralign.models.generation import Generated
from pluralign.training.online.files import read_candidates, read_pairs
from pluralign.training.online.run import online

Make = Callable[..., Any]


def test_a_prompt_that_fills_the_context_is_named_with_whose_it_is(
    make_rows: Make, make_online: Make, counting: Any
) -> None:
    rows = make_rows("ab")
    rows[-1]["prompt"] = rows[-1]["prompt"] * 400
    config = make_online(rows, data={"max_prompt_length": 100_000, "validation": 0.0})
    with pytest.raises(InputError, match=r"row \d+.*user 'b'.*fills the model's context") as found:
        online(config, counting())
    assert "max_prompt_length" in str(found.value)
    # With the prompt cut the same folder goes on, as a run of its own.
    cut = replace(config, data=replace(config.data, max_prompt_length=20), overwrite=True)
    assert set(online(cut, counting()).adapters) == {"a", "b"}


def test_responses_that_are_empty_or_never_end_are_rows_like_others(
    make_rows: Make, make_online: Make, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pluralign.training.online import sampling

    generate = sampling.generate

    def odd(*arguments: Any, **keywords: Any) -> list[Generated]:
        made = generate(*arguments, **keywords)
        for number, one in enumerate(made):
            if number % 3 == 0:
                made[number] = Generated("", [], True, one.end, [])
            elif number % 3 == 1:
                made[number] = Generated("night night night", one.token_ids, False, None, [])
        return made

    monkeypatch.setattr(sampling, "generate", odd)
    config = make_online(make_rows("ab"))
    assert set(online(config, counting()).adapters) == {"a", "b"}
    place = Path(config.output_dir) / "phases" / "0000"
    said = [one for row in read_candidates(place / "candidates-0000.jsonl") for one in row.responses]
    assert {("", True), ("night night night", False)} <= {(one.text, one.finished) for one in said}
    # An empty response is its end alone, a cut one has none.
    assert all(one.tokens == 1 for one in said if not one.text) and all(one.tokens > 0 for one in said)
    assert any("" in (pair.chosen.text, pair.rejected.text) for pair in read_pairs(place / "pairs-0000.jsonl"))


def test_an_annotator_that_always_errs_loses_nothing(make_rows: Make, make_online: Make, counting: Any) -> None:
    config = make_online(make_rows("ab"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of patience"):
            online(config, counting(fails_after=0))
    place = Path(config.output_dir) / "phases" / "0000"
    before = (place / "candidates-0000.jsonl").read_bytes()
    assert set(online(config, counting()).adapters) == {"a", "b"}
    assert (place / "candidates-0000.jsonl").read_bytes() == before


def test_a_table_that_has_changed_is_not_gone_on_with(make_rows: Make, make_online: Make, counting: Any) -> None:
    config = make_online(make_rows("ab"), annotator={"batch_size": 4})
    with pytest.raises(RuntimeError):
        online(config, counting(fails_after=4))
    path = Path(str(config.data.path))
    content = path.read_text()
    path.write_text(content.replace("Question", "Query", 1))
    with pytest.raises(InputError, match="differs in the content of the data"):
        online(config, counting())
    path.write_text(content)
    assert set(online(config, counting()).adapters) == {"a", "b"}


def test_the_base_is_loaded_once(
    make_rows: Make, make_online: Make, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For sampling, references, learning and the evaluation together, with an anchor and a moving reference."""
    from pluralign.models import base

    loaded: list[Any] = []
    load = base._load_model
    monkeypatch.setattr(base, "_load_model", lambda *given: loaded.append(given) or load(*given))
    config = make_online(make_rows("ab"), reference={"policy": "periodic", "every": 1, "kl_to_base": 0.1})
    config.anchor.base.weight = 0.5
    config = replace(config, evaluation=replace(config.evaluation, generate=True))
    online(config, counting())
    assert (Path(config.output_dir) / "evaluation.json").exists() and len(loaded) == 1
