"""An annotator by import path, for processes of their own: it likes what has the larger hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pluralign.annotators import Request, Verdict


def annotate(requests: Sequence[Request]) -> list[Verdict]:
    return [Verdict(scores=tuple(_score(request, text) for text in request.responses)) for request in requests]


def _score(request: Request, text: str) -> float:
    return int(hashlib.sha256(f"{request.user}/{text}".encode()).hexdigest()[:8], 16) / 2**32
