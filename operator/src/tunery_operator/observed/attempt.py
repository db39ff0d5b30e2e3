"""A Job with its pods, what the cluster says against them, and the words for how an attempt ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from tunery_api.reasons import ExitCode, FailureReason
from tunery_operator.observed.job import JobView
from tunery_operator.observed.metadata import parse_time
from tunery_operator.observed.pod import PodView

EVICTED: Final = "Evicted"
"""Taken off its node on somebody's order, such as `kubectl drain`."""
PREEMPTED: Final = "Preempted"
SUSPENDED: Final = "Suspended"
POD_DELETED: Final = "PodDeleted"
"""Deleted by another client, such as `kubectl delete pod`."""
STOPPED: Final = "Stopped"
"""Ended with its Job, which Tunery has deleted: the object was stopped, or a field has changed."""
SUCCEEDED: Final = "Succeeded"
VANISHED: Final = "Vanished"
"""Gone while nobody looked."""
NOT_NEEDED: Final = "NotNeeded"
"""However it ended: the first of several pods published by then, which needs no other one."""

ENDS_WITHOUT_FAULT: Final = frozenset(
    {EVICTED, PREEMPTED, SUSPENDED, POD_DELETED, STOPPED, SUCCEEDED, VANISHED, NOT_NEEDED}
)
"""All of these; any other end is a failure, and its word a FailureReason."""


_EVER: Final = datetime.min.replace(tzinfo=UTC)
_MOMENT: Final = timedelta(seconds=1)
"""What times of the API server are told apart by."""

PEER_ABORTED: Final = FailureReason.PEER_LOST.value
"""How a pod ended that another one of its attempt has left; that one says why."""


def first_ended(entries: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return of the pods of one attempt, as status.attemptHistory has them, that which the others ended for.

    That is the first one that is not the echo of another's end; of two in one second a failure. Where the first pod has
    published, it is that one: what became of the others meanwhile is nobody's, however it ends. None: none has ended.
    """
    return min((entry for entry in entries if entry.get("endTime")), key=_order, default=None)


def not_needed(status: Mapping[str, Any]) -> frozenset[str]:
    """Return the uids of the pods that ended when nobody needed them any more, as status.attemptHistory has them."""
    history = status.get("attemptHistory") or ()
    return frozenset(str(entry["uid"]) for entry in history if entry.get("reason") == NOT_NEEDED)


def attempt_numbers(status: Mapping[str, Any]) -> dict[str, int]:
    """Return to which attempt pods that work together belong, by their uids, as status.attemptHistory has it."""
    history = status.get("attemptHistory") or ()
    return {str(entry["uid"]): int(entry["attempt"]) for entry in history if "attempt" in entry}


def cause_of(entries: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the reason for which the pods of one attempt have ended, of status.attemptHistory; None: none has."""
    first = first_ended(entries)
    return None if first is None else str(first.get("reason"))


def _order(entry: Mapping[str, Any]) -> tuple[bool, bool, bool, str, bool]:
    reason = entry.get("reason")
    published = reason == SUCCEEDED and not entry.get("index")
    time, faultless = str(entry["endTime"]), reason in ENDS_WITHOUT_FAULT
    return not published, reason == NOT_NEEDED, reason == PEER_ABORTED, time, faultless


@dataclass(frozen=True, slots=True)
class ClusterWarning:
    """A warning event of the cluster about a Job or one of its pods."""

    reason: str
    message: str
    time: str
    """RFC 3339 in UTC, of its last occurrence."""
    about: Literal["Job", "Pod"]
    uid: str = ""
    """Of the Job or pod; empty: of whichever."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A Job with the pods of its own uid, oldest first, and what the cluster says against them."""

    job: JobView
    pods: tuple[PodView, ...] = ()
    warnings: tuple[ClusterWarning, ...] = ()
    not_needed: frozenset[str] = frozenset()
    """The uids of pods of which status.attemptHistory says so."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """To which attempt pods belong, by their uids, as status.attemptHistory has it."""

    @property
    def last(self) -> PodView | None:
        """The newest pod; of pods that work together the newest first one, which reports and publishes for all."""
        return next((pod for pod in reversed(self.pods) if not pod.index), None)

    @property
    def newest(self) -> tuple[PodView, ...]:
        """The newest pod of each node, the first node's first."""
        found = {pod.index or 0: pod for pod in self.pods}
        return tuple(found[index] for index in sorted(found))

    @property
    def running(self) -> int:
        """How many nodes have a pod that runs."""
        return sum(pod.running for pod in self.newest)

    @property
    def together(self) -> bool:
        """Tell whether the first pod runs, and all others do or have ended well: they do as it has published."""
        fine = [pod.running or (pod.index and pod.exit_code == ExitCode.OK) for pod in self.newest]
        return len(fine) == self.job.nodes and all(fine)

    @property
    def meeting(self) -> bool:
        """Tell whether several pods work together and all of them run: they have met, or are to."""
        return self.job.nodes > 1 and self.running == self.job.nodes

    @property
    def missing(self) -> bool:
        """Tell whether a node has no pod: none was made yet, or its newest has ended."""
        return sum(not pod.finished for pod in self.newest) < self.job.nodes

    @property
    def ended_together(self) -> tuple[PodView, ...]:
        """The pods of the last attempt that have ended and were needed: each was there until all of them were."""
        pods = [pod for pod in self.pods if not self.is_not_needed(pod.uid, pod.index, pod.finished_at)]
        ended = {pod.index: pod for pod in pods if pod.finished or pod.finished_at is not None}
        begun = max((time for pod in ended.values() if (time := parse_time(pod.created))), default=None)
        return tuple(
            pod for pod in ended.values() if begun is None or pod.finished_at is None or pod.finished_at >= begun
        )

    def is_not_needed(self, uid: str, index: int | None, ended_at: datetime | None) -> bool:
        """Tell whether a pod that has ended did so while the first one published, which the Job was told of."""
        begun = parse_time(self.last.created) if self.last is not None else None
        alone = bool(index and self.job.failed_indexes_allowed)
        return uid in self.not_needed or (alone and (ended_at is None or begun is None or ended_at >= begun))

    @property
    def failures(self) -> int:
        """How many attempts of pods that work together have failed: each once, however many of its pods did.

        What the Job controller does not count is none: a disruption, and the end that is only the echo of another's.
        One that outlived others, as it stored its checkpoint or had not begun, counts for the attempt that
        status.attemptHistory has it in; while that does not know it, for the one that had begun by then.
        """
        begun: list[datetime] = []
        known: dict[int, int] = {}
        seen: set[int | None] = set()
        for pod in self.pods:
            if pod.index in seen or not begun:
                begun.append(parse_time(pod.created) or _EVER)
                seen = set()
            seen.add(pod.index)
            if pod.uid in self.numbers:
                known[len(begun)] = self.numbers[pod.uid]
        failed = ((pod, bisect_right(begun, ended)) for pod, ended in self._failed())
        return len({self.numbers.get(pod.uid, known.get(place, -place)) for pod, place in failed})

    @property
    def failed_too_often(self) -> bool:
        """Tell whether pods that work together have failed as attempts more often than they are tried again."""
        return self.job.retries is not None and self.failures > self.job.retries

    def _failed(self) -> Iterator[tuple[PodView, datetime]]:
        """Yield the pods that failed, and when: before the next of its number was made, whatever nodes' clocks say."""
        next_made: dict[int | None, datetime] = {}
        for pod in reversed(self.pods):
            made = parse_time(pod.created) or _EVER
            if _counts(pod) and not self.is_not_needed(pod.uid, pod.index, pod.finished_at):
                ended, latest = max(made, pod.finished_at or made), next_made.get(pod.index)
                yield pod, (ended if latest is None else max(made, min(ended, latest - _MOMENT)))
            next_made[pod.index] = made


def _counts(pod: PodView) -> bool:
    """Tell whether the end of a pod is a failure, as the rules of its Job have it."""
    free = pod.deleting or pod.disruption is not None or pod.exit_code == ExitCode.PEER_LOST
    # A container ends a moment before its pod does.
    return (pod.phase == "Failed" or pod.exit_code not in (None, ExitCode.OK)) and not free
