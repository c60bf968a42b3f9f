"""Who is evaluated, with what: one entry a person, from adapters and held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pluralign.evaluation.behaviour import Question, questions_of
from pluralign.evaluation.pairs import Pair, pairs_of
from pluralign.models.anchoring import Anchored
from pluralign.preferences.conditioning import original_of
from pluralign.storage import sha256_of_json


@dataclass
class Person:
    """One person of an evaluation.

    Attributes:
        id: who; the person themself also where everybody shares one policy.
        folder: of the policy that answers for them.
        rows: their held-out rows.
        pairs: those rows that are pairs.
        questions: held-out prompts to answer.
        group: the group of their first row that has one.
    """

    id: str
    folder: Path
    rows: list[Anchored] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    group: str | None = None

    @property
    def held_out(self) -> str:
        """Hex digest of their held-out rows in any order, as their table has them: whatever is put into prompts."""
        rows = (original_of(row.preference) for row in self.rows)
        return sha256_of_json(sorted(sha256_of_json([row.prompt, row.chosen, row.rejected]) for row in rows))

    @property
    def manner(self) -> list[str]:
        """Names that probes may know this person's manner of answering by."""
        style = self.rows[0].preference.columns.get("style") if self.rows else None
        return [name for name in (self.id, style, self.group) if isinstance(name, str)]


def gather(
    adapters: Mapping[str, Path], held_out: Sequence[Anchored], *, per: str, max_prompts: int, seed: int
) -> tuple[dict[str, Person], dict[str, str]]:
    """People to evaluate, and those who cannot be, with the reason.

    Where one policy is shared (`per: none`), each user of the held-out rows is a person of their own, with that policy.

    Args:
        adapters: owner (a user, a group, or `_all`) -> folder.
        held_out: rows of everybody, in the order of the table.
        per: `parameters.per` of the run.
        max_prompts: held-out prompts that each person answers.
        seed: fixes which.

    Returns:
        People by id, in the order of `adapters`, and reasons by id.
    """
    rows: dict[str, list[Anchored]] = {}
    owners: dict[str, str] = {}
    for row in held_out:
        owner = row.preference.owner(per)
        person = row.preference.user or owner if per == "none" else owner
        rows.setdefault(person, []).append(row)
        owners[person] = owner
    for owner in adapters:
        if owner not in owners.values():
            owners[owner] = owner
    order = {owner: position for position, owner in enumerate(adapters)}
    people = {
        person: _person(person, adapters[owner], rows.get(person, []), per=per, max_prompts=max_prompts, seed=seed)
        for person, owner in sorted(owners.items(), key=lambda item: order.get(item[1], len(order)))
        if owner in adapters
    }
    missing = {person: "there is no adapter" for person, owner in owners.items() if owner not in adapters}
    return people, missing


def _person(person: str, folder: Path, rows: list[Anchored], *, per: str, max_prompts: int, seed: int) -> Person:
    groups = (row.preference.group for row in rows if row.preference.group is not None)
    return Person(
        id=person,
        folder=folder,
        rows=rows,
        pairs=pairs_of(rows),
        questions=questions_of(rows, limit=max_prompts, seed=seed),
        # Where people are groups, a group of groups says nothing.
        group=None if per == "group" else next(groups, None),
    )
