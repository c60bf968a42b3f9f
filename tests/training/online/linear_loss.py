"""A user's own loss whose gradient is that of the sigmoid loss at a margin of 0."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def linear(margin: Tensor, *, beta: float, **_: Any) -> Tensor:
    return -beta / 2 * margin
