"""What every reconcile works with: the cluster, the memory, the platform, the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tunery_operator.client.cache import Cache
from tunery_operator.client.client import KubeClient
from tunery_operator.client.events import EventRecorder
from tunery_operator.controllers.pace import ConflictBackoff, Retries
from tunery_operator.controllers.sampler import Sampler
from tunery_operator.controllers.warnings import Warnings
from tunery_operator.planning.job import Platform


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class ReconcileContext:
    """One for each process."""

    client: KubeClient
    cache: Cache
    platform: Platform
    events: EventRecorder
    now: Callable[[], datetime] = field(default=_utc_now)
    monotonic: Callable[[], float] = field(default=time.monotonic)
    retries: Retries = field(default_factory=Retries)
    quarrels: ConflictBackoff = field(default_factory=lambda: ConflictBackoff(time.monotonic))
    warnings: Warnings = field(default_factory=lambda: Warnings(time.monotonic))
    sampler: Sampler = field(default_factory=Sampler)
    watched_before: datetime | None = None
    """Until when another operator was at work before this one began, as the Lease says; None: unknown."""
    acting_since: datetime | None = None
    """Since when this operator takes reports; None: it does not."""
    distrust: Callable[[], str | None] = lambda: None
    """Returns why pods cannot trust the certificate of the progress endpoint; None: they can."""
    has_backlog: Callable[[], bool] = lambda: False
    """Returns whether high-priority keys wait: their Jobs are created before the statuses of others are written."""
    preflights: threading.Lock = field(default_factory=threading.Lock)
    """Held while preflights are counted and one is made, where their number is bounded."""

    def use_ca(self, ca_pem: str) -> None:
        """Let the pods of Jobs that are made from now on trust this authority at the progress endpoint."""
        progress = self.platform.progress
        if progress is not None:
            self.platform = self.platform._replace(progress=replace(progress, ca_pem=ca_pem))
