"""The process of the gateway: it opens, and ends once nobody waits for an answer any more."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Final

from aiohttp import web

from tunery_server.gateway.app import Gateway, build_app
from tunery_server.gateway.malformed import Runner

END_SECONDS: Final = 75.0
"""A pod is given 90 seconds to end."""
_LOOK_SECONDS: Final = 0.1

logger = logging.getLogger(__name__)


async def open_gateway(gateway: Gateway, port: int, host: str | None = None) -> web.AppRunner:
    """Answer requests from now on; return what `cleanup` of closes the gateway."""
    runner = Runner(
        *(build_app(gateway), gateway.room),
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=gateway.room.limits.backlog).start()
    return runner


def when_told_to_stop() -> asyncio.Event:
    """Return what is set with SIGTERM or SIGINT."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    return told


async def close_gateway(gateway: Gateway, runner: web.AppRunner, seconds: float = END_SECONDS) -> None:
    """Say that no request is to come, answer those that are here and those that come all the same, then close.

    Where the engine is gone its requests end at once, so that nothing is waited for.
    """
    gateway.ending = True
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while gateway.routes.in_flight() and loop.time() < end:
        await asyncio.sleep(_LOOK_SECONDS)
    if left := gateway.routes.in_flight():
        logger.warning("%d requests were not answered within %.0f seconds of the signal to stop", left, seconds)
    await runner.cleanup()
