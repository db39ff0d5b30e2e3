"""The sampler of every sweep: a few processes at a time, each for a second or two, so that none stays in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from tunery_api.search.ask import SuggestionFailed, needs_optuna, suggestions
from tunery_api.search.protocol import Answer, Ask
from tunery_operator import metrics
from tunery_operator.reconcile.turns import Turns

AT_A_TIME: Final = 2
"""A burst of sweeps would start one for each thread that reconciles."""
LARGE: Final = 1024
"""Trials told, times trials asked for: where there are more, computing may take longer than starting the process."""


class Sampler:
    """Asks what to try next."""

    def __init__(self, ask: Callable[[Ask], Answer] = suggestions, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._turns = Turns(AT_A_TIME, clock)

    def suggestions(self, ask: Ask, who: str) -> Answer:
        """Return what to try next; at once where that takes no process.

        `who` is the uid of the sweep that asks, which keeps its place in line by it.
        Raises SamplerBusy where it is not its turn, SuggestionFailed.
        """
        with ExitStack() as held:
            if needs_optuna(ask):
                held.enter_context(self._place(ask, who))
            began = self._clock()
            try:
                return self._ask(ask)
            except SuggestionFailed:
                metrics.SUGGEST_ERRORS.inc()
                raise
            finally:
                metrics.SUGGEST_SECONDS.observe(self._clock() - began)

    @contextmanager
    def _place(self, ask: Ask, who: str) -> Iterator[None]:
        """Hold a place for the question's process; raises SamplerBusy."""
        told, asked = len(ask.earlier) + len(ask.trials), max(1, len(ask.numbers))
        # One place is always left to the others.
        large = told * asked > LARGE
        self._turns.take(who, large=large)
        began = self._clock()
        try:
            yield
        finally:
            self._turns.give(large=large, seconds=self._clock() - began)
