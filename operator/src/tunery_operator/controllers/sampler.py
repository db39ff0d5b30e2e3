"""Provide the sampler of all sweeps: no reconcile waits for Optuna, and an answer enqueues its sweep."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tunery_operator import metrics
from tunery_operator.errors import SamplerBusy
from tunery_operator.observed.metadata import Key
from tunery_search.history import Answer, Ask
from tunery_search.sampler import needs_optuna, suggestions

MAX_PROCESSES: Final = 2
"""Processes of Optuna at a time; further questions wait in their order."""
MAX_ANSWERS: Final = 1000
"""Answers that are kept; a sweep whose answer was dropped asks again."""


@dataclass(frozen=True, slots=True)
class _Question:
    """A question that was asked for a sweep, and its answer."""

    digest: bytes
    asked: float
    answer: Future[Answer]


class Sampler:
    """Answers the questions of sweeps; safe for threads."""

    def __init__(
        self,
        wake: Callable[[Key], object] = lambda key: None,
        ask: Callable[[Ask], Answer] = suggestions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` enqueues a sweep whose answer is there."""
        self._wake = wake
        self._ask = ask
        self._clock = clock
        self._threads = ThreadPoolExecutor(MAX_PROCESSES, thread_name_prefix="sampler")
        self._lock = threading.Lock()
        self._questions: OrderedDict[str, _Question] = OrderedDict()
        """By the uid of the sweep."""
        self._closed = False

    def suggestions(self, ask: Ask, key: Key, uid: str) -> Answer:
        """Return what to try next for a sweep, at once where that takes no process.

        Raises SamplerBusy while Optuna computes the answer, and SuggestionFailed.
        """
        if not needs_optuna(ask):
            return self._timed(ask, self._clock())
        if self._closed:
            raise SamplerBusy(0.0)
        digest = hashlib.sha256(ask.model_dump_json().encode()).digest()
        with self._lock:
            known = self._questions.get(uid)
            if known is None or known.digest != digest:
                known = self._questions[uid] = self._submit(ask, digest, key)
                while len(self._questions) > MAX_ANSWERS:
                    self._questions.popitem(last=False)
            elif known.answer.done():
                del self._questions[uid]
                return known.answer.result()
        raise SamplerBusy(self._clock() - known.asked)

    def _submit(self, ask: Ask, digest: bytes, key: Key) -> _Question:
        now = self._clock()
        answer = self._threads.submit(self._timed, ask, now)
        answer.add_done_callback(lambda _: None if self._closed else self._wake(key))
        return _Question(digest, now, answer)

    def _timed(self, ask: Ask, began: float) -> Answer:
        try:
            return self._ask(ask)
        except Exception:
            if not self._closed:
                metrics.SUGGEST_ERRORS.inc()
            raise
        finally:
            metrics.SUGGEST_SECONDS.observe(self._clock() - began)

    def close(self) -> None:
        """Kill the processes, and start no other: the interpreter waits for the threads that wait for them."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()
