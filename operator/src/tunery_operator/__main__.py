"""Provide the operator process: `python -m tunery_operator --config=FILE`."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import ClientTimeout, web
from prometheus_client import REGISTRY

from tunery_operator.client.client import KubeClient
from tunery_operator.client.connection import Connection, load_connection
from tunery_operator.client.event_recorder import EventRecorder
from tunery_operator.config import InvalidSettings, Settings, read_settings
from tunery_operator.controllers import reconcile
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.sampler_pool import SamplerPool
from tunery_operator.health import build_app
from tunery_operator.logs import configure_logging
from tunery_operator.metrics import LEADER, State, StateCollector
from tunery_operator.observed.metadata import Key
from tunery_operator.planning.job import Platform, Progress
from tunery_operator.progress.auth import TokenReviewer
from tunery_operator.progress.server import Endpoint, ProgressServer
from tunery_operator.progress.tls import Certificate, keep_fresh
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.kopf_source import KopfDispatcher, KopfEventSource
from tunery_operator.runtime.leader_gate import LeaderGate
from tunery_operator.runtime.leaderelection import LeaderElection
from tunery_operator.runtime.watches import build_watches
from tunery_operator.runtime.workqueue import Requeue, WorkQueue

STOP_SECONDS: Final = 5.0
TRIM_SECONDS: Final = 5.0
"""Time after which the lists that every start reads have been worked through."""
TRIM_AGAIN_SECONDS: Final = 60.0
LEASE_TIMEOUT: Final = ClientTimeout(total=7, sock_connect=3)
"""Shorter than the time in which the Lease must be renewed."""

logger = logging.getLogger(__name__)


def main() -> int:
    """Run until SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunery_operator")
    parser.add_argument("--config", type=Path, required=True, help="YAML file with the values of the chart")
    file: Path = parser.parse_args().config
    try:
        settings = read_settings(file)
    except InvalidSettings as error:
        sys.stderr.write(f"Invalid settings in {file}:\n{error}\n")
        return 2
    configure_logging(settings.operator.logging)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4, thread_name_prefix="io"))
    operator = Operator(settings, load_connection())
    logger.info("Operator starts: image=%s", settings.trainer.image)
    await operator.start()
    failed = await operator.until_stopped()
    await operator.stop()
    logger.info("Operator stopped")
    return 1 if failed else 0


class Operator:
    """All parts of the process, and the order in which they start and stop."""

    def __init__(self, settings: Settings, connection: Connection) -> None:
        self._settings = settings
        self._cache = cache = Cache(settings.default_ttl_seconds_after_finished)
        client = self._client = KubeClient(connection)
        self._lease_client = KubeClient(connection, LEASE_TIMEOUT)
        self._events = EventRecorder(client)
        certificate = self._certificate = _certificate(settings)
        progress = None if certificate is None else Progress(settings.progress.url, certificate.authority)
        platform = Platform(settings, progress)
        self._context = ReconcileContext(client, cache, platform, self._events)
        self._queue = WorkQueue(self._reconcile, settings.operator.workers, cache.is_of_sweep)
        self._context.has_backlog = self._queue.has_backlog
        self._gate = gate = LeaderGate(cache, self._queue)
        loop = asyncio.get_running_loop()
        self._context.sampler = SamplerPool(lambda key: loop.call_soon_threadsafe(gate.add, [key]))
        self._kopf_source = source = KopfEventSource()
        self._kopf = KopfDispatcher(source, gate.add)
        self._watches = build_watches(connection, cache, settings.watch_namespaces, self._notify_kopf, gate.add)
        self._election = _election(settings, self._lease_client)
        endpoint = Endpoint(TokenReviewer(client), cache, self._queue, is_leader=self._is_active)
        self._progress_server = ProgressServer(endpoint.handle)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._election_task: asyncio.Task[None] | None = None

    def _reconcile(self, key: Key) -> Requeue:
        return reconcile(self._context, key)

    def _notify_kopf(self, keys: Iterable[Key]) -> None:
        if self._gate.on:
            self._kopf_source.add(keys)

    def _is_active(self) -> bool:
        return self._gate.on and (self._election is None or self._election.is_leader)

    async def start(self) -> None:
        """Start every part; parts that need the cache wait until it is synced."""
        self._handle_signals()
        self._health_server = await self._serve_health()
        self._watches.start()
        background = [self._begin(), self._gate.resync(), self._gate.expire()]
        certificate = self._certificate
        if certificate is not None:
            await self._progress_server.start(self._settings.progress.port, certificate)
            self._context.certificate_fault = lambda: certificate.fault
            background.append(keep_fresh(certificate, self._context.use_ca))
        self._tasks = [asyncio.create_task(each) for each in background]
        # After all others: Kopf ends every task that was made after its own, and only at its end.
        self._kopf_task = asyncio.create_task(self._kopf.run(self._handle_signals), name="kopf")

    async def _serve_health(self) -> web.AppRunner:
        state = State(
            # Of the leader alone: a sum over the replicas would count each object as often as there are replicas.
            objects=lambda: self._cache.phases() if self._gate.on else {},
            watch_ages=self._watches.ages,
            queue_depth=self._queue.depths,
            queue_oldest=lambda: self._queue.oldest_age,
        )
        REGISTRY.register(StateCollector(state))
        runner = web.AppRunner(build_app(self._watches.defects, self._watches.troubles), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, None, self._settings.metrics.port).start()
        return runner

    async def _begin(self) -> None:
        """Start to reconcile, or to campaign for the Lease, once the cache is synced."""
        await self._watches.synced()
        logger.info("Cache is synced: activeObjects=%d", sum(view.active for view in self._cache.all_objects()))
        if self._election is None:
            LEADER.set(1)
            self._activate()
        else:
            self._election.on_started, self._election.on_lost = self._on_started_leading, self._gate.stop
            self._election_task = asyncio.create_task(self._election.run(), name="election")
        await asyncio.sleep(TRIM_SECONDS)
        gc.collect()  # of what reading all objects at once has left
        while True:
            # In a thread, since it blocks.
            await asyncio.to_thread(trim_memory)
            await asyncio.sleep(TRIM_AGAIN_SECONDS)

    async def _on_started_leading(self) -> None:
        self._context.watched_before = self._election.led_before if self._election is not None else None
        self._activate()

    def _activate(self) -> None:
        self._context.acting_since = self._context.now()
        self._gate.start()

    def _handle_signals(self) -> None:
        """Set the signal handlers, again after Kopf has set its own: `stop` has an order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    async def until_stopped(self) -> bool:
        """Wait for a signal; return True if a part that should never end has ended instead."""
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([stopping, self._kopf_task], return_when=asyncio.FIRST_COMPLETED)
        if self._stopping.is_set():
            return False
        stopping.cancel()
        error = None if self._kopf_task.cancelled() else self._kopf_task.exception()
        logger.error("Bug in Tunery, a task ended: task=kopf", exc_info=error)
        return True

    async def stop(self) -> None:
        """Stop to reconcile, post the last events, and release all resources."""
        await _cancel([task for task in (self._election_task,) if task is not None])
        await self._gate.stop()
        self._context.sampler.close()
        await _cancel(self._tasks)
        await asyncio.to_thread(self._events.close, STOP_SECONDS)
        await self._progress_server.stop()
        await self._health_server.cleanup()
        # Kopf waits some seconds for every task that is younger than its own: by now there is none.
        self._kopf.stop()
        await asyncio.gather(self._kopf_task, return_exceptions=True)
        await self._watches.stop()
        for client in (self._client, self._lease_client):
            await asyncio.to_thread(client.close)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _certificate(settings: Settings) -> Certificate | None:
    """Return the progress endpoint's certificate, or None if the platform has no endpoint."""
    host = urlsplit(settings.progress.url).hostname
    if settings.progress.tls_dir is None or host is None:
        return None
    return Certificate(settings.progress.tls_dir, host, settings.progress.tls_secret)


def _election(settings: Settings, client: KubeClient) -> LeaderElection | None:
    """Return the leader election, or None if this process is the only replica."""
    lease = settings.lease
    if not lease.name:
        return None
    identity = os.environ.get("POD_NAME") or socket.gethostname()
    return LeaderElection(client, lease.namespace, lease.name, identity)


def trim_memory() -> None:
    """Return freed memory to the machine, such as that of the first lists; glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    sys.exit(main())
