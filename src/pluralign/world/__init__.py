"""The embedded default: a small synthetic world with known truth, and its nano model.

Nothing here imports torch but `pluralign.world.nano`.
"""

from __future__ import annotations

from pathlib import Path

from pluralign.world.items import Item
from pluralign.world.judging import Judgement
from pluralign.world.making import make_world
from pluralign.world.people import WorldUser
from pluralign.world.styles import PLAIN, STYLES, Style
from pluralign.world.world import World

NANO_PATH: Path = Path(__file__).parent / "nano"
"""The packaged nano model: a folder for `AutoModelForCausalLM` and `AutoTokenizer`."""

__all__ = ["NANO_PATH", "PLAIN", "STYLES", "Item", "Judgement", "Style", "World", "WorldUser", "make_world"]
