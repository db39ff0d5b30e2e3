"""Adapters that failed for what lies in their store, and that somebody asks for: looked at sooner than by the clock."""

from __future__ import annotations

from collections import deque
from typing import Final

from tunery_server.adapters.slot import Slot

AGAIN_SECONDS: Final = 15.0
"""Between two looks at the same adapter, however often it is asked for."""
MOST: Final = 32
"""Looks within that time, at all adapters together."""


class Again:
    """Bounds what requests cause."""

    def __init__(self) -> None:
        self._looks: deque[float] = deque(maxlen=MOST)

    def asked(self, slot: Slot, now: float) -> bool:
        """Have a slot that somebody asks for looked at; return whether that is worth it now."""
        problem = slot.problem
        if problem is None or not slot.lost or slot.task is not None or now >= problem.retry_at:
            return False
        if now - problem.noted < AGAIN_SECONDS:
            return False
        if len(self._looks) == MOST and now - self._looks[0] < AGAIN_SECONDS:
            return False
        self._looks.append(now)
        slot.look_again(now)
        return True
