"""What of a download is told: a line in the log every 15 seconds, and a percentage to who shows the status."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

from tunery_common.inputs.fetch import OnBytesOfTotal
from tunery_trainer.reporting.progress import ProgressReporter, say

LINE_SECONDS: Final = 15.0
_UNITS: Final = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


class Downloads:
    """Tells of the downloads of a run, one after the other; each line has `before` in front of it."""

    def __init__(
        self,
        reporter: ProgressReporter | None = None,
        before: str = "",
        out: TextIO | None = None,
        line_seconds: float = LINE_SECONDS,
    ) -> None:
        self._reporter = reporter
        self._before = before
        self._out = out if out is not None else sys.stdout
        self._line_seconds = line_seconds

    def of(self, what: str) -> OnBytesOfTotal:
        """Return what is to be called with the bytes of `what` that are there, and those that there are in all.

        From one thread at a time. The first call and the last one print a line each, if they are not the same.
        """
        printed, last, told = -1.0, 0, -1

        def progress(done: int, total: int) -> None:
            nonlocal printed, last, told
            if total != last:
                printed, last, told = -1.0, total, -1  # the next of several
            percent = min(100, 100 * done // total) if total else None
            now = time.monotonic()
            if printed < 0 or now - printed >= self._line_seconds or (percent == 100 and told < 100):
                printed = now
                say(f"{self._before}Downloading {what} {_how_far(percent, done, total)}", self._out)
            if self._reporter is not None and percent != told:
                self._reporter.downloading(percent)
            told = percent if percent is not None else told

        return progress


def _how_far(percent: int | None, done: int, total: int) -> str:
    name, size = next(((name, size) for name, size in _UNITS if total >= size), ("bytes", 1))
    digits = 1 if size > 1 else 0
    return f"{percent} % ({done / size:.{digits}f} of {total / size:.{digits}f} {name})" if percent is not None else ""
