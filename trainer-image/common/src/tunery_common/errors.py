"""The one error that programs raise on purpose: a reason, a sentence, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from tunery_api.failures import Failure
from tunery_api.reasons import ExitCode, FailureReason, exit_code_for
from tunery_api.redact import redact, shorten
from tunery_api.remedies import MAX_REMEDY, Remedy, edit, recreate, remedies_for, retry
from tunery_api.runspec import DiskLimit, PreflightReport, RunResult

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What the kernel says where a disk, or what a user may take of it, is full."""
IN_THE_WAY: Final = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
"""What it says where something stands there that is no file, and will not become one by waiting."""
_MAX_TEXT: Final = 64 * 1024


class TuneryError(Exception):
    """A failure with a reason, a message, and remedies.

    Raise it `from` the exception that caused it, so that the log keeps the cause.
    """

    def __init__(self, reason: FailureReason, message: str, *remedies: Remedy) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedies = remedies or remedies_for(reason)
        self.facts: dict[str, str] = {}
        """What the hint says besides the remedies; see tunery_api.failures.Failure.facts."""
        self.reached: PreflightReport | RunResult | None = None
        """What preflight had found, or the run had reached, before it failed."""

    @property
    def failure(self) -> Failure:
        """This error as data, without credentials."""
        remedies = [each.model_copy(update={"text": redact(each.text, MAX_REMEDY)}) for each in self.remedies]
        facts = {key: redact(value) for key, value in self.facts.items()}
        return Failure(reason=self.reason, message=redact(self.message), remedies=remedies, facts=facts)

    @property
    def exit_code(self) -> ExitCode:
        """The code the process ends with: USER_ERROR, RETRYABLE or BUG."""
        return exit_code_for(self.reason)

    def about(self, what: str) -> TuneryError:
        """Return this error with `what`, such as a field, before its message unless that begins with it."""
        message = self.message if self.message.startswith(what) else f"{what}: {self.message}"
        return self.with_(message=message)

    def with_(self, *, message: str | None = None, remedies: Sequence[Remedy] | None = None) -> TuneryError:
        """Return a copy with another message or other remedies."""
        error = TuneryError(
            self.reason,
            self.message if message is None else message,
            *(self.remedies if remedies is None else remedies),
        )
        error.facts = dict(self.facts)
        return error

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of what `error` says, of at most `limit` bytes, else the name of its class.

    Credentials are hidden before anything is cut: half of one would not be known any more.
    """
    lines = redact(str(error), _MAX_TEXT).strip().splitlines()
    return shorten(lines[0], limit) if lines else type(error).__name__


def raise_disk(limit: DiskLimit) -> Remedy:
    """Return the remedy for a disk that is too small: its limit is a field of the spec, or the platform's."""
    path = limit.field.removeprefix("spec.")
    if path == limit.field:
        return retry(f"Ask a cluster admin to raise {path}")
    return edit(f"Raise {path}", path) if path.startswith("resources.") else recreate(f"Raise {path}", path)
