"""SIGTERM: an exit at once while there is nothing to save, else a request to finish the step and save."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Final

from tunery_api.exitcodes import ExitCode
from tunery_api.names import TRAIN_GRACE_SECONDS
from tunery_api.status import CheckpointStatus

GRACE_SECONDS: Final = TRAIN_GRACE_SECONDS - 20.0
"""How long a graceful stop may take, before Kubernetes kills the pod."""

_AT_ONCE: Final = (
    "Told to stop: ending at once. The same run started again goes on from its last checkpoint, if it has one.\n"
)


class StopRequested(Exception):
    """Training was told to stop; `checkpoint` is the newest complete one, if there is one."""

    def __init__(self, checkpoint: CheckpointStatus | None = None) -> None:
        super().__init__("told to stop")
        self.checkpoint = checkpoint


class StopSignal:
    """Answers SIGTERM and SIGINT from the first line of the program on.

    Outside of `graceful()` the process exits at once with 143: nothing that it holds is worth saving. Inside, the
    first signal sets `requested`; a second one, or GRACE_SECONDS, ends the process whatever it is doing.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._graceful = False
        self._watchdog: threading.Timer | None = None
        self.requested = False
        self.last_word: Callable[[], None] = _nothing
        """Said before the process ends at once."""

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; call it from the main thread."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def disarm(self) -> None:
        """Heed no signal from now on: the work is done, and only the process's own end is left."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def heeded(self) -> None:
        """Take note that what was asked for is done: what follows may take its time, and the next signal ends it."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self.requested = False

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """Let a signal only ask for a stop: the body looks at `requested` after each step."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._graceful or self.requested:
            self.leave(_AT_ONCE)
        self.requested = True
        self._watchdog = threading.Timer(self._grace_seconds, self.leave)
        self._watchdog.daemon = True
        self._watchdog.start()
        sys.stderr.write("Told to stop: finishing this step and saving a checkpoint.\n")

    def leave(self, said: str = "") -> None:
        """End the process with 143 at once, without unwinding: an import may be half done, a library may be hung."""
        for word in (self.last_word, partial(sys.stderr.write, said), sys.stdout.flush, sys.stderr.flush):
            with suppress(Exception):  # the signal may have come in the middle of a write
                word()
        os._exit(ExitCode.TERMINATED)


def _nothing() -> None:
    """Say nothing."""
