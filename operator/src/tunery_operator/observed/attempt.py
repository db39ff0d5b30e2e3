"""A Job with its pods and the warning events about them."""

from __future__ import annotations

from dataclasses import dataclass

from tunery_api.reasons import ExitCode
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.observed.job import JobView
from tunery_operator.observed.pod import PodView


@dataclass(frozen=True, slots=True)
class Attempt:
    """A Job with the pods of its own uid, oldest first, and what the cluster says against them."""

    job: JobView
    pods: tuple[PodView, ...] = ()
    warnings: tuple[ClusterWarning, ...] = ()

    @property
    def last(self) -> PodView | None:
        """The newest pod; of pods that work together the newest first one, which reports and publishes for all."""
        return next((pod for pod in reversed(self.pods) if not pod.index), None)

    @property
    def last_failed(self) -> PodView | None:
        """The newest pod that has failed."""
        return next((pod for pod in reversed(self.pods) if pod.phase == "Failed"), None)

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
