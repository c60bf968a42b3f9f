"""A world as files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluralign.storage import write_json, write_jsonl
from pluralign.world.people import WorldUser
from pluralign.world.styles import STYLES

if TYPE_CHECKING:
    from pluralign.world.world import World

SCHEMA_VERSION = 1


def write_world(world: World, folder: Path, people: Sequence[WorldUser], pairs_per_user: int) -> None:
    """Write corpus.jsonl, preferences.jsonl, probes.jsonl and world.json (facts, skills, people, styles)."""
    write_jsonl(folder / "corpus.jsonl", ({"messages": conversation} for conversation in world.corpus()))
    write_jsonl(folder / "preferences.jsonl", world.preferences(people, pairs_per_user))
    write_jsonl(folder / "probes.jsonl", world.probes())
    write_json(
        folder / "world.json",
        {
            "schema_version": SCHEMA_VERSION,
            "seed": world.seed,
            "styles": {name: {"kind": style.kind, "frame": style.frame} for name, style in STYLES.items()},
            "inside": world.inside,
            "users": [_described(world, user) for user in people],
            "facts": [dataclasses.asdict(item) for item in world.facts],
            "skills": [dataclasses.asdict(item) for item in world.skills],
        },
    )


def _described(world: World, user: WorldUser) -> dict[str, Any]:
    wants = {topic: world.wanted_style(user, topic) for topic in world.inside}
    return {**dataclasses.asdict(user), "group": user.group, "distance": user.distance, "wants": wants}
