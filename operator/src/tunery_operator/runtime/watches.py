"""Provide all reflectors of this process: what they watch, their start and stop, their health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from tunery_api.kinds import Kind
from tunery_api.names import DONE_LABEL, GROUP, KIND_LABEL, MANAGED_BY, MANAGED_BY_LABEL, VERSION
from tunery_operator.client.connection import Connection
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.event_handlers import (
    Enqueue,
    handle_deployments,
    handle_jobs,
    handle_objects,
    handle_pods,
)
from tunery_operator.runtime.list_watch import ListWatchClient, Timeouts, WatchSpec
from tunery_operator.runtime.reflector import EventHandler, Reflector, ReflectorHealth

logger = logging.getLogger(__name__)

SYNC_CHECK_SECONDS = 0.02


class Watches:
    """One reflector for each resource, in each namespace that is watched for itself."""

    def __init__(self, reflectors: Sequence[Reflector]) -> None:
        self._reflectors = reflectors
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to list and watch."""
        for reflector in self._reflectors:
            task = asyncio.create_task(reflector.run(), name=f"watch {reflector.health.spec}")
            task.add_done_callback(_log_bug)
            self._tasks.append(task)

    async def stop(self) -> None:
        """End all watches."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def synced(self) -> None:
        """Return when every resource has been listed and the cache holds it."""
        while not all(health.synced for health in self._healths):
            await asyncio.sleep(SYNC_CHECK_SECONDS)

    @property
    def _healths(self) -> list[ReflectorHealth]:
        return [reflector.health for reflector in self._reflectors]

    def troubles(self) -> list[str]:
        """Return what keeps the cache from being up to date; none: the operator is ready."""
        return [health.trouble for health in self._healths if health.trouble is not None]

    def defects(self) -> list[str]:
        """Return what only a restart fixes."""
        ended = [f"{task.get_name()} has ended" for task in self._tasks if task.done()]
        return ended + [health.defect for health in self._healths if health.defect is not None]

    def ages(self) -> dict[str, float]:
        """Return the seconds since the last sign of life, by resource; of several namespaces the most."""
        found: dict[str, float] = {}
        for health in self._healths:
            resource = health.spec.resource
            found[resource] = max(health.age, found.get(resource, 0.0))
        return found


def _log_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error('Bug in Tunery, a task ended: task="%s"', task.get_name(), exc_info=task.exception())


def build_watches(
    connection: Connection, cache: Cache, namespaces: Sequence[str], enqueue_owner: Enqueue, enqueue_child: Enqueue
) -> Watches:
    """Return the watches of all namespaces, or of those that are named.

    `enqueue_owner` takes the keys that a change of one of our objects concerns, `enqueue_child` those of a child's.
    """

    def reflector(spec: WatchSpec, handler: EventHandler) -> Reflector:
        return Reflector(ListWatchClient(connection, Timeouts()), handler, ReflectorHealth(spec))

    found = []
    for namespace in namespaces_to_watch(namespaces):
        for kind in Kind:
            found.append(reflector(owners(kind, namespace), handle_objects(kind, namespace, cache, enqueue_owner)))
        found.append(reflector(jobs(namespace), handle_jobs(namespace, cache, enqueue_child)))
        found.append(reflector(deployments(namespace), handle_deployments(namespace, cache, enqueue_child)))
        found.append(reflector(pods(namespace), handle_pods(namespace, cache, enqueue_child)))
    return Watches(found)


_OURS: Final = f"{MANAGED_BY_LABEL}={MANAGED_BY}"


def owners(kind: Kind, namespace: str | None) -> WatchSpec:
    """Return the watch of all objects of one kind; of a finished one the cache keeps a few fields."""
    return WatchSpec(kind.plural, f"/apis/{GROUP}/{VERSION}", namespace)


def jobs(namespace: str | None) -> WatchSpec:
    """Return the watch of Tunery's Jobs that are not marked as done."""
    return WatchSpec("jobs", "/apis/batch/v1", namespace, (("labelSelector", f"{_OURS},!{DONE_LABEL}"),))


def deployments(namespace: str | None) -> WatchSpec:
    """Return the watch of the Deployments of servers."""
    ours = f"{_OURS},{KIND_LABEL}={Kind.ADAPTERSERVER.singular}"
    return WatchSpec("deployments", "/apis/apps/v1", namespace, (("labelSelector", ours),))


def pods(namespace: str | None) -> WatchSpec:
    """Return the watch of the pods of Jobs and servers that have not ended."""
    unfinished = "status.phase!=Succeeded,status.phase!=Failed"
    return WatchSpec("pods", "/api/v1", namespace, (("labelSelector", _OURS), ("fieldSelector", unfinished)))


def namespaces_to_watch(chosen: Iterable[str]) -> list[str | None]:
    """Return the namespaces to watch, one reflector each; [None]: all in one."""
    return list(dict.fromkeys(chosen)) or [None]
