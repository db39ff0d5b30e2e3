"""What is remembered of one server beside its Deployment and its pods: all of it can be had again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from tunery_api.serving import Desired, ReplicaState


class Said(NamedTuple):
    """What a replica said last."""

    state: ReplicaState
    at: datetime
    """When it came, by our clock."""


@dataclass(slots=True)
class Serving:
    """One server."""

    children: dict[tuple[str, str], str] = field(default_factory=dict)
    """What each child says, as a digest, when it was read or written last; by resource and name."""
    looked_at: float | None = None
    """The monotonic time at which the children were last read, all of them; None: not yet."""
    desired: Desired | None = None
    """What its replicas are to serve, as its ConfigMap says; None: not read yet."""
    said: dict[str, Said] = field(default_factory=dict)
    """By uid of the pod."""
