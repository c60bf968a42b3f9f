"""References that are given: what each says of a row, by hand, and what becomes of several."""

from __future__ import annotations

import gc
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.config import DataConfig, ModelConfig, ParametersConfig, ReferenceConfig
from pluralign.errors import InputError
from pluralign.models import given_models
from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
from pluralign.models.anchored_table import Anchored
from pluralign.models.bank import LoraBank
from pluralign.models.base import Base
from pluralign.models.cache import Cache
from pluralign.models.combined_references import Compared, check_reference, compare_rows
from pluralign.models.encoding import Encoder
from pluralign.models.given_models import ModelScores, model_encoder, score_models
from pluralign.models.given_references import GivenReference, check_adapters, find_references, references_hash
from pluralign.models.references import reference_logps, require_bare
from pluralign.preferences.schema import Place, Preference
from pluralign.training.conditions import recompute_activations

BRANCHES = ("chosen", "rejected", "base")
DATA = DataConfig(max_prompt_length=64, max_response_length=64)
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def row(number: int, prompt: Any, chosen: Any = None, rejected: Any = None, **more: Any) -> Preference:
    return Preference(prompt, chosen, rejected, place=Place("table.jsonl", number), **more)


def turn(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


ROWS = [
    row(1, "Where is it?", "Over there.", "No idea", base="Here"),
    row(2, "Warum?", "Darum", "Weil es so ist", user="b"),
    row(3, "Where is it?", "Over there.", "No idea", user="c"),
    row(4, "Only a prompt", base="An answer"),
    row(5, "Good alone", "fine"),
]


def encoder_of(base: Base, **changes: Any) -> Encoder:
    limits = {"max_prompt_length": 64, "max_response_length": 64, "context_length": 256}
    return Encoder(base.tokenizer, **{**limits, **changes})


def anchored(base: Base, rows: list[Preference] = ROWS) -> list[Anchored]:
    encoded = encoder_of(base).encode_many(rows, BRANCHES)
    return [Anchored(one, tokens, {}) for one, tokens in zip(rows, encoded, strict=True)]


@torch.no_grad()
def direct(model: Any, prompt: list[int], response: list[int]) -> float:
    logps = model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    return sum(logps[len(prompt) - 1 + at, token].item() for at, token in enumerate(response))


def asked(base: Base, names: list[str], cache: Cache, rows: list[Preference] = ROWS, **changes: Any) -> list[Compared]:
    """The whole way: found, scored, compared."""
    config = ReferenceConfig(models=names, **changes)
    check_reference(config)
    model = ModelConfig(model="memory", device="cpu", cache_dir=str(cache.folder))
    references = find_references(config, model)
    scores = score_models(references, rows, branches=BRANCHES, model=model, data=DATA, cache=cache)
    require_bare(base.model)
    found = compare_rows(base, anchored(base, rows), config, references, scores, cache, layout="shared")
    require_bare(base.model)
    return found


def single(found: list[Compared]) -> list[dict[str, float]]:
    assert all(one.weights == (1.0,) for one in found)
    return [one.logps[0] for one in found]


def near(found: dict[str, float], expected: dict[str, float], bound: float = 1e-4) -> None:
    assert found == pytest.approx(expected, abs=bound)


# ---- one reference ----


def test_the_base_speaks_as_it_always_does(tiny_base: Base, tmp_path: Path) -> None:
    rows = anchored(tiny_base)
    expected = reference_logps(tiny_base, [one.encoded for one in rows], Cache(tmp_path / "a"), layout="shared")
    assert single(asked(tiny_base, ["base"], Cache(tmp_path / "b"))) == expected


def test_an_adapter_speaks_and_leaves_the_base_bare(
    tiny_base: Base, save_one: Callable[..., Path], tmp_path: Path, count_forwards: Callable[[Any], list[int]]
) -> None:
    folder = save_one(tmp_path / "one", dropout=0.5)
    modules = list(tiny_base.model.named_modules())
    found = single(asked(tiny_base, [str(folder)], Cache(tmp_path / "cache")))
    assert list(tiny_base.model.named_modules()) == modules
    rows = anchored(tiny_base)
    base = reference_logps(tiny_base, [one.encoded for one in rows], Cache(tmp_path / "cache"), layout="shared")
    policy = new_adapter(tiny_base, ParametersConfig(), seed=0, start=folder)
    for one, own, values in zip(rows, base, found, strict=True):
        tokens = one.encoded
        expected = {name: direct(policy, tokens.prompt_ids, ids) for name, ids in tokens.response_ids.items()}
        if "base" in own:
            assert values["base"] == own["base"]
            expected["base"] = own["base"]
        near(values, expected)
        assert all(abs(values[name] - own[name]) > 1e-2 for name in values if name != "base")
    detach_adapter(policy)
    forwards = count_forwards(tiny_base.model)
    assert single(asked(tiny_base, [str(folder)], Cache(tmp_path / "cache"))) == found
    assert not forwards
    # Trained on, it is another under the same name.
    save_one(folder, seed=7)
    changed = single(asked(tiny_base, [str(folder)], Cache(tmp_path / "cache")))
    assert forwards
    assert changed[0]["chosen"] != found[0]["chosen"]
    assert changed[0]["base"] == found[0]["base"]


def test_a_model_reads_the_text_with_its_own_tokenizer(
    tiny_base: Base,
    save_model: Callable[..., Path],
    other_tokenizer: Any,
    tmp_path: Path,
    make_base: Callable[..., Base],
) -> None:
    folder = save_model(tmp_path / "other", tokenizer=other_tokenizer)
    model = make_base(1, vocab_size=300).model
    found = single(asked(tiny_base, [str(folder)], Cache(tmp_path / "cache")))
    for one, values in zip(ROWS, found, strict=True):
        prompt = other_tokenizer(one.prompt, add_special_tokens=False)["input_ids"]
        for name in values.keys() - {"base"}:
            response = other_tokenizer(getattr(one, name), add_special_tokens=False)["input_ids"]
            assert values[name] == pytest.approx(direct(model, prompt, [*response, 0]), abs=1e-4)
        assert values.keys() == one.responses.keys()
    # Other tokens indeed, of which the base would have made nothing.
    assert other_tokenizer("Over there.")["input_ids"] != tiny_base.tokenizer("Over there.")["input_ids"]
    assert len(other_tokenizer("Over there.")["input_ids"]) < len(tiny_base.tokenizer("Over there.")["input_ids"])


def test_messages_are_laid_out_by_the_models_own_template(
    tiny_base: Base,
    save_model: Callable[..., Path],
    other_tokenizer: Any,
    tmp_path: Path,
    make_base: Callable[..., Base],
) -> None:
    rows = [row(1, turn("Where?"), turn("There", "assistant"), turn("No", "assistant"))]
    folder = save_model(tmp_path / "bare", tokenizer=other_tokenizer)
    with pytest.raises(
        InputError, match=r"^reference\.models\[1\] \(.*bare\): table\.jsonl, row 1: .*has no chat template"
    ):
        asked(tiny_base, ["base", str(folder)], Cache(tmp_path / "cache"), rows)
    other_tokenizer.chat_template = TEMPLATE
    folder = save_model(tmp_path / "other", tokenizer=other_tokenizer)
    (found,) = single(asked(tiny_base, [str(folder)], Cache(tmp_path / "cache"), rows))
    model = make_base(1, vocab_size=300).model
    prompt = other_tokenizer("[user] Where?<end>[assistant] ", add_special_tokens=False)["input_ids"]
    for name, text in (("chosen", "There<end>"), ("rejected", "No<end>")):
        response = other_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert found[name] == pytest.approx(direct(model, prompt, response), abs=1e-4)


def test_a_short_context_cuts_and_says_so(
    tiny_base: Base, save_model: Callable[..., Path], tmp_path: Path, make_base: Callable[..., Base]
) -> None:
    folder = save_model(tmp_path / "short", max_position_embeddings=16)
    message = r"reference\.models\[0\] \(.*short\): of 3 rows, 1 had a prompt cut on the left and 2 a response cut"
    with pytest.warns(UserWarning, match=message):
        found = single(asked(tiny_base, [str(folder)], Cache(tmp_path / "cache")))
    model = make_base(1, vocab_size=300, max_position_embeddings=16).model
    encoded = encoder_of(tiny_base, context_length=16).encode(ROWS[0], ("chosen", "rejected"))
    assert encoded.cut
    near(
        {name: found[0][name] for name in encoded.response_ids},
        {name: direct(model, encoded.prompt_ids, ids) for name, ids in encoded.response_ids.items()},
    )


def test_a_second_run_loads_no_model_and_a_changed_one_does(
    tiny_base: Base, save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "other")
    first = asked(tiny_base, [str(folder), "base"], Cache(tmp_path / "cache"), combine="losses")
    loaded: list[str] = []
    load = given_models.load_base
    monkeypatch.setattr(given_models, "load_base", lambda config: (loaded.append(config.model), load(config))[1])
    assert asked(tiny_base, [str(folder), "base"], Cache(tmp_path / "cache"), combine="losses") == first
    assert asked(tiny_base, ["base", str(folder)], Cache(tmp_path / "cache"), combine="losses") != first
    assert not loaded
    more = [*ROWS, row(6, "Something", "new", "old")]
    again = asked(tiny_base, [str(folder), "base"], Cache(tmp_path / "cache"), more, combine="losses")
    assert (again[:-1], loaded) == (first, [str(folder)])
    save_model(folder, seed=2)
    assert asked(tiny_base, [str(folder), "base"], Cache(tmp_path / "cache"), combine="losses") != first
    assert loaded == [str(folder)] * 2


def test_one_model_is_in_memory_at_a_time_and_none_afterwards(
    tiny_base: Base, save_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [save_model(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    there: list[weakref.ref[Any]] = []
    load = given_models.load_base

    def watched(config: ModelConfig) -> Base:
        gc.collect()
        assert not any(one() for one in there)
        base = load(config)
        there.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr(given_models, "load_base", watched)
    model = ModelConfig(model="memory", device="cpu")
    references = find_references(ReferenceConfig(models=[*map(str, folders)]), model)
    scores = score_models(references, ROWS, branches=BRANCHES, model=model, data=DATA, cache=Cache(tmp_path / "cache"))
    assert len(there) == 3
    assert not any(one() for one in there)
    # What is left is plain numbers, which another process can be sent.
    sent = pickle.loads(pickle.dumps(scores))
    assert [sent.of(one, ROWS[1]) for one in references] == [scores.of(one, ROWS[1]) for one in references]
    assert scores.of(references[0], ROWS[3]) == {}
    assert scores.of(references[0], ROWS[4]).keys() == {"chosen"}
    with pytest.raises(LookupError, match=r"row 9 was not scored under reference\.models\[0\]"):
        scores.of(references[0], row(9, "Never", "seen", "before"))


def test_an_adapter_speaks_while_others_train_in_the_bank(
    tiny_base: Base, save_one: Callable[..., Path], tmp_path: Path
) -> None:
    """People's rows are anchored as their turn comes, with the bank on the base and activations recomputed."""
    folder = save_one(tmp_path / "one")
    expected = single(asked(tiny_base, [str(folder)], Cache(tmp_path / "a")))
    bank = LoraBank(tiny_base, ParametersConfig(rank=2), 1, trainable=True)
    bank.admit(0, seed=0)
    bank.matrix[0] += 0.05
    recompute_activations(tiny_base.model, on=True)
    tiny_base.model.train()
    ids = torch.arange(1, 20)[None]

    def forward() -> torch.Tensor:
        with bank.rows(torch.tensor([0])), torch.no_grad():
            return tiny_base.model(input_ids=ids).logits

    before, modes = forward(), [module.training for module in tiny_base.model.modules()]
    found = single(asked(tiny_base, [str(folder)], Cache(tmp_path / "b")))
    for one, other in zip(found, expected, strict=True):
        near(one, other, 1e-5)
    assert torch.equal(forward(), before)
    assert [module.training for module in tiny_base.model.modules()] == modes
    bank.detach()


# ---- what a name stands for, and what is refused ----


def test_the_runs_own_model_is_the_base_by_whatever_name(
    save_model: Callable[..., Path], save_one: Callable[..., Path], tmp_path: Path
) -> None:
    folder, other = save_model(tmp_path / "model"), save_model(tmp_path / "other", seed=2)
    adapter = save_one(tmp_path / "adapter")
    (tmp_path / "link").symlink_to(folder)
    names = ["base", str(folder), str(tmp_path / "link"), str(other), str(adapter), "nano"]
    found = find_references(ReferenceConfig(models=names), ModelConfig(model=str(folder)))
    assert [one.kind for one in found] == ["base", "base", "base", "model", "adapter", "model"]
    assert find_references(ReferenceConfig(models=["nano"]), ModelConfig())[0].kind == "base"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"there is no such folder"),
        ("a/model", r"there is no such folder, the hub is switched off"),
        ("run", r"it is the folder of a run\. Name one of the adapters in its folder adapters"),
        ("empty", r"neither adapter_config\.json nor config\.json"),
        ("file", r"it is a file, not a model's folder"),
    ],
)
def test_names_that_stand_for_nothing(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "adapters").mkdir(parents=True)
    (tmp_path / "run" / "adapters" / "index.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"^reference\.models\[1\] \({name}\): .*{message}"):
        find_references(ReferenceConfig(models=["base", name]), ModelConfig())


def test_a_model_that_cannot_be_loaded_is_named(
    tiny_base: Base, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "other")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"^reference\.models\[0\] \(.*other\): .*the folder has no weights"):
        asked(tiny_base, [str(folder)], Cache(tmp_path / "cache"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"^reference\.models\[0\] \(.*other\): .*tokenizer"):
        asked(tiny_base, [str(folder)], Cache(tmp_path / "cache"))


def test_an_adapter_of_another_base_is_refused(
    tiny_base: Base, make_base: Callable[..., Base], save_one: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_one(tmp_path / "one", base=make_base(5))
    references = find_references(ReferenceConfig(models=["base", str(folder)]), ModelConfig(model="memory"))
    message = r"^reference\.models\[1\] \(.*one\): .*the adapter belongs to the base 'tiny'"
    with pytest.raises(InputError, match=message):
        check_adapters(tiny_base, references)
    with pytest.raises(InputError, match=message):
        asked(tiny_base, ["base", str(folder)], Cache(tmp_path / "cache"))
    require_bare(tiny_base.model)
    check_adapters(tiny_base, [GivenReference(0, "one", "adapter", save_one(tmp_path / "own"))])
    require_bare(tiny_base.model)


def test_a_log_prob_that_is_no_number_names_reference_and_row(
    tiny_base: Base, save_one: Callable[..., Path], make_base: Callable[..., Base], tmp_path: Path
) -> None:
    rows = [ROWS[1], row(8, "Last", "one", "two")]
    broken = make_base(1)
    broken.model.model.norm.weight.data.fill_(float("nan"))
    broken.model.save_pretrained(tmp_path / "model")
    broken.tokenizer.save_pretrained(tmp_path / "model")
    policy = new_adapter(tiny_base, ParametersConfig(), seed=0)
    policy.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.data.fill_(float("inf"))
    save_adapter(policy, tmp_path / "adapter", base=tiny_base, user="a")
    detach_adapter(policy)
    for name in ("model", "adapter"):
        with (
            pytest.raises(
                InputError, match=rf"^reference\.models\[0\] \(.*{name}\): table\.jsonl, row 2: .*the log-prob nan"
            ),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # the layout cannot be checked on such a model
            asked(tiny_base, [str(tmp_path / name)], Cache(tmp_path / "cache"), rows)
        require_bare(tiny_base.model)
    assert not list((tmp_path / "cache").glob("reference_logps/*/segment-*"))


def test_what_the_references_are_has_a_hash(
    save_model: Callable[..., Path], save_one: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["base", str(save_one(tmp_path / "adapter")), str(save_model(tmp_path / "model"))]

    def now() -> str:
        found = find_references(ReferenceConfig(models=names), ModelConfig(model="memory"))
        return references_hash(found, Cache(tmp_path / "cache"))

    hashes = [now(), now()]
    save_one(tmp_path / "adapter", seed=3)
    hashes.append(now())
    save_model(tmp_path / "model", seed=3)
    hashes.append(now())
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_an_encoder_without_weights_is_that_of_the_model(save_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", max_position_embeddings=80)
    (folder / "model.safetensors").unlink()
    encoder = model_encoder(ModelConfig(model=str(folder)), DATA)
    assert (encoder.context_length, encoder.max_prompt_length) == (80, 64)


# ---- several as one ----


def test_three_of_all_kinds_by_hand(
    tiny_base: Base,
    save_model: Callable[..., Path],
    save_one: Callable[..., Path],
    other_tokenizer: Any,
    tmp_path: Path,
) -> None:
    names = [str(save_model(tmp_path / "m", tokenizer=other_tokenizer)), str(save_one(tmp_path / "a")), "base"]
    cache = Cache(tmp_path / "cache")
    alone = [single(asked(tiny_base, [name], cache)) for name in names]
    apart = asked(tiny_base, names, cache, combine="losses", weights=[1, 2, 1])
    found = single(asked(tiny_base, names, cache, weights=[1, 2, 1]))
    mean = single(asked(tiny_base, names, cache, combine="geometric", weights=[1, 2, 1]))
    for number, values in enumerate(found):
        assert apart[number].weights == (0.25, 0.5, 0.25)
        assert list(apart[number].logps) == [said[number] for said in alone]
        for name in values.keys() - {"base"}:
            weighed = [(weight, said[number][name]) for weight, said in zip((0.25, 0.5, 0.25), alone, strict=True)]
            harmonic = -math.log(sum(weight * math.exp(-logp) for weight, logp in weighed))
            assert values[name] == pytest.approx(harmonic, abs=1e-6)
            assert mean[number][name] == pytest.approx(sum(map(math.prod, weighed)), abs=1e-6)
        if "base" in ROWS[number].responses:
            assert values["base"] == alone[2][number]["base"] == apart[number].logps[0]["base"]


def test_nothing_is_scored_where_nothing_is_a_model(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    model = ModelConfig()
    references = find_references(ReferenceConfig(models=["base"]), model)
    found = score_models(references, ROWS, branches=BRANCHES, model=model, data=DATA, cache=cache)
    assert found == ModelScores(("chosen", "rejected"))
    assert not cache.folder.exists()
