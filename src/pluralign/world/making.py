"""A world made into a folder, with its own nano model if wanted."""

from __future__ import annotations

from pathlib import Path

from pluralign.errors import InputError
from pluralign.storage import staged_folder
from pluralign.world.world import World


def make_world(
    seed: int,
    out: Path | str,
    *,
    users: int = 8,
    pairs_per_user: int = 240,
    nano: bool = False,
    steps: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Make a world and write it to a folder; with `nano`, train its nano model into `<out>/nano` (minutes).

    Args:
        seed: which world.
        out: the folder; whole or absent whatever happens.
        users: how many people have preferences.
        pairs_per_user: comparisons of each.
        nano: train a nano model of this world.
        steps: its training steps; by default those of the packaged one.
        overwrite: replace a folder that is there.

    Returns:
        The folder.

    Raises:
        InputError: the folder is there and has content.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise InputError("the place is taken", where=str(out), fix="Give another folder, or overwrite.")
    world = World(seed)
    with staged_folder(out) as staging:
        world.write(staging, users=users, pairs_per_user=pairs_per_user)
        if nano:
            # Only here: everything else about a world goes without torch.
            from pluralign.world.nano import STEPS, train_nano

            train_nano(world, staging / "nano", steps=STEPS if steps is None else steps, seed=seed)
    return out
