"""Where an online run stands: who is trained together, and everybody of a cohort as a phase has left them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pluralign.errors import InputError
from pluralign.storage import read_json, staged_file, write_json
from pluralign.training.runs import PHASES

SCHEMA_VERSION = 1


@dataclass(slots=True)
class Moment:
    """A cohort at the end of a phase.

    Attributes:
        phase: its number.
        learners: `Learner.state_dict` of everybody who is not through, with their sums of metrics.
        compared: person -> the adapter that a moving reference is, `[P]`.
        iterates: person -> the adapter as the phase before had left it, before any extrapolation, `[P]`.
        without: person -> what did not come to a pair, counted.
    """

    phase: int
    learners: list[dict[str, Any]]
    compared: dict[str, Tensor]
    iterates: dict[str, Tensor]
    without: dict[str, dict[str, int]]


class Moments:
    """The files of an online run that it goes on from, and where its phases stand.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / "state"
        self._index = self._state / "online.json"

    def files(self, part: int, phase: int) -> tuple[Path, Path, Path]:
        """Candidates, verdicts and pairs of a cohort's phase."""
        place = self.folder / PHASES / f"{phase:04d}"
        names = ("candidates", "verdicts", "pairs")
        candidates, verdicts, pairs = (place / f"{name}-{part:04d}.jsonl" for name in names)
        return candidates, verdicts, pairs

    @property
    def slots(self) -> int:
        """Of the bank that the run was begun with; 0 where it was not."""
        return int(self._read()["slots"]) if self._index.exists() else 0

    def cohorts(self, users: Sequence[str], slots: int) -> list[list[str]]:
        """Who is trained together: as the run was begun, whoever is finished by now.

        Args:
            users: in the order of the table.
            slots: of the bank.
        """
        if not self._index.exists():
            parts = [list(users[start : start + slots]) for start in range(0, len(users), slots)]
            self._write({"slots": slots, "cohorts": parts, "through": []})
        found: list[list[str]] = self._read()["cohorts"]
        return found

    def through(self, part: int) -> bool:
        """Whether a cohort has made all its phases."""
        return part in self._read()["through"]

    def close(self, part: int) -> None:
        """Note that a cohort has."""
        index = self._read()
        self._write({**index, "through": [*index["through"], part]})
        self._moment(part).unlink(missing_ok=True)

    def last(self, part: int) -> Moment | None:
        """The last moment of a cohort, or None.

        Raises:
            InputError: it cannot be read, or is of another version.
        """
        path = self._moment(part)
        if not path.exists():
            return None
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # noqa: BLE001 - whatever a damaged file makes torch say
            raise InputError(f"cannot be read ({error})", where=str(path), fix="Begin anew with --overwrite.") from None
        if content.pop("schema_version", None) != SCHEMA_VERSION:
            raise InputError("it is of another version", where=str(path), fix="Begin anew with --overwrite.")
        return Moment(**content)

    def write(self, part: int, moment: Moment) -> None:
        """Write a moment in place of the one before."""
        content = {"schema_version": SCHEMA_VERSION, **{name: getattr(moment, name) for name in Moment.__slots__}}
        with staged_file(self._moment(part)) as staging, open(staging, "wb") as file:
            torch.save(content, file)

    def _moment(self, part: int) -> Path:
        return self._state / f"@online-{part:04d}.pt"

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self._index)
        return found

    def _write(self, index: dict[str, Any]) -> None:
        write_json(self._index, {**index, "schema_version": SCHEMA_VERSION})
