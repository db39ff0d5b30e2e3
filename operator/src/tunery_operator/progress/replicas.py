"""Provide the reports of server replicas: stored, and answered with the adapters to serve."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from tunery_api.redact import redact
from tunery_api.serving import (
    LAST_USED_SECONDS,
    SILENT_SECONDS,
    Desired,
    ReplicaReply,
    ReplicaReport,
    ReplicaState,
    ReportedAdapter,
)
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.object_state import ReplicaReportRecord
from tunery_operator.runtime.workqueue import WorkQueue

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""
MAX_REPORT: Final = 1536 * 1024
"""Bytes of a report of 4,096 adapters."""
MIN_INTERVAL: Final = 5.0
MAX_INTERVAL: Final = SILENT_SECONDS / 2
"""With any number of replicas: one report may be lost before the state of a replica counts as unknown."""
POSTS_PER_SECOND: Final = 100
"""The target rate, over all replicas of all servers."""
MIN_DELAY: Final = 0.2
ADAPTERS_PER_SECOND: Final = 20_000
"""After a report, a server is reconciled in MIN_DELAY seconds, and later by the number of adapters of all replicas:
one reconcile covers several reports of a large server."""


class Replicas:
    """Accepts the reports of servers' pods; all methods belong to the event loop's thread."""

    def __init__(self, cache: Cache, queue: WorkQueue) -> None:
        self._cache = cache
        self._queue = queue

    def take(self, key: Key, uid: str, pod_uid: str, body: bytes) -> web.Response:
        """Return the answer to a report. Raises ValidationError for an invalid one.

        The server is reconciled only if the report differs from the last one. Most are equal, and not even parsed.
        """
        digest = hashlib.blake2b(body, digest_size=16).digest()
        before = self._cache.state(key, uid).reports.get(pod_uid)
        if before is not None and before.digest == digest:
            state = before.state
        else:
            state = _sanitize(ReplicaReport.model_validate_json(body).replica_status, time.time())
        if self.store(key, uid, pod_uid, state, digest):
            self._queue.add_after(key, self._delay(key, state))
        reply = ReplicaReply(desired=self._newer_desired(key, state), interval_seconds=self._interval())
        text = reply.model_dump_json(by_alias=True, exclude_none=True)
        return web.json_response(text=text)

    def store(self, key: Key, uid: str, pod_uid: str, state: ReplicaState, digest: bytes = b"") -> bool:
        """Store a replica's report; return whether it has news, as any report has after a long silence."""
        now, server = self._cache.now(), self._cache.state(key, uid)
        before = server.reports.get(pod_uid)
        if before is not None and (before.state is state or before.state == state):
            record = before._replace(at=now, digest=digest)
            has_news = (now - before.at).total_seconds() >= SILENT_SECONDS
        else:
            record, has_news = ReplicaReportRecord(_shared(state, server.reports), now, digest), True
        server.reports = {**server.reports, pod_uid: record}
        view = self._cache.get(key)
        return has_news and view is not None and view.uid == uid

    def _delay(self, key: Key, state: ReplicaState) -> float:
        return MIN_DELAY + len(state.adapters) * len(self._cache.state(key).reports) / ADAPTERS_PER_SECOND

    def _newer_desired(self, key: Key, state: ReplicaState) -> Desired | None:
        """Return the adapters to serve if the replica has an older revision, else None."""
        desired = self._cache.state(key).desired
        return desired if desired is not None and desired.revision > state.revision else None

    def _interval(self) -> float:
        seconds = math.ceil(len(self._cache.server_pods.items()) / POSTS_PER_SECOND)
        return min(MAX_INTERVAL, max(MIN_INTERVAL, float(seconds)))


def _shared(state: ReplicaState, reports: Mapping[str, ReplicaReportRecord]) -> ReplicaState:
    """Return a report in which each adapter that another replica reports alike is stored once."""
    other = next(iter(reports.values()), None)
    if other is None:
        return state
    known = {adapter.name: adapter for adapter in other.state.adapters}
    adapters = [known[each.name] if known.get(each.name) == each else each for each in state.adapters]
    return state.model_copy(update={"adapters": adapters})


def _sanitize(state: ReplicaState, now: float) -> ReplicaState:
    """Return the report as a status can hold it: numbers in range, and no credential in any text."""
    return state.model_copy(
        update={
            "revision": min(state.revision, MAX_INTEGER),
            "engine_restarts": min(state.engine_restarts, MAX_INTEGER),
            "message": _redacted(state.message),
            "adapters": [_sanitize_adapter(each, now) for each in state.adapters],
        }
    )


def _sanitize_adapter(adapter: ReportedAdapter, now: float) -> ReportedAdapter:
    small = max(adapter.rank or 0, adapter.size_bytes or 0) <= MAX_INTEGER
    if small and adapter.message is None and adapter.hint is None and adapter.last_used is None:
        return adapter
    return adapter.model_copy(
        update={
            "rank": _at_most(adapter.rank),
            "size_bytes": _at_most(adapter.size_bytes),
            "message": _redacted(adapter.message),
            "hint": _redacted(adapter.hint),
            "last_used": _coarse(adapter.last_used, now),
        }
    )


def _coarse(last_used: float | None, now: float) -> float | None:
    """Return the time of an adapter's last request, rounded so that requests alone change no status."""
    if last_used is None or not 0 < last_used < math.inf:
        return None
    return min(last_used, now) // LAST_USED_SECONDS * LAST_USED_SECONDS


def _at_most(value: int | None) -> int | None:
    return None if value is None else min(value, MAX_INTEGER)


def _redacted(text: str | None) -> str | None:
    return None if text is None else redact(text)
