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
from tunery_search.history import SuggestionReply, SuggestionRequest
from tunery_search.sampler import needs_optuna, suggest

MAX_PROCESSES: Final = 2
"""Processes of Optuna at a time; further requests wait in order."""
MAX_ANSWERS: Final = 1000
"""Answers that are retained; a sweep whose answer was dropped requests it again."""


@dataclass(frozen=True, slots=True)
class _Request:
    """A request of a sweep, and its answer."""

    digest: bytes
    submitted: float
    answer: Future[SuggestionReply]


class SamplerPool:
    """Answers the requests of sweeps; safe for threads."""

    def __init__(
        self,
        wake: Callable[[Key], object] = lambda key: None,
        compute: Callable[[SuggestionRequest], SuggestionReply] = suggest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` enqueues a sweep whose answer is ready."""
        self._wake = wake
        self._compute = compute
        self._clock = clock
        self._threads = ThreadPoolExecutor(MAX_PROCESSES, thread_name_prefix="sampler")
        self._lock = threading.Lock()
        self._requests: OrderedDict[str, _Request] = OrderedDict()
        """By the uid of the sweep."""
        self._closed = False

    def suggest(self, request: SuggestionRequest, key: Key, uid: str) -> SuggestionReply:
        """Return what a sweep tries next, at once if that takes no process.

        Raises SamplerBusy while Optuna computes the answer, and SuggestionFailed.
        """
        if not needs_optuna(request):
            return self._timed(request, self._clock())
        if self._closed:
            raise SamplerBusy(0.0)
        digest = hashlib.sha256(request.model_dump_json().encode()).digest()
        with self._lock:
            known = self._requests.get(uid)
            if known is None or known.digest != digest:
                known = self._requests[uid] = self._submit(request, digest, key)
                while len(self._requests) > MAX_ANSWERS:
                    self._requests.popitem(last=False)
            elif known.answer.done():
                del self._requests[uid]
                return known.answer.result()
        raise SamplerBusy(self._clock() - known.submitted)

    def _submit(self, request: SuggestionRequest, digest: bytes, key: Key) -> _Request:
        now = self._clock()
        answer = self._threads.submit(self._timed, request, now)
        answer.add_done_callback(lambda _: None if self._closed else self._wake(key))
        return _Request(digest, now, answer)

    def _timed(self, request: SuggestionRequest, began: float) -> SuggestionReply:
        try:
            return self._compute(request)
        except Exception:  # any, as it is only counted here and raised again
            if not self._closed:
                metrics.SUGGEST_ERRORS.inc()
            raise
        finally:
            metrics.SUGGEST_SECONDS.observe(self._clock() - began)

    def close(self) -> None:
        """Kill the processes, and start no other: at its exit, the interpreter waits for their threads."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()
