"""The sampler of every sweep: a few processes at a time, each for a second or two, so that none stays in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from tunery_api.search.ask import SuggestionFailed, suggestions
from tunery_api.search.protocol import Answer, Ask
from tunery_operator import metrics
from tunery_operator.errors import SamplerBusy

AT_A_TIME: Final = 2
"""A burst of sweeps would start one for each thread that reconciles."""


class Sampler:
    """Asks what to try next."""

    def __init__(self, ask: Callable[[Ask], Answer] = suggestions) -> None:
        self._ask = ask
        self._places = threading.BoundedSemaphore(AT_A_TIME)

    def suggestions(self, ask: Ask) -> Answer:
        """Return what to try next. Raises SamplerBusy where too many ask at once, SuggestionFailed."""
        if not self._places.acquire(blocking=False):
            raise SamplerBusy(f"{AT_A_TIME} other sweeps ask for trials right now")
        began = time.monotonic()
        try:
            return self._ask(ask)
        except SuggestionFailed:
            metrics.SUGGEST_ERRORS.inc()
            raise
        finally:
            self._places.release()
            metrics.SUGGEST_SECONDS.observe(time.monotonic() - began)
