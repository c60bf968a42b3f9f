"""What a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

from pluralign import __version__


def versions() -> dict[str, str]:
    """Versions of Python, of this library and of those that decide results."""
    libraries = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    return {"python": platform.python_version(), "pluralign": __version__, **libraries}
