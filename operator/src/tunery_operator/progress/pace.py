"""How often pods may report: all of them together cost the operator about the same, however many there are."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MIN_SECONDS: Final = 0.9
"""A pod's reports that come faster than this are refused; the trainer keeps a second between two."""
MIN_INTERVAL: Final = 3
MAX_INTERVAL: Final = 300
REPORTS_PER_SECOND: Final = 200
"""What the pace aims at, over all pods."""
REMEMBERED_SECONDS: Final = 2.0 * MAX_INTERVAL
MAX_PODS: Final = 100_000


class Pace:
    """When each pod reported last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: OrderedDict[str, float] = OrderedDict()

    def admits(self, pod_uid: str) -> bool:
        """Tell whether a pod may report now, and take note that it did."""
        now = self._clock()
        last = self._last.get(pod_uid)
        if last is not None and now - last < MIN_SECONDS:
            return False
        self._last[pod_uid] = now
        self._last.move_to_end(pod_uid)
        while len(self._last) > MAX_PODS or now - next(iter(self._last.values())) > REMEMBERED_SECONDS:
            self._last.popitem(last=False)
        return True

    def interval(self) -> int:
        """Return the seconds after which a pod should report again."""
        return min(MAX_INTERVAL, max(MIN_INTERVAL, math.ceil(len(self._last) / REPORTS_PER_SECOND)))
