"""Why a run of several processes ends: the first failure that is its process's own, and not the echo of another's."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.remedies import Remedy
from tunery_common.errors import TuneryError

CAUSE_SECONDS: Final = 5.0
"""How long the cause is waited for: the process that it ended is gone a moment before it can be told."""

_ECHO: Final = re.compile(
    r"Connection reset by peer|Connection closed by peer|Broken pipe|Timed out waiting|Socket Timeout"
    r"|failed to recv|Connection was likely closed|remote process exited|process group.*abort"
    r"|connectFullMesh failed|timed out connecting|gloo/transport/tcp.*(?:error|timed out)",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store say where a process is gone; gloo in a plain RuntimeError."""
_SILENCE: Final = re.compile(r"Timed out waiting (\d+)ms for (?:recv|send)")
"""What gloo says where nobody is gone, and what another process has to send does not come."""
_UNANSWERED: Final = re.compile(r"gloo/transport/tcp.*Connection timed out", re.DOTALL)
"""What it says where the kernel gives up first: what was sent is not acknowledged (net.ipv4.tcp_retries2)."""
_ECHO_TYPES: Final = ("DistBackendError", "DistNetworkError", "DistStoreError")

Leave = Callable[[TuneryError], NoReturn]


class PeerLost(TuneryError):
    """Another process of the run is gone, and ends this one with it."""

    def __init__(self, message: str, *remedies: Remedy, counts: bool | Callable[[], bool] = False) -> None:
        """`counts`: nobody else's end counts as an attempt, so this one does; asked at the end where it may change."""
        super().__init__(FailureReason.PEER_LOST, message, *remedies)
        self._counts = counts

    @property
    def exit_code(self) -> ExitCode:
        """PEER_LOST, which is tried again for ever; RETRYABLE where it counts."""
        counts = self._counts() if callable(self._counts) else self._counts
        return ExitCode.RETRYABLE if counts else ExitCode.PEER_LOST


class Causes:
    """What is heard of other processes' ends, from whatever thread."""

    def __init__(self, leave: Leave) -> None:
        """`leave` ends this process: it may be deep in a library that waits for one that is gone."""
        self._leave = leave
        self._condition = threading.Condition()
        self._cause: TuneryError | None = None
        self._lost: TuneryError | None = None
        self.store: Callable[[], object] = lambda: None
        """Stores what is on its way, before this process is ended; it takes its time, and then gives up."""
        self.over = False
        """Nobody has to be there any more; set it by `settle` where another thread may be about to end this process."""

    def known(self, error: TuneryError) -> None:
        """Take the failure that another process has by itself; the first one counts."""
        with self._condition:
            self._cause = self._cause or error
            self._condition.notify_all()

    def lost(self, error: TuneryError, *, echo: bool = False) -> None:
        """End this process in a moment, as another one is gone: for the cause, else for `error`.

        `echo`: that one only says so of a third. A collective on a CPU fails at once, and then the main thread ends
        this process first; one on a GPU may never do so.
        """
        with self._condition:
            self._lost = self._lost or (None if echo else error)
        if self.over:
            return
        time.sleep(CAUSE_SECONDS)
        with self._condition:
            if not self.over:
                self.store()
                self._leave(self._cause or self._lost or error)

    def settle(self) -> None:
        """Take that nobody has to be there any more: this process ends by itself, with what it still has to store."""
        with self._condition:
            self.over = True

    def of(self, error: BaseException) -> BaseException:
        """Return why this process cannot go on: what is known of another one, where `error` is but its echo."""
        if isinstance(error, TuneryError) or not is_echo(error):
            return error
        self.settle()
        with self._condition:
            self._condition.wait_for(lambda: self._cause is not None, CAUSE_SECONDS)
            return self._cause or _silence(error) or self._lost or PeerLost(_nothing_heard(error), counts=True)


def _silence(error: BaseException) -> PeerLost | None:
    """Return the failure that the others are there, and what they compute does not come; None for any other echo."""
    found = _SILENCE.search(str(error))
    if found is not None:
        text = f"what all processes sum has not come for {int(found[1]) / 60_000:g} minutes"
    elif _UNANSWERED.search(str(error)) is not None:
        text = "what was sent to another process was not taken until the kernel gave up, as it does after 15 minutes"
    else:
        return None
    text = f"{text}, though each of them is there"
    what = "one of them hangs, or what stands between the pods lets some TCP ports through no more"
    return PeerLost(f"{text}: {what}", counts=True)


def _nothing_heard(error: BaseException) -> str:
    return f"another process is gone or cannot be reached, and nothing was heard of it: {error}"


def is_echo(error: BaseException) -> bool:
    """Tell whether `error` only says that another process is gone."""
    if isinstance(error, OSError):  # of a file or of storage: those libraries raise none
        return False
    return type(error).__name__ in _ECHO_TYPES or _ECHO.search(str(error)) is not None
