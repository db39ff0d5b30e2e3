"""Provide event handlers: they update the cache with what a reflector reports, and enqueue the keys concerned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tunery_api.kinds import Kind
from tunery_operator.client.cache import Cache
from tunery_operator.observed.metadata import Key

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Enqueue = Callable[[Iterable[Key]], None]
"""Takes the keys of objects to reconcile."""


class OwnerEventHandler:
    """Handles the objects of one of our kinds."""

    def __init__(self, kind: Kind, namespace: str | None, cache: Cache, enqueue: Enqueue) -> None:
        self._kind, self._namespace = kind, namespace
        self._cache, self._enqueue = cache, enqueue

    def on_update(self, body: Json) -> None:
        """Add or update an object."""
        with _log_bugs(self._kind.plural, body):
            self._enqueue(self._cache.see_owner(self._kind, body))

    def on_delete(self, body: Json) -> None:
        """Remove a deleted object."""
        with _log_bugs(self._kind.plural, body):
            meta = body["metadata"]
            key = Key(self._kind, meta["namespace"], meta["name"])
            self._enqueue(self._cache.forget_owner(key, meta["uid"]))

    def on_list(self, uids: set[str], version: str) -> None:
        """Remove objects that a complete list of that version does not have."""
        self._enqueue(self._cache.retain_owners(self._kind, self._namespace, uids, version))


class JobEventHandler:
    """Handles our Jobs."""

    def __init__(self, namespace: str | None, cache: Cache, enqueue: Enqueue) -> None:
        self._namespace = namespace
        self._cache, self._enqueue = cache, enqueue

    def on_update(self, body: Json) -> None:
        """Add or update a Job."""
        with _log_bugs("jobs", body):
            self._enqueue(self._cache.see_job(body))

    def on_delete(self, body: Json) -> None:
        """Remove a Job that was deleted, or marked as done."""
        with _log_bugs("jobs", body):
            meta = body["metadata"]
            self._enqueue(self._cache.forget_job(meta["namespace"], meta["name"], meta["uid"]))

    def on_list(self, uids: set[str], version: str) -> None:
        """Remove objects that a complete list of that version does not have."""
        self._enqueue(self._cache.retain_jobs(self._namespace, uids, version))


class DeploymentEventHandler:
    """Handles the Deployments of servers."""

    def __init__(self, namespace: str | None, cache: Cache, enqueue: Enqueue) -> None:
        self._namespace = namespace
        self._servers, self._enqueue = cache.servers, enqueue

    def on_update(self, body: Json) -> None:
        """Add or update a Deployment."""
        with _log_bugs("deployments", body):
            self._enqueue(self._servers.see_deployment(body))

    def on_delete(self, body: Json) -> None:
        """Remove a Deployment that was deleted, or no longer has our label."""
        with _log_bugs("deployments", body):
            self._enqueue(self._servers.forget_deployment(body))

    def on_list(self, uids: set[str], version: str) -> None:
        """Remove objects that a complete list of that version does not have."""
        self._enqueue(self._servers.retain_deployments(self._namespace, uids, version))


class PodEventHandler:
    """Handles the pods of our Jobs and servers."""

    def __init__(self, namespace: str | None, cache: Cache, enqueue: Enqueue) -> None:
        self._namespace = namespace
        self._cache, self._enqueue = cache, enqueue

    def on_update(self, body: Json) -> None:
        """Add or update a pod."""
        with _log_bugs("pods", body):
            self._enqueue(self._cache.see_pod(body))

    def on_delete(self, body: Json) -> None:
        """Remove a pod that has ended, or was deleted."""
        with _log_bugs("pods", body):
            self._enqueue(self._cache.forget_pod(body))

    def on_list(self, uids: set[str], version: str) -> None:
        """Remove objects that a complete list of that version does not have."""
        self._enqueue(self._cache.retain_pods(self._namespace, uids, version))


@contextmanager
def _log_bugs(resource: str, body: Json) -> Iterator[None]:
    """Log an exception: one unreadable object must not stop the others."""
    try:
        yield
    except Exception:  # any bug: `body` is of another program
        meta = body.get("metadata") or {}
        logger.exception("Bug in Tunery: resource=%s object=%s/%s", resource, meta.get("namespace"), meta.get("name"))
