"""The exit codes of a trainer container: what Kubernetes and a shell are told."""

from __future__ import annotations

from enum import IntEnum

from tunery_api.reasons import ADVICE, FailureReason


class ExitCode(IntEnum):
    """Documented in docs/operations.md; the train Job's podFailurePolicy speaks of USER_ERROR."""

    OK = 0
    BUG = 1
    USER_ERROR = 64
    """The user must act: no retry can help (sysexits' EX_USAGE)."""
    DATA_ERROR = 65
    """Of `check` alone: rows cannot be used (sysexits' EX_DATAERR)."""
    RETRYABLE = 75
    """May heal by itself: worth a retry (sysexits' EX_TEMPFAIL)."""
    KILLED = 137
    """SIGKILL, often the kernel's for too much memory; OOMKilled beside it says so."""
    TERMINATED = 143
    """Told to stop (SIGTERM) before the last step; a checkpoint was written."""


def exit_code_for(reason: FailureReason) -> ExitCode:
    """Return the code a container ends with when it fails for `reason`."""
    if reason is FailureReason.INTERNAL_ERROR:
        return ExitCode.BUG
    return ExitCode.RETRYABLE if ADVICE[reason].retryable else ExitCode.USER_ERROR
