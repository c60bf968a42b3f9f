"""Dropout whose draws belong to a row: a hash of the row's own number, the layer and the place, not a shared stream.

A stream of random numbers would depend on who else is in the batch and how it was padded, and would have to be stored
to go on after a kill. A hash is the same alone and together, forwards and backwards, on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_PLACES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)


def keep_scale(keys: Tensor, layer: int, shape: torch.Size | tuple[int, int], probability: float) -> Tensor:
    """What inputs are multiplied by: 0 with the given probability, else 1 / (1 - probability).

    Args:
        keys: [R] int64, the number of each row.
        layer: number of the layer.
        shape: (T, F), positions and features of a row; a shorter row's draws are the beginning of a longer one's.
        probability: of a 0, in [0, 1).

    Returns:
        [R, T, F] float32.
    """
    time, features = shape
    device = keys.device
    position = torch.arange(time, device=device)
    feature = torch.arange(features, device=device)
    row = _mix((keys & _LOW) ^ (layer * _PLACES[0] & _LOW))
    place = _mix(row[:, None] ^ (position * _PLACES[1] & _LOW))
    drawn = _mix(place[:, :, None] ^ (feature * _PLACES[2] & _LOW))
    kept = drawn >= int(probability * 2**32)
    return kept.to(torch.float32).div_(1 - probability)


def _mix(value: Tensor) -> Tensor:
    """32 bits to 32 well-mixed bits (the finaliser of MurmurHash3); in int64, what wraps lies above the bits kept."""
    value = value ^ (value >> 16)
    value = (value * 0x85EBCA6B) & _LOW
    value = value ^ (value >> 13)
    value = (value * 0xC2B2AE35) & _LOW
    return value ^ (value >> 16)
