"""SIGTERM: an end at once while there is nothing to keep, else a request to keep what is answered and end."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tunery_api.reasons import ExitCode


class StopRequested(Exception):
    """The batch was told to stop; what was answered is kept."""


class StopSignal:
    """Answers SIGTERM and SIGINT: outside of `graceful` the process ends with 143, and so it does at the second one."""

    def __init__(self) -> None:
        self.requested = False
        self.told_at = math.inf
        """When, by time.monotonic."""
        self.last_word: Callable[[], None] = lambda: None
        """Said before the process ends at once."""
        self._ask: Callable[[], object] | None = None

    def install(self) -> None:
        """Take over both signals; call it from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def disarm(self) -> None:
        """Heed no signal from now on: only the process's own end is left."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def graceful(self, stop: asyncio.Event) -> Iterator[None]:
        """Let a signal only set `stop`, in the loop that runs now."""
        loop = asyncio.get_running_loop()
        self._ask = lambda: loop.call_soon_threadsafe(stop.set)
        try:
            yield
        finally:
            self._ask = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or self._ask is None:
            self._leave()
            return
        self.requested, self.told_at = True, time.monotonic()
        with suppress(Exception):  # it may have come in the middle of a write
            sys.stderr.write("Told to stop: waiting for the answers that are under way, and keeping them.\n")
        self._ask()

    def _leave(self) -> None:
        for word in (self.last_word, sys.stdout.flush, sys.stderr.flush):
            with suppress(Exception):
                word()
        os._exit(ExitCode.TERMINATED)
