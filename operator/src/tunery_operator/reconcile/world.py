"""What every story works with: the cluster, the memory, the platform, the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tunery_operator.kube.cache import Cache
from tunery_operator.kube.client import KubeClient
from tunery_operator.kube.events import EventPoster
from tunery_operator.plan.common import Platform


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class World:
    """One for each process."""

    client: KubeClient
    cache: Cache
    platform: Platform
    events: EventPoster
    side: ThreadPoolExecutor
    """Threads for the second of two calls that go side by side."""
    now: Callable[[], datetime] = field(default=_utc_now)
    monotonic: Callable[[], float] = field(default=time.monotonic)
