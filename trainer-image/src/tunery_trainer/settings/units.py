"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def human_bytes(count: int) -> str:
    """Return `count` for people, such as `3.1 GiB`."""
    exponent = _exponent(count)
    return f"{count / 1024**exponent:.{1 if exponent else 0}f} {_UNITS[exponent]}"


def compared(*counts: int) -> list[str]:
    """Return counts that one sentence compares: in a smaller unit where different ones would read alike."""
    told = [human_bytes(count) for count in counts]
    exponent = _exponent(max(counts))
    while len(set(told)) < len(set(counts)):
        exponent -= 1
        told = [f"{count / 1024**exponent:,.0f} {_UNITS[exponent]}" for count in counts]
    return told


def _exponent(count: int) -> int:
    return min(len(_UNITS) - 1, int(math.log(max(1, count), 1024)))
