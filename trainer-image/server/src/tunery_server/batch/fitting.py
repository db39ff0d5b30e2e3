"""Several texts in one message: what is long is cut, so that each of them has its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tunery_api.redact import redact

LEAST: Final = 12
"""Bytes that each has in any case."""
_JOINT: Final = "; "


def fitting(texts: Sequence[str], room: int) -> str:
    """Return the texts in one line of at most `room` bytes; long ones are cut to the same length, short ones stay."""
    texts = [redact(text, max(room, LEAST)) for text in texts]
    sizes = sorted(len(text.encode()) for text in texts)
    left = room - len(_JOINT) * (len(texts) - 1)
    longest = sizes[-1] if sizes else 0
    if sum(sizes) > left:
        for place, size in enumerate(sizes):
            longest = left // (len(sizes) - place)
            if size > longest:
                break
            left -= size
    return _JOINT.join(redact(text, max(longest, LEAST)) for text in texts)
