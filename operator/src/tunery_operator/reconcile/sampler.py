"""The sampler of every sweep: a few processes at a time, each for a second or two, so that none stays in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from tunery_operator import metrics
from tunery_operator.errors import ShuttingDown
from tunery_operator.reconcile.turns import Turns
from tunery_search.protocol import Answer, Ask
from tunery_search.sampler import Processes, SuggestionFailed, needs_optuna, suggestions

AT_A_TIME: Final = 2
"""A burst of sweeps would start one for each thread that reconciles."""
LARGE: Final = 1024
"""Trials told, times trials asked for: where there are more, computing may take longer than starting the process."""


class Sampler:
    """Asks what to try next."""

    def __init__(self, ask: Callable[[Ask], Answer] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = Processes()
        self._ask = ask or partial(suggestions, processes=self._processes)
        self._clock = clock
        self._turns = Turns(AT_A_TIME, clock)

    def suggestions(self, ask: Ask, who: str) -> Answer:
        """Return what to try next; at once where that takes no process.

        `who` is the uid of the sweep that asks, which keeps its place in line by it.
        Raises SamplerBusy where it is not its turn, ShuttingDown after `close`, SuggestionFailed.
        """
        with ExitStack() as held:
            if needs_optuna(ask):
                held.enter_context(self._place(ask, who))
            began = self._clock()
            try:
                return self._ask(ask)
            except SuggestionFailed as error:
                if self._processes.closed:
                    raise ShuttingDown("the operator shuts down before the sampler has answered") from error
                metrics.SUGGEST_ERRORS.inc()
                raise
            finally:
                metrics.SUGGEST_SECONDS.observe(self._clock() - began)

    def close(self) -> None:
        """End the processes that are under way, and start none from now on."""
        self._processes.close()

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
