"""Post events in the background: they never hold a reconcile up, and what cannot be posted is counted."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from tunery_operator.errors import ApiFailure
from tunery_operator.kube.client import KubeClient
from tunery_operator.kube.event_body import build_event
from tunery_operator.kube.event_limit import EventLimit
from tunery_operator.kube.rbac import CREATE_EVENT
from tunery_operator.metrics import EVENTS_DROPPED
from tunery_operator.views.event import Event
from tunery_operator.views.owner import Owner

MAX_WAITING: Final = 20_000
IN_FLIGHT: Final = 2
TRIES: Final = 3
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 5.0
MAX_REST_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


class EventPoster:
    """A few threads that post events, oldest first."""

    def __init__(self, client: KubeClient, limit: EventLimit | None = None) -> None:
        self._client = client
        self._limit = limit or EventLimit()
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._instance = socket.gethostname()
        self._threads = [threading.Thread(target=self._run, name="events", daemon=True) for _ in range(IN_FLIGHT)]
        for thread in self._threads:
            thread.start()

    def post(self, owner: Owner, events: Iterable[Event]) -> None:
        """Queue events; the status that they tell of must have been written."""
        for event in events:
            refused = self._limit.refused(owner.uid, event)
            if refused is not None:
                EVENTS_DROPPED.labels(refused).inc()
                continue
            try:
                told = self._limit.counted(owner.uid, event)
                self._waiting.put_nowait(build_event(owner, told, datetime.now(UTC), self._instance))
            except queue.Full:
                EVENTS_DROPPED.labels("full").inc()
                logger.debug("too many events wait: %s of %s is not posted", event.reason, owner.key)

    def close(self, seconds: float) -> None:
        """Post what waits, for at most so many seconds."""
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
            logger.warning("about %d events were not posted before the operator stopped", left)

    def _run(self) -> None:
        while (body := self._waiting.get()) is not None:
            began = time.monotonic()
            self._post(body)
            # Half of the time is for others: where an API server is slow, a status goes before what is told of it.
            time.sleep(min(MAX_REST_SECONDS, time.monotonic() - began))

    def _post(self, body: dict[str, Any]) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                self._client.request(CREATE_EVENT, body["metadata"]["namespace"], body=body)
            except ApiFailure as error:
                if error.status in (403, 404, 409):
                    # 409: posted before a restart; 403 and 404: the namespace is being deleted.
                    return
                if attempt == TRIES or not _passes(error):
                    EVENTS_DROPPED.labels("failed").inc()
                    logger.warning("event %s was not posted: %s", body["reason"], error)
                    return
                time.sleep(min(error.retry_after or RETRY_SECONDS, MAX_RETRY_SECONDS))
            else:
                return


def _passes(error: ApiFailure) -> bool:
    """Tell whether trying again may help."""
    return error.status in (0, 429) or error.status >= 500
