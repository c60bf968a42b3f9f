"""`pluralign people remove`: everything of a person out of a run's folder and out of the cache, and the proof."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pluralign.config import PeopleRemoveConfig
from pluralign.errors import InputError
from pluralign.evaluation.results import without
from pluralign.people.listing import readable_size
from pluralign.people.register import Register, require_run, sizes_of
from pluralign.people.traces import Traces
from pluralign.preferences import Preference, folder_name, load_preferences, named_people, shown
from pluralign.storage import write_bytes
from pluralign.training.checkpoints import remove_folder
from pluralign.training.index import write_index
from pluralign.training.runs import WIN_RATES, RunFolder, Unfinished

_SHOWN = 5


@dataclass
class Removal:
    """What was done, and what was found when everything was read again.

    Attributes:
        users: who was removed.
        removed: what went, in words.
        checked: what was read again, in words.
        traces: places that still tell of them.
        unproven: what could not be looked at, with the reason.
        remarks: what the caller should know besides.
    """

    users: list[str]
    removed: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether nothing is left, and everything could be looked at."""
        return not self.traces and not self.unproven


def remove_people(config: PeopleRemoveConfig) -> Removal:
    """Remove people from a run. Killed at any moment, the same call finishes.

    Args:
        config: the run, who, and where the table is if it has moved.

    Raises:
        InputError: there is no such run or person, the run has one policy for everybody, or another process is at
            work on its folder.
    """
    require_run(config.run)  # before a lock is made in it
    with RunFolder(config.run).locked("pluralign people remove"):
        return _Removing(config).remove()


class _Removing:
    """The steps of one call; the index goes last, so that what was killed is found again."""

    def __init__(self, config: PeopleRemoveConfig) -> None:
        self.config, self.register = config, Register(config.run)
        self.folder, self.path = self.register.folder, self.register.path
        self.per = self.register.config.parameters.per
        if self.per == "none":
            raise InputError(
                "the run has one policy for everybody, and nobody can be taken out of its weights",
                where=str(self.path),
                fix="Take their rows out of the table and train anew with --update _all, or delete the folder.",
            )
        self.table, self.unusable, self.no_table = self._read_table()
        self.users = self._users()
        self.result = Removal(self.users)
        _refuse_shared_state(self.folder, self.register.users)

    def remove(self) -> Removal:
        """Take everything out, then look for it."""
        self.folder.clean()
        rows = [row for row in self.table if row.owner(self.per) in self.users]
        others = [row for row in self.table if row.owner(self.per) not in self.users]
        keys = self._own_keys(rows, others)
        self._remove_from_cache(keys)
        self._remove_folders()
        self._remove_from_metrics()
        self._remove_from_evaluation()
        self._remove_from_win_rates()
        self._remove_from_index()
        self._prove(keys)
        self._remark(rows)
        return self.result

    def _users(self) -> list[str]:
        register = self.register
        if not self.config.user:
            raise InputError("--user names nobody", where=str(self.path), fix="Give one id or several.")
        owners = dict.fromkeys(row.owner(self.per) for row in self.table)
        known = [*register.users, *register.measured, *(register.evaluation.skipped if register.evaluation else ())]
        return named_people(self.config.user, dict.fromkeys((*known, *register.steps, *owners)), where=str(self.path))

    # -- what the cache has of them -------------------------------------------------------------------------------

    def _read_table(self) -> tuple[list[Preference], set[str], str]:
        """The rows of the run's table and of its file of held-out rows, and people of whom it has unusable ones.

        Where it is gone there are none, and the reason is the last.
        """
        trained = self.register.config
        data = self.config.data or trained.data
        try:
            tables = [load_preferences(data, trained.seed)]
            if isinstance(trained.data.validation, str):
                tables.append(load_preferences(replace(trained.data, path=trained.data.validation), trained.seed))
        except InputError as error:
            return [], set(), str(error)
        unusable = {problem.user for table in tables for problem in table.problems if problem.user is not None}
        return [row for table in tables for row in table], unusable, ""

    def _own_keys(self, rows: Sequence[Preference], others: Sequence[Preference]) -> set[str]:
        reason = self.no_table
        having = {row.owner(self.per) for row in rows}
        # Rows that could not be used were never computed on, where they did not lead to an adapter all the same.
        harmless = self.unusable - self.register.adapters.keys()
        lacking = [user for user in self.users if user not in having | harmless]
        if not reason and lacking:
            names = ", ".join(repr(shown(user)) for user in lacking[:_SHOWN])
            reason = f"the table has no row of {names}, so that nothing says which texts were theirs"
        if not reason:
            from pluralign.models.cache import Cache
            from pluralign.people.cached import as_met, encoders_for, own_keys

            config = self.register.config
            try:
                encoders = encoders_for(config)
                theirs, rest = (as_met(some, self.table, config, encoders[0]) for some in (rows, others))
            except InputError as error:
                reason = str(error)
            else:
                cache = Cache(config.cache_dir)
                found = [own_keys(theirs, rest, encoder=encoder, cache=cache) for encoder in encoders]
                if shared := found[0][1]:
                    self.result.remarks.append(f"{shared} texts of theirs stay in the cache: others have them too")
                if config.evaluation.identities:
                    self.result.unproven.append(
                        "that the cache has no log-prob of others' pairs under an identity of theirs (numbers under a "
                        "hash, from evaluation.identities; delete the cache to be sure)"
                    )
                return {key for keys, _ in found for key in keys}
        fix = "give the table that they were trained on with --data"
        self.result.unproven.append(f"that the cache has nothing of theirs ({reason}; {fix})")
        return set()

    def _remove_from_cache(self, keys: set[str]) -> None:
        if keys:
            from pluralign.models.cache import Cache

            cache = Cache(self.register.config.cache_dir)
            # Responses last: a call that finishes a killed one finds the keys of their log-probs by them.
            count = sum(cache.remove(kind, keys) for kind in ("reference_logps", "base_responses"))
            self.result.removed += [f"{count} values of the cache"] if count else []

    # -- what the folder has of them ------------------------------------------------------------------------------

    def _remove_folders(self) -> None:
        for user in self.users:
            name = folder_name(user)
            place = self.folder.adapters / name
            if place.is_dir():
                sizes = sizes_of(place)
                remove_folder(place)
                size = readable_size(sum(sizes.values()))
                self.result.removed.append(f"the adapter of {shown(user)!r} ({len(sizes)} files, {size})")
            for room in ("state", "tensorboard"):
                if (self.path / room / name).is_dir():
                    remove_folder(self.path / room / name)
                    self.result.removed.append(f"{room}/{name}")
        for events in (self.path / "tensorboard").glob("*tfevents*"):
            if count := _drop_events(events, self.users):
                self.result.removed.append(f"{count} records of {events.relative_to(self.path)}")
        for room in ("state", "tensorboard"):
            if (self.path / room).is_dir() and not any((self.path / room).iterdir()):
                (self.path / room).rmdir()

    def _remove_from_metrics(self) -> None:
        if not self.folder.metrics.exists():
            return
        lines = self.folder.metrics.read_bytes().split(b"\n")
        kept = [line for line in lines if not _tells_of(line, self.users)]
        if len(kept) < len(lines):
            write_bytes(self.folder.metrics, b"\n".join(kept))
            self.result.removed.append(f"{len(lines) - len(kept)} lines of metrics")

    def _remove_from_evaluation(self) -> None:
        before = self.register.evaluation
        if before is None:
            return
        gone = set(self.users)
        entries = len(gone & before.people.keys()) + len(gone & before.skipped.keys())
        tables = ((results.get("cross") or {}).get("people", {}) for results in before.people.values())
        columns = sum(len(gone & table.keys()) for table in tables) - len(gone & before.people.keys())
        if entries or columns:
            without(before, gone).write(self.folder.evaluation)
            self.result.removed.append(f"{entries} entries of the evaluation, and {columns} in others' cross tables")

    def _remove_from_win_rates(self) -> None:
        if (self.path / WIN_RATES).is_dir():
            from pluralign.evaluation.forgetting import forget_win_rates

            if count := forget_win_rates(self.path, self.users):
                self.result.removed.append(f"{count} entries of win rates, and of the answers and verdicts behind them")

    def _remove_from_index(self) -> None:
        begun = self.folder.unfinished()
        if begun and not begun.update.keys().isdisjoint(self.users):
            update = {user: stamp for user, stamp in begun.update.items() if user not in self.users}
            self.folder.note(Unfinished(begun.data_hash, update))
        people = {user: place.name for user, place in self.register.adapters.items() if user not in self.users}
        skipped = {user: reason for user, reason in self.register.skipped.items() if user not in self.users}
        write_index(self.path, people, skipped)

    # -- the proof ------------------------------------------------------------------------------------------------

    def _prove(self, keys: set[str]) -> None:
        others = {*self.register.users, *self.register.measured, *self.register.steps} - set(self.users)
        files = 0
        for user in self.users:
            found, files = Traces(user, others).in_run(self.path)
            self.result.traces += found
        self.result.checked.append(f"{files} files of the run, their names and their content")
        if keys:
            from pluralign.models.cache import Cache

            holding, count = Cache(self.register.config.cache_dir).holding(keys)
            self.result.traces += [f"{path}: a text of theirs" for path in holding]
            self.result.checked.append(f"{count} files of the cache, for {len(keys)} keys")

    def _remark(self, rows: Sequence[Preference]) -> None:
        if rows:
            self.result.remarks.append(
                f"the table still holds {len(rows)} rows of theirs ({rows[0].place} is the first): the next "
                "`pluralign train` on this folder would make the adapter again"
            )


def _refuse_shared_state(folder: RunFolder, users: Collection[str]) -> None:
    """A snapshot of many people in training cannot be taken apart."""
    state = folder.path / "state"
    own = {folder_name(user) for user in users}
    if state.is_dir() and any(path.name not in own and not path.is_dir() for path in state.iterdir()):
        raise InputError(
            "the run is not finished, and its snapshot holds many people at once",
            where=str(folder.path),
            fix="Give the same `pluralign train` again, and remove them when it is done.",
        )


def _tells_of(line: bytes, users: Collection[str]) -> bool:
    try:
        return json.loads(line)["user"] in users
    except (ValueError, TypeError, KeyError):
        return False


def _drop_events(path: Path, users: Collection[str]) -> int:
    """Take the records of people out of TensorBoard's file of everybody; a torn end goes with them."""
    content = path.read_bytes()
    tags = [f"{kind}/{user}/".encode("utf-8", "surrogatepass") for user in users for kind in ("train", "eval")]
    kept: list[bytes] = []
    count = at = 0
    # A record is its length, a checksum, the data and another checksum.
    while at + 12 <= len(content):
        end = at + 16 + struct.unpack_from("<Q", content, at)[0]
        if end > len(content):
            break
        record = content[at:end]
        if any(tag in record for tag in tags):
            count += 1
        else:
            kept.append(record)
        at = end
    if count:
        write_bytes(path, b"".join(kept))
    return count
