"""Define the errors of the client and its exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunery_api.errors import FieldError


class ExitCode(IntEnum):
    """The exit codes of the command `tunery`."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    STOPPED = 3
    TIMEOUT = 124
    INTERRUPTED = 130


class TuneryError(Exception):
    """What went wrong, and what to do about it.

    `reason` is a failure reason of the API (docs/operations.md#failure-reasons), or one of the client's own, such as
    Forbidden, NotFound or ClusterUnavailable.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, reason: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{reason}: {message}" + (f"\n{remedy}" if remedy else ""))
        self.reason = reason
        self.message = message
        self.remedy = remedy


class UsageError(TuneryError):
    """An invalid argument or manifest; nothing was sent to the cluster."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__("InvalidArgument", message, remedy)


class InvalidManifest(UsageError):
    """A manifest with errors, all of which are in the message; nothing was sent to the cluster."""

    def __init__(self, source: str, errors: Sequence[tuple[str, FieldError]]) -> None:
        """Store the errors of `source`, each with the title of its document; "" if that is the only one."""
        self.errors = tuple(errors)
        lines = [f"{title}: {error}" if title else str(error) for title, error in errors]
        what = "1 error" if len(lines) == 1 else f"{len(lines)} errors"
        super().__init__("\n".join([f"{source} has {what}", *(f"  {line}" for line in lines)]))
        self.reason = "InvalidSpec"


class Stopped(TuneryError):
    """The object was stopped before its end."""

    exit_code = ExitCode.STOPPED


class TimedOut(TuneryError):
    """The object has not finished in time; it continues."""

    exit_code = ExitCode.TIMEOUT


class NotFound(TuneryError):
    """The API server has no such object."""


class Conflict(TuneryError):
    """The object exists already, or changed since it was read."""


class Unavailable(TuneryError):
    """The API server does not answer now; a later request may succeed."""
