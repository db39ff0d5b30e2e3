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

from tunery_api.names import TRAIN_GRACE_SECONDS
from tunery_api.reasons import ExitCode
from tunery_api.status import CheckpointStatus

GRACE_SECONDS: Final = TRAIN_GRACE_SECONDS - 20.0
"""How long a graceful stop may take, before Kubernetes kills the pod."""

GOES_ON: Final = " The same run started again goes on from its last checkpoint, if it has one."
"""The hint of what stores checkpoints."""
SWEEP_GOES_ON: Final = " The same manifest run again goes on: with the trials that have ended, and from the checkpoint."
"""The hint of a sweep without a cluster."""


class StopRequested(Exception):
    """Training was told to stop; `checkpoint` is the newest complete one, if there is one."""

    def __init__(self, checkpoint: CheckpointStatus | None = None, *, elsewhere: bool = False) -> None:
        """`elsewhere`: another pod was told to, and this one has ended with it."""
        super().__init__("told to stop")
        self.checkpoint = checkpoint
        self.elsewhere = elsewhere


class StopSignal:
    """Answers SIGTERM and SIGINT from the first line of the program on.

    Outside of `graceful()` the process exits at once with 143: nothing that it holds is worth saving, though
    `successor` may have something to do. Inside, the first signal sets `requested`; a second one ends the process at
    once, whatever it is doing, and GRACE_SECONDS end it as a signal outside does. That another process was told, which
    sets `requested` too, is no signal of its own.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace_seconds = grace_seconds
        self._graceful = False
        self._watchdog: threading.Timer | None = None
        self.requested = False
        self.told = False
        """This very process was."""
        self.last_word: Callable[[], None] = _nothing
        """Said before the process ends at once."""
        self.successor: Callable[[], None] = _nothing
        """Takes the place of a process that the first signal ends at once, by exec; may return where there is none."""
        self.hint = ""
        """Of what may be done after an end at once."""

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; call it from the main thread."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def disarm(self) -> None:
        """Heed no signal from now on: the work is done, and only the process's own end, or another one, is left."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def heeded(self) -> None:
        """Take note that what was asked for is done: what follows may take its time, and the next signal ends it.

        Nothing takes its place then.
        """
        if self._watchdog is not None:
            self._watchdog.cancel()
        self.requested = self._graceful = False
        self.successor = _nothing

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """Let a signal only ask for a stop: the body looks at `requested` after each step.

        Where the body fails that stays so: what it has is stored still, and then the process ends by itself.
        """
        self._graceful = True
        yield
        self._graceful = False

    def obey(self) -> None:
        """End the process if it was told to while it could not be."""
        if self.requested:
            self._end()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested and self.told:
            self.leave()
        if not self._graceful:
            self._end()
        self.told = True
        self.hear()
        sys.stderr.write("Told to stop: finishing this step and saving a checkpoint.\n")

    def hear(self) -> None:
        """Take that somebody else was told to stop who trains with this process, as if it had been told so itself."""
        self.requested = True
        if self._watchdog is not None:  # this process is told, too, and has all of its own time from then on
            self._watchdog.cancel()
        self._watchdog = threading.Timer(self._grace_seconds, self._end)
        self._watchdog.daemon = True
        self._watchdog.start()

    def _end(self) -> None:
        with suppress(Exception):
            self.successor()
        self.leave()

    def leave(self) -> None:
        """End the process with 143 at once, without unwinding: an import may be half done, a library may be hung."""
        said = partial(os.write, 2, f"Told to stop: ending at once.{self.hint}\n".encode())
        for word in (self.last_word, said, sys.stdout.flush, sys.stderr.flush):
            with suppress(Exception):  # the signal may have come in the middle of a write, which sys.stderr refuses
                word()
        os._exit(ExitCode.TERMINATED)


def _nothing() -> None:
    """Say nothing."""
