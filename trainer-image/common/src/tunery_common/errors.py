"""The one error that programs raise on purpose: a reason, a sentence, and what to do."""

from __future__ import annotations

import errno
from typing import Final

from tunery_api.reasons import ADVICE, ExitCode, FailureReason, exit_code_for
from tunery_api.runspec import PreflightReport, RunResult
from tunery_api.scrub import scrub, shorten

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What the kernel says where a disk, or what a user may take of it, is full."""
IN_THE_WAY: Final = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What it says where something stands there that is no file, and will not become one by waiting."""
_MAX_TEXT: Final = 64 * 1024


class TuneryError(Exception):
    """A failure with a name: what happened, and what the user should do about it.

    Raise it `from` the exception that caused it, so that the log keeps the cause.
    """

    def __init__(self, reason: FailureReason, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint if hint is not None else ADVICE[reason].hint
        self.reached: PreflightReport | RunResult | None = None
        """What preflight had found, or the run had reached, all the same, for its last words."""

    @property
    def exit_code(self) -> ExitCode:
        """The code the process ends with: USER_ERROR, RETRYABLE or BUG."""
        return exit_code_for(self.reason)

    def about(self, what: str) -> TuneryError:
        """Return this failure with `what`, such as a field, before its message unless that begins with it."""
        message = self.message if self.message.startswith(what) else f"{what}: {self.message}"
        return TuneryError(self.reason, message, self.hint)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of what `error` says, of at most `limit` bytes, else the name of its class.

    Credentials are hidden before anything is cut: half of one would not be known any more.
    """
    lines = scrub(str(error), _MAX_TEXT).strip().splitlines()
    return shorten(lines[0], limit) if lines else type(error).__name__
