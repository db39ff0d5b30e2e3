"""Provide attempts: a Job with its pods, and status.attemptHistory with the end of each and the pod that caused it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from tunery_api.reasons import ExitCode, FailureReason
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import parse_time
from tunery_operator.observed.pod import PodView

EVICTED: Final = "Evicted"
"""Evicted through the API, such as by `kubectl drain`."""
PREEMPTED: Final = "Preempted"
SUSPENDED: Final = "Suspended"
POD_DELETED: Final = "PodDeleted"
"""Deleted by another client, such as `kubectl delete pod`."""
STOPPED: Final = "Stopped"
"""Ended with its Job, which Tunery has deleted: the object was stopped, or a field has changed."""
SUCCEEDED: Final = "Succeeded"
VANISHED: Final = "Vanished"
"""Gone while no operator ran."""
NOT_NEEDED: Final = "NotNeeded"
"""Ended while the first of several pods published, which needs no other pod."""
PEER_ABORTED: Final = FailureReason.PEER_LOST.value
"""Ended because another pod of its attempt had ended; that pod has the cause."""

ENDS_WITHOUT_FAULT: Final = frozenset(
    {EVICTED, PREEMPTED, SUSPENDED, POD_DELETED, STOPPED, SUCCEEDED, VANISHED, NOT_NEEDED}
)
"""Any other reason of an end is a FailureReason."""
DISRUPTIONS: Final = (ENDS_WITHOUT_FAULT - {SUCCEEDED, NOT_NEEDED}) | {
    FailureReason.NODE_LOST,
    FailureReason.NODE_PRESSURE,
}
"""Ends that say nothing about the run itself."""

Entry = Mapping[str, Any]
"""One pod in status.attemptHistory."""
Span = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A Job with the pods of its own uid, oldest first, and the warnings of the cluster about them."""

    job: JobView
    pods: tuple[PodView, ...] = ()
    warnings: tuple[ClusterWarning, ...] = ()

    @property
    def last(self) -> PodView | None:
        """Return the newest pod of the first node, which reports and publishes for all; None without a pod."""
        return next((pod for pod in reversed(self.pods) if not pod.index), None)

    @property
    def last_failed(self) -> PodView | None:
        """Return the newest pod that has failed."""
        return next((pod for pod in reversed(self.pods) if pod.failed), None)

    @property
    def newest(self) -> tuple[PodView, ...]:
        """Return the newest pod of each node, the first node's first."""
        found = {pod.index or 0: pod for pod in self.pods}
        return tuple(found[index] for index in sorted(found))

    @property
    def running(self) -> int:
        """Return the number of nodes with a running pod."""
        return sum(pod.running for pod in self.newest)

    @property
    def together(self) -> bool:
        """Return whether the first pod runs and each other pod runs or has succeeded, as it does after publishing."""
        fine = [pod.running or (pod.index and pod.exit_code == ExitCode.OK) for pod in self.newest]
        return len(fine) == self.job.nodes and all(fine)

    @property
    def meeting(self) -> bool:
        """Return whether the Job has several nodes and a pod runs on each: they form their process group."""
        return self.job.nodes > 1 and self.running == self.job.nodes

    @property
    def missing(self) -> bool:
        """Return whether a node has no pod: none was created yet, or its newest has ended."""
        return sum(not pod.finished for pod in self.newest) < self.job.nodes


def attempts(status: Mapping[str, Any]) -> Sequence[Sequence[Entry]]:
    """Return the entries of each attempt, the oldest first: one entry, or one for each of several pods."""
    found: dict[Any, list[Entry]] = {}
    for entry in status.get("attemptHistory") or ():
        name = entry.get("attempt", entry["uid"])
        found[name] = [*found.pop(name, ()), entry]  # sorted by their last start
    return list(found.values())


def newest_attempt(status: Mapping[str, Any]) -> Sequence[Entry]:
    """Return the entries of the newest attempt; empty if there was none."""
    found = attempts(status)
    return found[-1] if found else ()


def attempt_numbers(status: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of the attempt of each pod by its uid; only pods that train together have one."""
    history = status.get("attemptHistory") or ()
    return {str(entry["uid"]): int(entry["attempt"]) for entry in history if "attempt" in entry}


def first_ended(entries: Iterable[Entry]) -> Entry | None:
    """Return the pod that one attempt has ended for, or None while none of its pods has ended.

    This is the first pod whose own reason is not a peer's abort. If the first of several pods has published, it is
    that pod.
    """
    return min((entry for entry in entries if entry.get("endTime")), key=_order, default=None)


def _order(entry: Entry) -> tuple[bool, bool, bool, bool, str]:
    reason = entry.get("reason")
    published = reason == SUCCEEDED and not entry.get("index")
    aborted = entry.get("exitCode") == ExitCode.PEER_LOST
    return not published, reason == NOT_NEEDED, reason == PEER_ABORTED, aborted, str(entry["endTime"])


def cause_of(entries: Iterable[Entry]) -> str | None:
    """Return the reason that one attempt has ended for, or None while none of its pods has ended."""
    first = first_ended(entries)
    return None if first is None else str(first.get("reason"))


def last_cause(status: Mapping[str, Any]) -> Entry | None:
    """Return the pod that the newest attempt has ended for, or None while a pod of it runs."""
    newest = newest_attempt(status)
    return first_ended(newest) if all("endTime" in entry for entry in newest) else None


def last_end(status: Mapping[str, Any]) -> str | None:
    """Return the reason that the newest attempt has ended for, or None while a pod of it runs."""
    cause = last_cause(status)
    return None if cause is None else str(cause.get("reason"))


def is_failure(cause: Entry) -> bool:
    """Return whether an attempt that has ended for this pod uses up a retry.

    A disruption and the abort of a peer use up none; the Job controller counts deletions itself.
    """
    free = cause.get("exitCode") == ExitCode.PEER_LOST
    return not free and cause.get("reason") not in ENDS_WITHOUT_FAULT | DISRUPTIONS


def spans(history: Iterable[Entry]) -> Iterator[Span]:
    """Yield start and end of each pod that has ended."""
    for entry in history:
        started = parse_time(entry["startTime"]) if "endTime" in entry else None
        if started is not None:
            yield started, started + timedelta(seconds=int(entry.get("seconds") or 0))


def seconds_outside(start: datetime, end: datetime, others: Iterable[Span]) -> float:
    """Return how many seconds of a span lie in none of the others."""
    seconds = 0.0
    for begin, stop in sorted(others):
        if begin >= end:
            break
        seconds += max(0.0, (begin - start).total_seconds())
        start = max(start, stop)
    return seconds + max(0.0, (end - start).total_seconds())
