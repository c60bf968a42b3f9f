"""Training and held-out rows: by row, by prompt or by user, fixed by a seed and by content, never by order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from pluralign.config import DataConfig
from pluralign.errors import InputError
from pluralign.preferences.keys import fraction, row_key, text_key
from pluralign.preferences.loading import load_preferences
from pluralign.preferences.schema import Preference, Preferences

Unit = tuple[str, ...]
"""What goes to one side as a whole: a prompt, a row, a user."""


def split_preferences(
    preferences: Preferences, *, validation: float | str, by: str, per: str, seed: int, data: DataConfig
) -> tuple[Preferences, Preferences]:
    """Training rows and held-out rows. Problems and ties stay with the training rows.

    Args:
        preferences: the table.
        validation: a share in [0, 1) of each person's rows, or a file with held-out rows of its own.
        by: `row`; `prompt` (no prompt on both sides, whoever answered it); `user` (whole people, a share of them).
        per: whose share it is: user, group or none.
        seed: another seed holds out other rows.
        data: how a file of held-out rows is read.

    A person keeps at least one training row wherever that is possible, and alone gets the rows held out that it gets
    among others, unless others who share its prompts need them on the other side.

    Raises:
        InputError: the share is out of range; `by: user` with no user column or a single user; the file cannot be read.
    """
    if isinstance(validation, str):
        return preferences, load_preferences(replace(data, path=validation))
    if not 0 <= validation < 1:
        raise InputError(f"data.validation is {validation}", fix="It is a share in [0, 1), or a file.")
    if by not in ("row", "prompt", "user"):
        raise InputError(f"data.split_by is {by!r}", fix="It is row, prompt or user.")
    if validation == 0 or not preferences.rows:
        held = [False] * len(preferences)
    elif by == "user":
        held = _hold_users(preferences, validation, seed)
    else:
        held = _hold_units(preferences, validation, seed, per, _prompt_unit if by == "prompt" else _row_units(per))
    return _sides(preferences, held)


def _sides(preferences: Preferences, held: list[bool]) -> tuple[Preferences, Preferences]:
    pairs = list(zip(preferences.rows, held, strict=True))
    training = replace(preferences, rows=[row for row, out in pairs if not out])
    return training, Preferences([row for row, out in pairs if out], name=f"{preferences.name}, held out")


def _hold_users(preferences: Preferences, share: float, seed: int) -> list[bool]:
    users = {row.user for row in preferences.rows}
    if None in users:
        raise InputError(
            "the table has no user column to split by", where=preferences.name, fix="Split by row or prompt."
        )
    if len(users) < 2:
        raise InputError("the table has a single user; none can be held out", where=preferences.name)
    count = min(max(round(share * len(users)), 1), len(users) - 1)
    drawn = sorted(users, key=lambda user: fraction(seed, str(user)))
    out = set(drawn[:count])
    return [row.user in out for row in preferences.rows]


def _prompt_unit(row: Preference) -> Unit:
    return (text_key(row.prompt),)


def _row_units(per: str) -> Callable[[Preference], Unit]:
    """Each row is a unit of its own; of equal rows, the first is one unit, the second another, and so on."""
    seen: Counter[str] = Counter()

    def unit(row: Preference) -> Unit:
        key = row_key(row)
        seen[key] += 1
        return (row.owner(per), key, str(seen[key]))

    return unit


def _hold_units(
    preferences: Preferences, share: float, seed: int, per: str, unit_of: Callable[[Preference], Unit]
) -> list[bool]:
    """Each person wants its first units by draw held out; units of several people are put to the vote.

    The draw of a unit depends on seed and content only, so people who share prompts want nearly the same ones.
    """
    units = [unit_of(row) for row in preferences.rows]
    draws = {unit: fraction(seed, *unit) for unit in dict.fromkeys(units)}
    people: dict[str, Counter[Unit]] = defaultdict(Counter)
    for row, unit in zip(preferences.rows, units, strict=True):
        people[row.owner(per)][unit] += 1
    votes: dict[Unit, list[int]] = {unit: [0, 0] for unit in draws}
    for counts in people.values():
        wanted = _wanted(counts, draws, share)
        for unit, rows in counts.items():
            votes[unit][unit in wanted] += rows
    held = {unit for unit, (stay, go) in votes.items() if go > stay or (go == stay and draws[unit] < share)}
    _leave_one_each(people.values(), held, draws)
    return [unit in held for unit in units]


def _wanted(counts: Counter[Unit], draws: dict[Unit, float], share: float) -> set[Unit]:
    """The units that a person alone would hold out: the number of rows that is nearest to its share, not all."""
    total = counts.total()
    order = sorted(counts, key=draws.__getitem__)
    if round(share * total) == 0:
        # Too few rows for one held-out row: by chance, so that the share is right over many such people.
        return {unit for unit in order[:-1] if draws[unit] < share}
    wanted: set[Unit] = set()
    held = 0
    for unit in order[:-1]:
        missing = share * total - held
        if missing <= 0:
            break
        if abs(missing - counts[unit]) <= missing:
            wanted.add(unit)
            held += counts[unit]
    return wanted


def _leave_one_each(people: Iterable[Counter[Unit]], held: set[Unit], draws: dict[Unit, float]) -> None:
    """Give people without a training row one of their units back. This only adds training rows, so it harms nobody."""
    bare = [counts for counts in people if held.issuperset(counts)]
    # In an order that the content fixes: what one gets back may serve the next as well.
    for counts in sorted(bare, key=lambda counts: sorted(map(draws.__getitem__, counts))):
        if held.issuperset(counts):
            held.discard(max(counts, key=draws.__getitem__))
