"""People on a local Ray cluster of two workers: the adapters of one process, whatever happens to a worker."""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pluralign.cli import main
from pluralign.errors import InputError
from pluralign.resolve import as_yaml
from pluralign.training import cluster, train

LOSS = '''
import os, signal, time
from pathlib import Path
from pluralign.objectives import sigmoid_loss

PLACE = Path(os.environ["PLURALIGN_TEST_RAY"])
BEGAN = time.time()

def loss(margin, *, beta, columns, **_):
    """Notes each forward of a; kills a's first worker once it has written a snapshot, if there is an order to."""
    if columns["user"][0] == "a":
        with open(PLACE / "forwards", "a") as file:
            print(os.getpid(), file=file)
        if (PLACE / "order").exists():
            time.sleep(0.05)
            # Whoever has the most rows is in the first share.
            if (PLACE / "two" / "state" / "@bank-0-of-2.pt").stat().st_mtime > BEGAN + 0.1:
                (PLACE / "order").rename(PLACE / "killed")
                os.kill(os.getpid(), signal.SIGKILL)
    return sigmoid_loss(margin, beta=beta)
'''
STEPS = 80
PEOPLE = {"a": 20, "b.c": 5, "d": 11, "e": 14}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the loss of a test writes; on a local cluster of two CPUs."""
    import ray

    place = tmp_path_factory.mktemp("ray")
    (place / "loss_of_a_test.py").write_text(LOSS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("PLURALIGN_TEST_RAY", str(place))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Without one of its own Ray would put a token into the user's home.
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=80 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            yield place
        finally:
            ray.shutdown()


@pytest.fixture
def table(make_rows: Any) -> list[dict[str, Any]]:
    rows = [row for user, pairs in PEOPLE.items() for row in make_rows([user], pairs)]
    return [*rows, {"user": "z", "prompt": "Q :", "chosen": " a", "rejected": ""}]


def same(weights: Any, metrics: Any, one: Any, other: Any) -> None:
    """Adapters, people, lines of metrics (workers' come in another order), files."""
    assert list(one.adapters) == list(other.adapters)
    assert one.skipped == other.skipped
    for user, place in one.adapters.items():
        torch.testing.assert_close(weights(other.adapters[user]), weights(place), rtol=1e-8, atol=1e-10)
        for name in ("adapter_config.json", "pluralign.json"):
            assert (place / name).read_text() == (other.adapters[user] / name).read_text()
        lines = [metrics(run.output_dir, user) for run in (one, other)]
        assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    files = [sorted(path.relative_to(run.output_dir) for path in run.output_dir.rglob("*")) for run in (one, other)]
    assert files[0] == files[1]
    index = [(run.output_dir / "adapters/index.json").read_text() for run in (one, other)]
    assert index[0] == index[1]


def test_without_ray(table: Any, make_config: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = make_config(table, engine="ray")
    with pytest.raises(InputError, match=r"engine ray: Ray is not installed.*pip install 'pluralign\[ray\]'"):
        train(config)
    assert not Path(config.output_dir).exists()


def test_a_cluster_that_is_not_there(table: Any, make_config: Any, monkeypatch: Any) -> None:
    """Said at once, and the folder stays free for another command."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    config = make_config(table, engine="ray")
    with pytest.raises(InputError, match=r"RAY_ADDRESS 127\.0\.0\.1:1: Ray cannot be reached"):
        train(config)
    assert not Path(config.output_dir).exists()


def test_what_the_bank_cannot_do_ray_cannot(table: Any, make_config: Any) -> None:
    with pytest.raises(InputError, match=r"engine ray: .*cannot train people together.*adafactor"):
        train(make_config(table, engine="ray", training={"extra_arguments": {"optim": "adafactor"}}))


# ---- on the cluster ----


@pytest.mark.slow
def test_a_killed_workers_share_goes_on(
    place: Path, table: Any, make_config: Any, weights: Any, metrics: Any, tmp_path: Path
) -> None:
    common = {
        "dtype": "float64",
        "loss": {"type": "loss_of_a_test:loss"},
        "data": {"validation": 0.0},
        "training": {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1},
    }
    single = make_config(table, "one", engine="bank", **common)
    one = train(single)
    counted = (place / "forwards").read_text().split()
    assert counted == [str(os.getpid())] * STEPS
    (place / "forwards").unlink()
    (place / "order").touch()
    two = train(replace(single, engine="ray", output_dir=str(place / "two"), cache_dir=str(tmp_path / "fresh")))
    assert (place / "killed").exists()
    workers = (place / "forwards").read_text().split()
    assert len(set(workers)) == 2
    # The second worker of the share made a's last steps only.
    assert workers.count(workers[-1]) < STEPS
    same(weights, metrics, one, two)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_grows(
    place: Path, table: Any, make_rows: Any, make_config: Any, weights: Any, metrics: Any, monkeypatch: Any
) -> None:
    common = {"dtype": "float64", "training": {"num_train_epochs": 6}}
    single, several = (make_config(table, name, engine=name, **common) for name in ("bank", "ray"))
    several.data.path = single.data.path
    with monkeypatch.context() as patch:
        import ray

        wait = ray.wait

        def interrupt(references: list[Any], **options: Any) -> Any:
            if options.get("num_returns"):
                return wait(references, **options)
            raise KeyboardInterrupt

        patch.setattr(ray, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(several)
    state = Path(several.output_dir) / "state"
    assert {path.name for path in state.glob("@bank-*")} == {"@bank-0-of-2.pt", "@bank-1-of-2.pt"}
    one, other = train(single), train(several)
    same(weights, metrics, one, other)
    evaluations = [json.loads((run.output_dir / "evaluation.json").read_text()) for run in (one, other)]
    assert evaluations[0]["people"].keys() == evaluations[1]["people"].keys() == PEOPLE.keys()
    # One more person and one anew: the others' files are not touched.
    kept = {path: path.stat().st_mtime_ns for path in other.adapters["d"].iterdir()}
    more = [*table, *make_rows(["new"], 6), *make_rows(["a"], 30)[20:]]
    runs = []
    for before, engine in ((one, "bank"), (other, "ray")):
        config = make_config(more, "more", engine=engine, update="a", **common)
        runs.append(train(replace(config, output_dir=str(before.output_dir))))
    same(weights, metrics, *runs)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert list(runs[1].adapters) == [*PEOPLE, "new"]
    # With nothing to do no cluster is asked for.
    monkeypatch.setattr("pluralign.training.run.connected", None)
    again = train(replace(config, output_dir=str(runs[1].output_dir), update=[]))
    assert again.adapters == runs[1].adapters


@pytest.mark.slow
def test_a_workers_error_is_the_commands(
    place: Path, make_rows: Any, make_config: Any, monkeypatch: Any, tmp_path: Path, capfd: Any
) -> None:
    """Here of a worker that does not see the folder."""
    config = make_config(make_rows(["a"], 4), engine="ray")
    (tmp_path / "run.yaml").write_text(as_yaml(config))
    monkeypatch.setattr(cluster, "write_text", lambda path, text: None)
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    said = capfd.readouterr().err
    assert "does not see the run's folder" in said
    assert f"pluralign: {config.output_dir}: " in said
    assert "Traceback" not in said
