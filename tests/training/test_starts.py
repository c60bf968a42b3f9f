"""Who begins with what: everybody with one adapter, or each with their own from another run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from pluralign.config import ParametersConfig
from pluralign.errors import InputError
from pluralign.models.adapters import detach_adapter, new_adapter, save_adapter
from pluralign.models.base import Base
from pluralign.preferences import ALL, folder_name
from pluralign.training.index import write_index
from pluralign.training.starts import Starts, resolve_starts

SHAPE = ParametersConfig(rank=3, alpha=5.0, dropout=0.2, target_modules=["q_proj"])


@pytest.fixture
def save_run(tiny_base: Base) -> Callable[..., Path]:
    """A function that makes the folder of a run with adapters of some people."""

    def save(run: Path, users: list[str], shape: ParametersConfig = SHAPE, base: Base = tiny_base) -> Path:
        for seed, user in enumerate(users):
            policy = new_adapter(base, shape, seed=seed)
            save_adapter(policy, run / "adapters" / folder_name(user), base=base, user=user)
            detach_adapter(policy)
        write_index(run, {user: folder_name(user) for user in users}, {"late": "no rows"})
        return run

    return save


def start_with(folder: Path | str) -> ParametersConfig:
    return ParametersConfig(rank=16, start=str(folder))


def like_shape(found: ParametersConfig) -> bool:
    return (found.rank, found.alpha, found.dropout, found.target_modules) == (3, 5.0, 0.2, ["q_proj"])


def test_without_a_start_everybody_is_fresh() -> None:
    found = resolve_starts(SHAPE, ["ann", "bob"])
    assert found == Starts(SHAPE)
    assert found.of("ann") is None


def test_one_adapter_for_everybody(save_run: Callable[..., Path], tiny_base: Base, tmp_path: Path) -> None:
    folder = save_run(tmp_path / "run", ["ann"]) / "adapters" / "ann"
    found = resolve_starts(start_with(folder), ["bob", "Cy"])
    assert [found.of(user) for user in ("bob", "Cy")] == [folder] * 2
    assert like_shape(found.parameters)
    found.check(tiny_base)


def test_each_their_own_and_who_has_none_is_named(save_run: Callable[..., Path], tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", ["ann", "Bob.C", "dee"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = resolve_starts(start_with(run), ["Bob.C", "ann"])
    assert found.of("Bob.C") == run / "adapters" / folder_name("Bob.C")
    assert found.of("ann") == run / "adapters" / "ann"
    assert like_shape(found.parameters)
    message = r"parameters\.start \(.*run\) has no adapter of late, zoe: they begin with a fresh one"
    with pytest.warns(UserWarning, match=message):
        found = resolve_starts(start_with(run), ["late", "ann", "zoe"])
    assert found.of("late") is None
    assert found.own.keys() == {"ann"}
    with pytest.warns(UserWarning, match="p4 and 3 more"):
        found = resolve_starts(start_with(run), [f"p{number}" for number in range(8)])
    # Fresh ones share a bank with the others.
    assert like_shape(found.parameters)


def test_what_cannot_be_begun_with(
    save_run: Callable[..., Path], make_base: Callable[..., Base], tiny_base: Base, tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run", ["ann", "bob"])
    shared = save_run(tmp_path / "shared", [ALL])
    empty = save_run(tmp_path / "empty", [])
    for start, users, message in (
        (tmp_path, ["ann"], r"neither adapter_config\.json nor adapters/index\.json"),
        (run, [ALL], r"an adapter each for its people.*folder of one of them"),
        (shared, ["ann"], r"one adapter for everybody.*_all for everybody"),
        (empty, ["ann"], "the run has no adapter"),
    ):
        with pytest.raises(InputError, match=rf"^parameters\.start \({start}\): .*{message}"):
            resolve_starts(start_with(start), users)
    assert resolve_starts(start_with(shared), [ALL]).of(ALL) == shared / "adapters" / "_all"
    full = ParametersConfig(kind="full", per="none", start=str(run))
    with pytest.raises(InputError, match=r"parameters\.kind is full"):
        resolve_starts(full, [ALL])
    save_run(tmp_path / "mixed", ["ann"])
    mixed = save_run(tmp_path / "mixed", ["bob"], ParametersConfig(rank=4, target_modules=["q_proj"]))
    write_index(mixed, {"ann": "ann", "bob": "bob"}, {})
    found = resolve_starts(start_with(mixed), ["ann", "bob"])
    found.check(tiny_base)
    policy = new_adapter(tiny_base, SHAPE, seed=0)
    like = policy.peft_config["default"]
    detach_adapter(policy)
    with pytest.raises(InputError, match=r"bob: the adapter has r 4, and the others 3"):
        found.check(tiny_base, like)
    with pytest.raises(InputError, match="belongs to the base"):
        found.check(make_base(1))
