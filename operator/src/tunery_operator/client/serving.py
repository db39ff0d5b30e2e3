"""What is remembered of one server beside its Deployment and its pods: all of it can be had again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from tunery_api.serving import Desired, ReplicaState


class ReplicaReportRecord(NamedTuple):
    """What a replica said last."""

    state: ReplicaState
    at: datetime
    """When it came, by our clock."""
    digest: bytes
    """Of its body."""


@dataclass(slots=True)
class Serving:
    """One server."""

    children: dict[tuple[str, str], str] = field(default_factory=dict)
    """What each child says, as a digest, when it was read or written last; by resource and name."""
    looked_at: float | None = None
    """The monotonic time at which the children were last read, all of them; None: not yet."""
    desired: Desired | None = None
    """What its replicas are to serve, as its ConfigMap says; None: not read yet."""
    said: dict[str, ReplicaReportRecord] = field(default_factory=dict)
    """By uid of the pod."""

    def shared(self, state: ReplicaState) -> ReplicaState:
        """Return a report with each adapter that another one tells alike kept once: many replicas say the same."""
        other = next(iter(self.said.values()), None)
        if other is None:
            return state
        known = {adapter.name: adapter for adapter in other.state.adapters}
        adapters = [known[each.name] if known.get(each.name) == each else each for each in state.adapters]
        return state.model_copy(update={"adapters": adapters})
