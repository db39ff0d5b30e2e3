"""Kopf's handlers: an object of ours changed, so it is to be looked at. Only this room uses Kopf."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

import aiohttp
import kopf

from tunery_api.kinds import Kind
from tunery_api.names import GROUP, VERSION
from tunery_operator.framework.feed import SERVER, Feed
from tunery_operator.views.owner import Key

OnChange = Callable[[Key], None]
_YEAR: Final = 365 * 86_400.0


class Framework:
    """Kopf, on a feed instead of a cluster."""

    def __init__(self, feed: Feed, on_change: OnChange) -> None:
        self._registry = _registry(feed, on_change)
        self._stop = asyncio.Event()

    async def run(self, on_started: Callable[[], None]) -> None:
        """Dispatch changes to the handlers until stopped.

        `on_started` is called once Kopf has set its handlers of signals, so that others can be set instead.
        """
        # Kopf tells each of its steps; what goes wrong it tells as WARNING or ERROR.
        logging.getLogger("kopf").setLevel(logging.WARNING)
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(registry=self._registry, clusterwide=True, stop_flag=self._stop)
        on_started()
        await kopf.run_tasks(tasks, ignored=others)

    def stop(self) -> None:
        """Let `run` return."""
        self._stop.set()


def _registry(feed: Feed, on_change: OnChange) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    for kind in Kind:
        watch = kopf.on.event(GROUP, VERSION, kind.plural, registry=registry, id=kind.plural)
        watch(_handler(kind, on_change))

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=SERVER, aiohttp_session=cast(aiohttp.ClientSession, feed))

    return registry


def _handler(kind: Kind, on_change: OnChange) -> Any:
    async def changed(namespace: str, name: str, **_: Any) -> None:
        on_change(Key(kind, namespace, name))

    return changed


def _configure(settings: kopf.OperatorSettings) -> None:
    """Set Kopf up to dispatch and to do nothing else: no annotations, no finalizers, no events, no peering."""
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffs()
    # A worker for each object only waits for the next event: let it go at once.
    settings.queueing.idle_timeout = 0.2
    # The feed is silent where nothing happens, and that is well.
    settings.watching.inactivity_timeout = _YEAR


class _NoDiffs(kopf.DiffBaseStorage):
    """Kopf keeps no last-seen state: it would copy each body on each event to compare it."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""
