"""What a result was made with."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import version

from pluralign import __version__


def versions() -> dict[str, str]:
    """Versions of Python, of this library and of those that decide results."""
    return {"python": platform.python_version(), "pluralign": __version__, **_libraries()}


@functools.cache
def _libraries() -> dict[str, str]:
    # Each is looked up in a package's metadata, and every adapter that is written names them.
    return {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
