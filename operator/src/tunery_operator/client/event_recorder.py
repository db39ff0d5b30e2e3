"""Record events: repeats are dropped, a token bucket bounds each object, and threads post in the background."""

from __future__ import annotations

import hashlib
import logging
import queue
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from tunery_operator.client.client import KubeClient
from tunery_operator.client.permissions import CREATE_EVENT
from tunery_operator.errors import ApiFailure
from tunery_operator.metrics import EVENTS_DROPPED
from tunery_operator.observed.event import RETRIED, Event
from tunery_operator.observed.metadata import Owner, format_time

REPEAT_SECONDS: Final = 600.0
"""The same event is posted again only after so long."""
BURST: Final = 25
"""Tokens of one object, as in client-go's EventSourceObjectSpamFilter."""
RESERVE: Final = 5
"""Further tokens for events that report how an object ended."""
REFILL_SECONDS: Final = 60.0
"""The time in which an object gets one token."""
MAX_OBJECTS: Final = 10_000
MAX_WAITING: Final = 20_000
IN_FLIGHT: Final = 2
TRIES: Final = 3
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 5.0
MAX_REST_SECONDS: Final = 1.0
CONTROLLER: Final = "tunery.dev/operator"
COMPONENT: Final = "tunery"
MAX_NOTE: Final = 1000
MAX_NAME: Final = 253
_DIGEST: Final = 16

logger = logging.getLogger(__name__)


class _Bucket:
    """The tokens of one object, and what was posted about it lately."""

    def __init__(self, now: float) -> None:
        self.tokens = float(BURST)
        self.refilled = now
        self.posted: dict[tuple[int, str, str], tuple[float, bool]] = {}
        """When each event was posted, by generation, reason and note, and whether it was a warning."""

    def refill(self, now: float) -> None:
        """Add the tokens of the time since the last call, and drop what was posted too long ago."""
        self.tokens = min(float(BURST), self.tokens + (now - self.refilled) / REFILL_SECONDS)
        self.refilled = now
        self.posted = {key: post for key, post in self.posted.items() if now - post[0] < REPEAT_SECONDS}


class EventFilter:
    """Decides which events are posted; safe to share between threads.

    A run that evaluates often alternates between two phases: a repeat is dropped. After a warning, a repeated normal
    event is posted again, and vice versa, so that the newest event of a flapping adapter is true.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def drop_reason(self, owner: Owner, event: Event) -> str | None:
        """Return why an event is not posted: `repeated` or `limit`; None: it is posted."""
        with self._lock:
            bucket, now = self._bucket(owner.uid), self._clock()
            bucket.refill(now)
            if event.reason == RETRIED:
                bucket.posted.clear()
            key = (owner.generation, event.reason, event.note)
            if key in bucket.posted:
                return "repeated"
            if bucket.tokens < (1 - RESERVE if event.ends else 1):
                return "limit"
            bucket.tokens -= 1
            bucket.posted = {key: post for key, post in bucket.posted.items() if post[1] == event.warning}
            bucket.posted[key] = now, event.warning
            return None

    def _bucket(self, uid: str) -> _Bucket:
        """Return the bucket of an object; the objects without an event for longest are forgotten first."""
        bucket = self._buckets.setdefault(uid, _Bucket(self._clock()))
        self._buckets.move_to_end(uid)
        if len(self._buckets) > MAX_OBJECTS:
            self._buckets.popitem(last=False)
        return bucket


class EventRecorder:
    """Posts events in a few threads, oldest first; they never hold a reconcile up."""

    def __init__(self, client: KubeClient, events: EventFilter | None = None) -> None:
        self._client = client
        self._filter = events or EventFilter()
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._instance = socket.gethostname()
        self._threads = [threading.Thread(target=self._run, name="events", daemon=True) for _ in range(IN_FLIGHT)]
        for thread in self._threads:
            thread.start()

    def record(self, owner: Owner, events: Iterable[Event]) -> None:
        """Queue events about a status that has been written."""
        for event in events:
            dropped = self._filter.drop_reason(owner, event)
            if dropped is not None:
                EVENTS_DROPPED.labels(dropped).inc()
                continue
            try:
                self._waiting.put_nowait(build_event(owner, event, datetime.now(UTC), self._instance))
            except queue.Full:
                EVENTS_DROPPED.labels("full").inc()
                logger.debug("Dropped an event: reason=%s object=%s cause=full", event.reason, owner.key)

    def close(self, seconds: float) -> None:
        """Post the queued events, for at most this many seconds."""
        end = time.monotonic() + seconds
        try:
            for _ in self._threads:
                self._waiting.put(None, timeout=max(0.0, end - time.monotonic()))
        except queue.Full:
            pass
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        left = sum(thread.is_alive() for thread in self._threads) and self._waiting.qsize()
        if left:
            EVENTS_DROPPED.labels("stopped").inc(left)
            logger.warning("Stopped before all events were posted: left=%d", left)

    def _run(self) -> None:
        while (body := self._waiting.get()) is not None:
            began = time.monotonic()
            self._post(body)
            # Events take at most half of the time: on a slow API server, statuses go first.
            time.sleep(min(MAX_REST_SECONDS, time.monotonic() - began))

    def _post(self, body: dict[str, Any]) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                self._client.request(CREATE_EVENT, body["metadata"]["namespace"], body=body)
            except ApiFailure as error:
                if error.status in (403, 404, 409):
                    # 409: posted before a restart; 403 and 404: the namespace is being deleted.
                    return
                if attempt == TRIES or not _is_transient(error):
                    EVENTS_DROPPED.labels("failed").inc()
                    logger.warning("Failed to post an event: reason=%s error=%s", body["reason"], error)
                    return
                time.sleep(min(error.retry_after or RETRY_SECONDS, MAX_RETRY_SECONDS))
            else:
                return


def _is_transient(error: ApiFailure) -> bool:
    return error.status in (0, 429) or error.status >= 500


def build_event(owner: Owner, event: Event, now: datetime, instance: str) -> dict[str, Any]:
    """Return an Event of core/v1: events.k8s.io/v1 has no lastTimestamp, by which `kubectl describe` sorts.

    Its name has a digest of its content, so that a restarted operator posts it once.
    """
    key, timestamp = owner.key, format_time(now)
    digest = hashlib.sha256("\0".join((owner.uid, event.reason, event.time, event.note)).encode()).hexdigest()[:_DIGEST]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": _name(key.name, digest), "namespace": key.namespace},
        "firstTimestamp": timestamp,
        "lastTimestamp": timestamp,
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "reason": event.reason,
        "type": "Warning" if event.warning else "Normal",
        "message": event.note[:MAX_NOTE],
        "involvedObject": {
            "apiVersion": owner.api_version,
            "kind": key.kind.value,
            "namespace": key.namespace,
            "name": key.name,
            "uid": owner.uid,
        },
    }


def _name(owner: str, digest: str) -> str:
    """Return a valid name: the part before a dot of a DNS name ends with a letter or a digit."""
    return f"{owner[: MAX_NAME - _DIGEST - 1].rstrip('-.')}.{digest}"
