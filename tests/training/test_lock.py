"""Two processes on one folder: the second is told who is there, and a kill leaves nothing to clear away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pluralign.config import PeopleRemoveConfig
from pluralign.errors import InputError
from pluralign.people.listing import list_people
from pluralign.people.removal import remove_people
from pluralign.training import lock, train
from pluralign.training.lock import locked

HOLD = """
import sys
from pathlib import Path
from pluralign.training.lock import locked
with locked(Path(sys.argv[1]), command="pluralign train"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_is_there_and_a_kill_frees_the_folder(make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["a"], pairs=4), training={"max_steps": 1})
    folder = Path(config.output_dir)
    with held(folder) as holder:
        who = rf"pluralign train, process {holder.pid} on {socket.gethostname()}, since 20\d\d-"
        with pytest.raises(InputError, match=who):
            train(config)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert (folder / ".lock").exists()
    result = train(config)
    assert not (folder / ".lock").exists()
    with held(folder):
        with pytest.raises(InputError, match="another process is at work"):
            remove_people(PeopleRemoveConfig(str(folder), "a"))
        # Who only reads asks nobody.
        assert [entry.user for entry in list_people(str(folder))] == ["a"]
    assert train(config) == result


def test_what_is_refused_leaves_no_folder(make_rows: Any, make_config: Any) -> None:
    config = make_config(make_rows(["a"], pairs=4), weighting={"column": "wieght"})
    with pytest.raises(InputError):
        train(config)
    assert not Path(config.output_dir).exists()


def test_a_lock_file_that_was_removed_meanwhile_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before its holder removed it, locked afterwards: it is not the one that others find."""
    path = tmp_path / ".lock"
    kept, removed = lock.fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        kept(descriptor, how)
        if not removed:
            path.unlink()
            removed.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(tmp_path, command="first"):
        assert removed and path.exists()
        with pytest.raises(InputError, match="first"), locked(tmp_path, command="second"):
            pass
    assert not path.exists()


def test_without_locks_of_the_system_there_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(UserWarning, match="no file locks"), locked(tmp_path / "run", command="any"):
        pass
    assert not (tmp_path / "run").exists()
