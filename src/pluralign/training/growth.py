"""A population lives on: who of a table is new to a folder, who is trained anew, and who is left as they are."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.adapters import INFO_FILE
from pluralign.preferences import ALL, Preferences, named_people, people_hashes, shown
from pluralign.storage import read_json
from pluralign.training.index import Index, index_path, read_index
from pluralign.training.people import Census, Person
from pluralign.training.record import Record
from pluralign.training.runs import RunFolder, Standing, Unfinished

_SHOWN = 5


@dataclass(slots=True)
class Growth:
    """What a call has to do for a folder, and what it leaves alone.

    Attributes:
        people: who is to be trained, in the order of the table.
        work: what to note in the folder before it begins.
        changed: people whose rows have changed since their adapter was made.
        absent: people with an adapter who have no row in the table any more.
        unrecorded: where the table has changed, number of people of whose adapters nothing says what rows they were
            made from.
    """

    people: list[Person]
    work: Unfinished
    changed: list[str]
    absent: list[str]
    unrecorded: int

    def warn(self) -> None:
        """Say of how many people it is not known whether they should be trained anew."""
        if self.unrecorded:
            warnings.warn(
                f"of {self.unrecorded} people nothing says what rows their adapters were made from (an older version "
                "made them): whether these have changed is not known",
                stacklevel=2,
            )


def plan_growth(
    config: TrainConfig, folder: RunFolder, record: Record, census: Census, *, data_hash: str, standing: Standing
) -> Growth:
    """Find out what is to be done, and let the record take over what stays. Nothing is trained or begun yet.

    Args:
        config: of the call; `update` names who is trained anew.
        folder: of the run.
        record: with the hashes of people's rows in the table.
        census: who of the table can be trained; those who stay as they are do not count as skipped.
        data_hash: of the table.
        standing: of the folder.

    Raises:
        InputError: `update` names somebody unknown, or whom the table has no row to train on; the one policy of a run
            was made from another table, and `update` does not name it.
    """
    there = standing is not Standing.NEW
    index = read_index(folder.path) if there and index_path(folder.path).exists() else Index({}, {})
    begun = folder.unfinished() if there else None
    named = _named(config, folder, index, record, census)
    kind = config.parameters.kind
    users = [person.user for person in census.people]
    update = dict(begun.update) if begun else {}
    if there:
        update |= {user: folder.stamp(user, kind) for user in named if user not in update}
    if standing is Standing.GROWN:
        # Who has no adapter is tried again: on another table the reason may be gone.
        update |= {user: "" for user in users if user in index.skipped and user not in index.people}
    if there:
        # Of an update that was killed, those are done whose adapter is another one by now.
        again = [user for user, stamp in update.items() if folder.stamp(user, kind) == stamp]
        record.recall(users, index, again=again)
    census.skipped = {user: reason for user, reason in census.skipped.items() if user not in record.finished}
    remaining = set(record.remaining(users))
    left = [user for user in record.finished if user not in remaining]
    made_from = {user: made["rows"] for user in left if (made := record.made_from.get(user))}
    rows = {user: hashes["rows"] for user, hashes in record.hashes.items()}
    growth = Growth(
        people=[person for person in census.people if person.user in remaining],
        work=Unfinished(data_hash, update),
        changed=[user for user, made in made_from.items() if rows.get(user, made) != made],
        absent=[user for user in left if user not in record.hashes],
        unrecorded=len(left) - len(made_from) if standing is Standing.GROWN else 0,
    )
    if standing is Standing.GROWN and not growth.people and set(record.hashes) == {ALL}:
        _refuse_another_table(folder, growth)
    return growth


def hashes_of(
    config: TrainConfig, preferences: Preferences, training: Preferences, held_out: Preferences
) -> dict[str, dict[str, str]]:
    """Id -> hashes of the person's rows: `rows`, all of them, and `training`, those to learn from.

    Args:
        config: whose rows belong together, and where held-out rows come from.
        preferences: the table.
        training: its rows to learn from.
        held_out: the others, or those of a file of their own.
    """
    per = config.parameters.per
    own_file = isinstance(config.data.validation, str)
    rows = people_hashes(preferences, per, held_out=held_out if own_file else ())
    learned = people_hashes(training, per)
    return {user: {"rows": digest, "training": learned.get(user, "")} for user, digest in rows.items()}


def warn_of_learned_rows(adapters: Mapping[str, Path], present: Mapping[str, str]) -> None:
    """Warn of people whose adapters were made from other rows than the table has to learn from now.

    Rows that are held out now may be among those. It happens where a table has changed and they were left as they were.

    Args:
        adapters: id -> folder.
        present: id -> hash of the rows to learn from now.
    """
    recorded = {user: _made_from(folder).get("training") for user, folder in adapters.items() if user in present}
    others = [user for user, digest in recorded.items() if digest and digest != present[user]]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        warnings.warn(
            f"{len(others)} adapters were made from other rows than the table has to learn from now, and rows that are "
            f"held out now may be among those: {', '.join(map(shown, others[:_SHOWN]))}{more}",
            stacklevel=2,
        )


def _made_from(folder: Path) -> dict[str, str]:
    info = read_json(folder / INFO_FILE) if (folder / INFO_FILE).is_file() else {}
    return (info.get("made_from") or {}) if isinstance(info, dict) else {}


def _named(config: TrainConfig, folder: RunFolder, index: Index, record: Record, census: Census) -> list[str]:
    known = dict.fromkeys((*index.people, *index.skipped, *record.hashes, *census.skipped))
    named = named_people(config.update, known, where="update")
    trainable: Collection[str] = {person.user for person in census.people}
    for user in named:
        if user not in trainable:
            reason = census.skipped.get(user, "the table has no row of theirs to train on")
            stays = "; the adapter that is there stays" if user in index.people else ""
            raise InputError(
                f"{shown(user)!r} cannot be trained anew: {reason}",
                where="update",
                fix=f"Leave the id out{stays}.",
            )
    return named


def _refuse_another_table(folder: RunFolder, growth: Growth) -> None:
    """One policy for everybody cannot grow: without a word it would stay behind its table."""
    if growth.changed or growth.unrecorded:
        raise InputError(
            "the folder holds another run, which differs in the content of the data",
            where=str(folder.path),
            fix=f"--update {ALL} trains its one policy anew on this table; or name another output_dir.",
        )
