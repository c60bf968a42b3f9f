"""Runs `train`, `online` or `people remove` in forked processes that die at a given moment.

Imports once: seconds are saved. Reads a JSON line a run from stdin, `{"config": {...}, "die_at": n | null,
"seconds": s | null, "remove": id | null, "watch": folder}` (a configuration with `pairs` is one of `online`), and
answers with `{"status": exit code or minus the signal, "events": operations on files below the folder}`. A process with
`die_at` kills itself at its n-th such operation; one with `seconds` is killed after that time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pluralign.config import PeopleRemoveConfig, TrainConfig
from pluralign.online_config import OnlineConfig
from pluralign.people.removal import remove_people
from pluralign.resolve import resolve
from pluralign.training import train
from pluralign.training.online.run import online

_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "os.listdir")


def _watch(folder: str, die_at: int | None) -> list[int]:
    events = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and any(folder in str(argument) for argument in arguments[:2]):
            events[0] += 1
            if events[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return events


def _run(order: dict[str, Any], report: int) -> None:
    # Kept from the pipe on which the answers go.
    os.dup2(2, 1)
    events = _watch(order["watch"], order["die_at"])
    status = 1
    try:
        if order["remove"]:
            removal = remove_people(PeopleRemoveConfig(order["config"]["output_dir"], order["remove"]))
            status = 0 if removal.proven else 1
        elif "pairs" in order["config"]:
            sys.path.insert(0, str(Path(__file__).with_name("online")))
            online(resolve(OnlineConfig, order["config"]))
            status = 0
        else:
            train(resolve(TrainConfig, order["config"]))
            status = 0
    finally:
        os.write(report, str(events[0]).encode())
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            _run(order, writer)
        os.close(writer)
        if order["seconds"] is not None:
            time.sleep(order["seconds"])
            os.kill(process, signal.SIGKILL)
        events = os.read(reader, 64)
        os.close(reader)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps({"status": status, "events": int(events or 0)}), flush=True)


if __name__ == "__main__":
    main()
