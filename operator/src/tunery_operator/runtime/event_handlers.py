"""Provide event handlers: they update the cache with what a reflector reports, and enqueue the keys concerned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tunery_api.kinds import Kind
from tunery_operator.observed.deployment import is_server_pod, parse_deployment, parse_server_pod
from tunery_operator.observed.job import parse_job
from tunery_operator.observed.metadata import Key
from tunery_operator.observed.pod import parse_pod
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.store import Store

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Enqueue = Callable[[Iterable[Key]], None]
"""Takes the keys of objects to reconcile."""


class StoreEventHandler:
    """Keeps stores equal to what a reflector sees of a resource, and enqueues the keys concerned.

    `parse` returns the store that an object belongs to, and its view.
    """

    def __init__(
        self,
        resource: str,
        namespace: str | None,
        stores: Sequence[Store[Any]],
        parse: Callable[[Json], tuple[Store[Any], Any]],
        enqueue: Enqueue,
    ) -> None:
        self._resource, self._namespace = resource, namespace
        self._stores, self._parse, self._enqueue = stores, parse, enqueue

    def on_update(self, body: Json) -> None:
        """Add or update an object."""
        with _log_bugs(self._resource, body):
            store, view = self._parse(body)
            self._enqueue(store.put(view))

    def on_delete(self, body: Json) -> None:
        """Delete an object that was deleted, or is no longer selected."""
        with _log_bugs(self._resource, body):
            store, view = self._parse(body)
            self._enqueue(store.delete(view))

    def on_list(self, uids: set[str], version: str) -> None:
        """Delete the objects that a complete list of that version does not have."""
        for store in self._stores:
            self._enqueue(store.prune(self._namespace, uids, version))


def handle_objects(kind: Kind, namespace: str | None, cache: Cache, enqueue: Enqueue) -> StoreEventHandler:
    """Return the handler of the objects of one of our kinds."""
    store = cache.objects[kind]
    return StoreEventHandler(kind.plural, namespace, [store], lambda body: (store, cache.parse(kind, body)), enqueue)


def handle_jobs(namespace: str | None, cache: Cache, enqueue: Enqueue) -> StoreEventHandler:
    """Return the handler of our Jobs."""
    return StoreEventHandler("jobs", namespace, [cache.jobs], lambda body: (cache.jobs, parse_job(body)), enqueue)


def handle_deployments(namespace: str | None, cache: Cache, enqueue: Enqueue) -> StoreEventHandler:
    """Return the handler of the Deployments of servers."""
    store = cache.deployments
    return StoreEventHandler("deployments", namespace, [store], lambda body: (store, parse_deployment(body)), enqueue)


def handle_pods(namespace: str | None, cache: Cache, enqueue: Enqueue) -> StoreEventHandler:
    """Return the handler of the pods of our Jobs and servers."""

    def parse(body: Json) -> tuple[Store[Any], Any]:
        if is_server_pod(body):
            return cache.server_pods, parse_server_pod(body)
        return cache.pods, parse_pod(body, cache.now())

    return StoreEventHandler("pods", namespace, [cache.pods, cache.server_pods], parse, enqueue)


@contextmanager
def _log_bugs(resource: str, body: Json) -> Iterator[None]:
    """Log an exception: one unreadable object must not stop the others."""
    try:
        yield
    except Exception:  # any bug: `body` is of another program
        meta = body.get("metadata") or {}
        logger.exception("Bug in Tunery: resource=%s object=%s/%s", resource, meta.get("namespace"), meta.get("name"))
