"""A Job with its pods, what the cluster says against them, and the words for how an attempt ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tunery_operator.views.job import JobView
from tunery_operator.views.pod import PodView

EVICTED: Final = "Evicted"
"""Taken off its node on somebody's order, such as `kubectl drain`."""
PREEMPTED: Final = "Preempted"
SUSPENDED: Final = "Suspended"
STOPPED: Final = "Stopped"
"""Told to end by someone who is not known, such as `kubectl delete pod`."""
SUCCEEDED: Final = "Succeeded"
VANISHED: Final = "Vanished"
"""Gone while nobody looked."""

ENDS_WITHOUT_FAULT: Final = frozenset({EVICTED, PREEMPTED, SUSPENDED, STOPPED, SUCCEEDED, VANISHED})
"""All of these; any other end is a failure, and its word a FailureReason."""


@dataclass(frozen=True, slots=True)
class ClusterWarning:
    """A warning event of the cluster about a Job or one of its pods."""

    reason: str
    message: str
    time: str
    """RFC 3339 in UTC, of its last occurrence."""
    about: Literal["Job", "Pod"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A Job with the pods of its own uid, oldest first, and what the cluster says against them."""

    job: JobView
    pods: tuple[PodView, ...] = ()
    warnings: tuple[ClusterWarning, ...] = ()

    @property
    def last(self) -> PodView | None:
        """The newest pod."""
        return self.pods[-1] if self.pods else None
