"""Post events in the background: they never hold a reconcile up, and the newest win when there are too many."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from tunery_operator.errors import ApiFailure
from tunery_operator.kube.client import KubeClient
from tunery_operator.kube.event_body import build_event
from tunery_operator.kube.rbac import CREATE_EVENT
from tunery_operator.plan.model import Owner
from tunery_operator.status.events import Event

MAX_WAITING: Final = 20_000

logger = logging.getLogger(__name__)


class EventPoster:
    """A thread that posts events one after the other."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(MAX_WAITING)
        self._instance = socket.gethostname()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def post(self, owner: Owner, events: Iterable[Event]) -> None:
        """Queue events; the status that they tell of must have been written."""
        for event in events:
            body = build_event(owner, event, datetime.now(UTC), self._instance)
            try:
                self._waiting.put_nowait(body)
            except queue.Full:
                logger.warning("too many events wait: %s of %s is not posted", event.reason, owner.key)

    def close(self, seconds: float) -> None:
        """Post what waits, for at most so many seconds."""
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (body := self._waiting.get()) is not None:
            try:
                self._client.request(CREATE_EVENT, body["metadata"]["namespace"], body=body)
            except ApiFailure as error:
                # 409: posted before a restart; 403 and 404: the namespace is being deleted.
                if error.status not in (403, 404, 409):
                    logger.warning("event %s was not posted: %s", body["reason"], error)
