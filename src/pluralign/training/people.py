"""From two sides of a table to people: who can be trained on what, and who cannot, with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from pluralign.config import TrainConfig
from pluralign.errors import InputError
from pluralign.models.encoding import Encoder
from pluralign.models.table_references import table_reference_fault
from pluralign.objectives import Objective
from pluralign.preferences import Preference, Preferences
from pluralign.training.weighting import row_fault, row_weight

_SHOWN = 5
_AT_A_TIME = 1024


@dataclass(slots=True)
class Person:
    """Rows of one adapter: a user's, a group's, or everybody's.

    Attributes:
        user: id.
        train: rows to learn from, at least one that weighs something.
        held_out: rows to validate on.
    """

    user: str
    train: list[Preference]
    held_out: list[Preference]


@dataclass(slots=True)
class Census:
    """Who there is.

    Attributes:
        people: those who can be trained, in order of first appearance.
        skipped: id -> why that person cannot.
        held_out: everybody's rows to evaluate on, also of those who are not trained.
        problems: rows that were left out, with place and reason.
        cuts: for each row that can be used, what is cut of it.
    """

    people: list[Person] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    held_out: list[Preference] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cuts: list[tuple[str, ...]] = field(default_factory=list)


def take_census(
    config: TrainConfig, objective: Objective, encoder: Encoder, training: Preferences, held_out: Preferences
) -> Census:
    """Find the people of a table.

    Args:
        config: names the column of owners and that of weights.
        objective: decides which responses a row needs.
        encoder: finds rows that cannot be turned into tokens.
        training: rows to learn from, problems and ties of the whole table.
        held_out: rows to validate on.

    Raises:
        InputError: no row has the column of weights or of groups, or nobody at all can be trained.
    """
    per, column = config.parameters.per, config.weighting.column
    _check_columns(config, training)
    census = Census(problems=[str(problem) for problem in (*training.problems, *held_out.problems)])
    faults, census.cuts = _faults([*training, *held_out], objective, encoder, config)
    census.problems += faults.values()
    census.held_out = [row for row in held_out if id(row) not in faults]
    validated = held_out.by(per)
    for user, rows in training.by(per).items():
        usable = [row for row in rows if id(row) not in faults]
        held = [row for row in validated.get(user, []) if id(row) not in faults]
        if not usable:
            census.skipped[user] = _no_rows([faults[id(row)] for row in rows])
        elif not any(row_weight(row, column) for row in usable):
            census.skipped[user] = f"all weights in column {column!r} are 0"
        else:
            census.people.append(Person(user, usable, held))
    _add_absent(census, config, training, validated)
    if not census.people:
        reasons = "; ".join(f"{user!r}: {reason}" for user, reason in list(census.skipped.items())[:_SHOWN])
        raise InputError(
            f"nobody can be trained ({reasons or 'there are no rows'})",
            where=training.name,
            fix="See pluralign data check.",
        )
    return census


def person_seed(seed: int, user: str) -> int:
    """A seed that belongs to the run's seed and the person: the same whoever else is trained, and in whatever order."""
    digest = hashlib.sha256(f"{seed}\0{user}".encode("utf-8", "surrogatepass")).digest()
    # numpy takes 32 bits, and some generators a signed number of them.
    return int.from_bytes(digest[:4], "big") >> 1


def _check_columns(config: TrainConfig, training: Preferences) -> None:
    """Raise where no row has a column of weights or groups that the configuration names."""
    weighting = config.weighting
    named = {"weighting.column": weighting.column}
    if weighting.groups.by != "rows":
        named["weighting.groups.column"] = weighting.groups.column
    columns = {name for row in training.rows for name in row.columns}
    identities = {name for name in ("user", "group") if any(getattr(row, name) is not None for row in training.rows)}
    for key, column in named.items():
        known = columns if key == "weighting.column" else columns | identities
        if column is not None and training.rows and column not in known:
            raise InputError(
                f"no row has the column {column!r}",
                where=training.name,
                fix=f"{key} is one of: {', '.join(sorted(known)) or 'none'}.",
            )


def _faults(
    rows: Sequence[Preference], objective: Objective, encoder: Encoder, config: TrainConfig
) -> tuple[dict[int, str], list[tuple[str, ...]]]:
    """Id of a row object -> why it cannot be used; and what is cut of each of the others."""
    found = {id(row): reason for row in rows if (reason := _lacks(row, objective))}
    brings = objective.needs_reference and config.reference.compute == "table"
    for row in rows:
        if fault := row_fault(row, config.weighting):
            found.setdefault(id(row), fault)
        if brings and (fault := table_reference_fault(row)):
            found.setdefault(id(row), fault)
    rest = [row for row in rows if id(row) not in found]
    branches, cuts = objective.branches, list[tuple[str, ...]]()
    # Some at a time: what is only looked at takes no room.
    for start in range(0, len(rest), _AT_A_TIME):
        some = rest[start : start + _AT_A_TIME]
        try:
            cuts += [tuple(one.cut) for one in encoder.encode_many(some, branches)]
        except InputError:
            # One by one only now: together each distinct text is tokenized once.
            for row in some:
                try:
                    cuts.append(tuple(encoder.encode(row, branches).cut))
                except InputError as error:
                    found[id(row)] = str(error)
    return found, cuts


def _lacks(row: Preference, objective: Objective) -> str | None:
    """Why the objective has no use for a row, or None."""
    missing = objective.lacks(row.responses)
    if not missing:
        return None
    return f"{row.place}: there is no {' and no '.join(missing)} response, which loss.type {objective.loss.type} needs"


def _no_rows(faults: Sequence[str]) -> str:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"no row can be used: {faults[0]}{more}"


def _add_absent(
    census: Census, config: TrainConfig, training: Preferences, validated: dict[str, list[Preference]]
) -> None:
    """People who are in the table and have no training row at all."""
    present = {person.user for person in census.people} | set(census.skipped)
    if config.parameters.per == "user":
        problems: dict[str, list[str]] = {}
        for problem in training.problems:
            if problem.user is not None and problem.user not in present | set(validated):
                problems.setdefault(problem.user, []).append(str(problem))
        census.skipped |= {user: _no_rows(found) for user, found in problems.items()}
        for user in training.ties:
            if user not in present | set(validated) | set(problems):
                census.skipped[user] = "only undecided comparisons"
    if config.data.split_by != "user" and not isinstance(config.data.validation, str):
        for user in validated:
            if user not in present:
                census.skipped[user] = "all rows are held out, together with others who share their prompts"
