"""The operator process: `python -m tunery_operator`."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import kopf
from aiohttp import web
from pydantic import ValidationError

from tunery_operator.handlers import NoMemories, build_registry, open_when_listed, resync
from tunery_operator.health import build_app
from tunery_operator.kube.cache import Cache
from tunery_operator.kube.client import load_client
from tunery_operator.kube.events import EventPoster
from tunery_operator.kube.tokens import TokenReviewer
from tunery_operator.logs import configure_logging
from tunery_operator.plan.common import Platform
from tunery_operator.plan.model import Key, Kind, Progress
from tunery_operator.progress.endpoint import Endpoint
from tunery_operator.progress.tls import keep_fresh, read_ca, server_context
from tunery_operator.queue import WorkQueue
from tunery_operator.reconcile.adaptermerge import reconcile_adaptermerge
from tunery_operator.reconcile.lorajob import reconcile_lorajob
from tunery_operator.reconcile.outcome import Outcome
from tunery_operator.reconcile.world import World
from tunery_operator.settings import Settings
from tunery_operator.watches import WatchAges

WORKERS: Final = 16
"""Reconciles at a time; each holds one thread, and one more for a call that goes beside another."""
STOP_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


def main() -> int:
    """Run until SIGTERM; returns the exit code."""
    try:
        settings = Settings()
    except ValidationError as error:
        sys.stderr.write(f"the TUNERY_… settings are not valid:\n{error}\n")
        return 2
    configure_logging(settings)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(4, thread_name_prefix="io"))
    client, cache, ages = load_client(), Cache(settings.default_ttl_seconds), WatchAges()
    events = EventPoster(client)
    world = World(client, cache, Platform(settings, _progress(settings)), events)
    stories = {Kind.LORAJOB: reconcile_lorajob, Kind.ADAPTERMERGE: reconcile_adaptermerge}

    def reconcile(key: Key) -> Outcome:
        return stories[key.kind](world, key)

    queue = WorkQueue(reconcile, WORKERS)
    endpoint = Endpoint(TokenReviewer(client), cache, queue)
    servers = [await _serve(build_app(cache, queue, ages), settings.metrics_port)]
    tasks = [asyncio.create_task(resync(cache, queue)), asyncio.create_task(open_when_listed(queue, ages))]
    if settings.progress_tls_dir is not None:
        context = server_context(settings.progress_tls_dir)
        servers.append(await _serve(endpoint.app(), settings.progress_port, context))
        tasks.append(asyncio.create_task(keep_fresh(context, settings.progress_tls_dir, world.use_ca)))
    logger.info("Tunery operator starts with %s", settings.trainer_image)
    try:
        await kopf.operator(registry=build_registry(cache, queue, ages), clusterwide=True, memories=NoMemories())
    finally:
        for task in tasks:
            task.cancel()
        await queue.close(STOP_SECONDS)
        await asyncio.to_thread(events.close, STOP_SECONDS)
        for server in servers:
            await server.cleanup()
    logger.info("Tunery operator has stopped")
    return 0


def _progress(settings: Settings) -> Progress | None:
    """Return how pods report, or None where the platform gave no endpoint."""
    if settings.progress_tls_dir is None or not settings.progress_url:
        return None
    return Progress(settings.progress_url, read_ca(settings.progress_tls_dir))


async def _serve(app: web.Application, port: int, context: ssl.SSLContext | None = None) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, port, ssl_context=context).start()
    return runner


if __name__ == "__main__":
    sys.exit(main())
