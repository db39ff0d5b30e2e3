"""What containers said in their termination messages, of an older or a newer trainer, too; and words for attempts."""

from __future__ import annotations

from typing import Final

from tunery_api.failures import Failure
from tunery_api.runspec import PreflightReport, RunResult
from tunery_api.tolerant import read
from tunery_operator.observed.attempt_history import POD_DELETED

PREVIOUS_ATTEMPT: Final = "previousAttempt"
"""The fact of a blocker that tells how the attempt before it failed."""
_FINDINGS: Final = ("failure", "dataset", "memory", "resolved")


def parse_report(message: str) -> PreflightReport | None:
    """Return the report in a preflight container's termination message, or None for any other text."""
    report = read(PreflightReport, message)
    if report is None or all(getattr(report, name) is None for name in _FINDINGS):
        return None
    return report


def parse_result(message: str) -> RunResult | None:
    """Return the result in a train or merge container's termination message, or None for any other text."""
    return read(RunResult, message)


def reported_failure(message: str) -> Failure | None:
    """Return why a container says that it failed, or None where it says nothing of the kind."""
    answer = parse_result(message)
    return answer.failure if answer is not None else None


def attempt_words(number: int, pod: str | None) -> str:
    """Return how an attempt that has ended is called: with its pod where that was not alone."""
    return f"attempt {number}" if pod is None else f"attempt {number}, pod {pod},"


def was_ended(attempt: str, why: str, *, goes_on: bool = True) -> str:
    """Return what is said of an attempt that was ended for what is no fault of it; `attempt`: how it is called."""
    # Of these ends the Job controller counts the deletion alone.
    counted = ", which counts as a retry" if why == POD_DELETED and goes_on else ""
    return f"{attempt} was ended: {why}{counted}; {'the next one goes on' if goes_on else 'no retry is left'}"


def told(message: str) -> str:
    """Return what a container was at as a signal ended it; empty where it says nothing of the kind."""
    answer = parse_result(message)
    return (answer.told if answer is not None else None) or ""
