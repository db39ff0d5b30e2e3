"""Numbers as people read them."""

from __future__ import annotations

import math


def human_bytes(count: int) -> str:
    """Return `count` for people, such as `3.1 GiB`."""
    exponent = min(4, int(math.log(max(1, count), 1024)))
    return f"{count / 1024**exponent:.{1 if exponent else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[exponent]}"
