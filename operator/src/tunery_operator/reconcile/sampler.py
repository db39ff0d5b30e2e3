"""The sampler of every sweep: a few processes at a time, each for a second or two, so that none stays in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from tunery_api.search.ask import SuggestionFailed, needs_optuna, suggestions
from tunery_api.search.protocol import Answer, Ask
from tunery_operator import metrics
from tunery_operator.errors import SamplerBusy

AT_A_TIME: Final = 2
"""A burst of sweeps would start one for each thread that reconciles."""
LARGE: Final = 1024
"""Trials told, times trials asked for: where there are more, computing may take longer than starting the process."""
TURN_SECONDS: Final = 0.5
"""Between two that are told to come again: a process takes a second or two, and there are two places."""
LONGEST_SECONDS: Final = 30.0


class Sampler:
    """Asks what to try next."""

    def __init__(self, ask: Callable[[Ask], Answer] = suggestions, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._turns = threading.Lock()
        self._last_turn = 0.0
        """When whoever was refused last is to come again."""
        self._places = threading.BoundedSemaphore(AT_A_TIME)
        self._large = threading.BoundedSemaphore(AT_A_TIME - 1)
        """Held by large questions beside their place: one place is always left to the others."""

    def suggestions(self, ask: Ask) -> Answer:
        """Return what to try next; at once where that takes no process.

        Raises SamplerBusy where too many ask for one at once, SuggestionFailed.
        """
        with ExitStack() as held:
            if needs_optuna(ask):
                held.enter_context(self._place(ask))
            began = self._clock()
            try:
                return self._ask(ask)
            except SuggestionFailed:
                metrics.SUGGEST_ERRORS.inc()
                raise
            finally:
                metrics.SUGGEST_SECONDS.observe(self._clock() - began)

    @contextmanager
    def _place(self, ask: Ask) -> Iterator[None]:
        """Hold a place for the question's process; raises SamplerBusy where none is free for one of its size."""
        told, asked = len(ask.earlier) + len(ask.trials), max(1, len(ask.numbers))
        wanted = [self._large, self._places] if told * asked > LARGE else [self._places]
        with ExitStack() as held:
            for place in wanted:
                if not place.acquire(blocking=False):
                    raise SamplerBusy(self._turn())
                held.callback(place.release)
            yield

    def _turn(self) -> float:
        """Return in how many seconds to come again: one after the other, else fifty would look at it every second."""
        with self._turns:
            now = self._clock()
            self._last_turn = min(max(self._last_turn, now) + TURN_SECONDS, now + LONGEST_SECONDS)
            return self._last_turn - now
