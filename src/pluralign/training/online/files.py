"""What a phase leaves: candidates, verdicts and pairs as JSON lines (docs/online.md has their schema)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pluralign.annotators.protocol import Request, Verdict
from pluralign.errors import InputError
from pluralign.preferences.schema import Place, Preference, Text
from pluralign.storage import write_text

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled response.

    Attributes:
        text: without special tokens.
        finished: whether it ended by itself.
        logp: nats under the policy that sampled it, at temperature 1 and with nothing cut away, summed over its tokens
            as training takes them.
        base_logp: the same under the base.
        tokens: as training takes them, with the one that ended it.
    """

    text: str
    finished: bool
    logp: float
    base_logp: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Candidates:
    """Responses to one prompt.

    Attributes:
        row: unique in the run.
        owner: whose policy sampled: a person, a group, or everybody.
        user: whose taste decides; None where the table has no people.
        prompt: as the person wrote it.
        policy_version: optimiser steps that the policy had made.
        responses: as many as were asked for, in the order in which they were drawn.
        columns: what else the prompt's row says in plain values, its group too (`plain_columns`).
    """

    row: str
    owner: str
    user: str | None
    prompt: Text
    policy_version: int
    responses: tuple[Response, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    def request(self) -> Request:
        """What an annotator is asked."""
        return Request(self.prompt, tuple(one.text for one in self.responses), self.user, self.row)


def plain_columns(row: Preference) -> dict[str, Any]:
    """Group and further columns of a row, where they are text, numbers or truth values."""
    columns = {**row.columns, **({} if row.group is None else {"group": row.group})}
    return {name: value for name, value in columns.items() if isinstance(value, str | int | float)}


def write_candidates(path: Path, rows: Sequence[Candidates]) -> None:
    """Write a phase's candidates, whole or not at all."""
    _write(path, (asdict(row) for row in rows))


def read_candidates(path: Path) -> list[Candidates]:
    """Read them back.

    Raises:
        InputError: the file cannot be read, or is of another version.
    """
    found = []
    for row in _read(path):
        responses = tuple(Response(**one) for one in row.pop("responses"))
        found.append(Candidates(**row, responses=responses))
    return found


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses to one prompt, of which one is better.

    Attributes:
        row: of the candidates.
        owner: whose policy sampled, and learns.
        user: whose taste decided.
        prompt: as the person wrote it.
        chosen, rejected: the responses.
        policy_version: optimiser steps that the policy had made.
        references: log-probs of chosen and rejected under what the policy is compared with; None where that is the
            base or a given model, whose word is asked for in training.
        columns: of the candidates.
    """

    row: str
    owner: str
    user: str | None
    prompt: Text
    chosen: Response
    rejected: Response
    policy_version: int
    references: tuple[float, float] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def preference(self, source: Preference, place: Place) -> Preference:
        """The row that is learned.

        Args:
            source: the row whose prompt was answered: what else it holds is kept.
            place: of the row in the pair file.
        """
        columns = dict(source.columns)
        columns |= {f"{side}_finished": getattr(self, side).finished for side in SIDES}
        columns |= {f"base_{side}_logps": getattr(self, side).base_logp for side in SIDES}
        if self.references is not None:
            columns |= {f"ref_{side}_logps": value for side, value in zip(SIDES, self.references, strict=True)}
        return replace(source, chosen=self.chosen.text, rejected=self.rejected.text, columns=columns, place=place)


SIDES = ("chosen", "rejected")
_OF_SIDE = ("{}", "{}_finished", "{}_tokens", "sampled_{}_logps", "base_{}_logps", "ref_{}_logps")
_OWN_COLUMNS = frozenset(
    [
        *("schema_version", "row", "owner", "user", "prompt", "policy_version"),
        *(name.format(side) for name in _OF_SIDE for side in SIDES),
    ]
)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write a phase's pairs as a table that `pluralign train` reads, too; of like columns, the phase's own are kept."""
    rows = []
    for pair in pairs:
        beside = {name: value for name, value in pair.columns.items() if name not in _OWN_COLUMNS}
        row: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **beside, "row": pair.row, "owner": pair.owner}
        row |= {} if pair.user is None else {"user": pair.user}
        row |= {"prompt": pair.prompt, "policy_version": pair.policy_version}
        for side in SIDES:
            one: Response = getattr(pair, side)
            row |= {side: one.text, f"{side}_finished": one.finished, f"{side}_tokens": one.tokens}
            row |= {f"sampled_{side}_logps": one.logp, f"base_{side}_logps": one.base_logp}
        for side, value in zip(SIDES, pair.references or (), strict=False):
            row[f"ref_{side}_logps"] = value
        rows.append(row)
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def read_pairs(path: Path) -> list[Pair]:
    """Read them back.

    Raises:
        InputError: as `read_candidates`.
    """
    found = []
    for number, row in enumerate(_lines(path), 1):
        if row.get("schema_version") != SCHEMA_VERSION:
            raise InputError(_VERSION.format(row.get("schema_version")), where=f"{path}, line {number}")
        sides = [_side(row, side) for side in SIDES]
        compared = "ref_chosen_logps" in row
        references = (row["ref_chosen_logps"], row["ref_rejected_logps"]) if compared else None
        own = (row["row"], row["owner"], row.get("user"), row["prompt"])
        beside = {name: value for name, value in row.items() if name not in _OWN_COLUMNS}
        found.append(Pair(*own, sides[0], sides[1], row["policy_version"], references, beside))
    return found


def _side(row: dict[str, Any], side: str) -> Response:
    logps = row[f"sampled_{side}_logps"], row[f"base_{side}_logps"]
    return Response(row[side], row[f"{side}_finished"], *logps, row[f"{side}_tokens"])


class VerdictLog:
    """What an annotator has said, kept as it is said: nothing that was paid for is asked for twice.

    A line stands for a request's content, so that a verdict on other responses is not taken for one on these.

    Args:
        path: the file; it may be there.

    Raises:
        InputError: a line of the file, but for a last one that a kill has torn, cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: dict[str, Verdict] = {}
        self._whole = False
        if path.exists():
            for row in _read(path, torn=True):
                if (key := row.get("key")) is not None:
                    self._said[key] = _verdict(row)

    def get(self, request: Request) -> Verdict | None:
        """What was said of a request, or None."""
        return self._said.get(_request_key(request))

    def add(self, requests: Sequence[Request], verdicts: Sequence[Verdict]) -> None:
        """Keep what was said, on the disk when this returns."""
        lines = []
        for request, verdict in zip(requests, verdicts, strict=True):
            key = _request_key(request)
            self._said[key] = verdict
            lines.append(json.dumps({"row": request.row, "user": request.user, "key": key, **asdict(verdict)}))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            # What was written here ends in a whole line; only what was there before may not.
            if not (self._whole and self.path.stat().st_size) and _whole_lines(file) == 0:
                lines.insert(0, json.dumps({"schema_version": SCHEMA_VERSION}))
            self._whole = True
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(file: Any) -> int:
    """Cut away what stands behind the last whole line; the bytes that are left."""
    file.seek(0)
    end = int(file.read().rfind(b"\n")) + 1
    file.truncate(end)
    return end


def _request_key(request: Request) -> str:
    content = json.dumps([request.row, request.user, request.prompt, request.responses], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _verdict(row: dict[str, Any]) -> Verdict:
    scores, ranking = row.get("scores"), row.get("ranking")
    return Verdict(
        None if scores is None else tuple(scores),
        None if ranking is None else tuple(ranking),
        bool(row.get("tie")),
        bool(row.get("abstained")),
        row.get("reason"),
    )


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    head = json.dumps({"schema_version": SCHEMA_VERSION})
    write_text(path, "".join(f"{line}\n" for line in (head, *(json.dumps(row) for row in rows))))


_VERSION = f"its schema version is {{}}, and this program reads {SCHEMA_VERSION}"


def _read(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    found = _lines(path, torn=torn)
    if torn and not found:
        return []
    if not found or found[0].get("schema_version") != SCHEMA_VERSION:
        raise InputError(_VERSION.format(found[0].get("schema_version") if found else None), where=str(path))
    return found[1:]


def _lines(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The objects of a file; where it may be torn, without what stands behind its last end of line."""
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1] if torn else lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            found_text = "not a JSON object"
            raise InputError(found_text, where=f"{path}, line {number}", fix="Bring the file back, or take it away.")
        found.append(row)
    return found
