"""`python -m tunery_server fetch run.json`: serve results on 127.0.0.1 until they are requested no more."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from tunery_api.names import FETCH_PORT
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import RunResult, RunSpec
from tunery_common.errors import TuneryError
from tunery_common.storage.authorities import trust_platform
from tunery_common.termination import clear_termination, write_termination
from tunery_server.batch.program import explain, read_run_spec, show_failure
from tunery_server.process import when_told_to_stop
from tunery_server.results.app import ResultsServer

HOST: Final = "127.0.0.1"
"""The only address: other pods can't connect, and a port-forward does."""
_END_SECONDS: Final = 1.0
_CHECK_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """The port, and the seconds without a request after which the server ends."""

    port: int = FETCH_PORT
    idle_seconds: float = 600.0


def main(path: Path, limits: Limits | None = None) -> int:
    """Serve the results of run.json, and return the exit code: OK when idle, TERMINATED after a signal.

    The Job controller replaces a pod that a signal ended, such as at the drain of its node.
    """
    clear_termination()
    try:
        run = read_run_spec(path)
        trust_platform()
        return int(asyncio.run(serve(run, limits or Limits())))
    except Exception as error:  # noqa: BLE001 (any failure becomes an exit code and a message)
        failure = explain(error)
        show_failure(failure, error)
        write_termination(RunResult(failure=failure.failure))
        return int(failure.exit_code)


async def serve(run: RunSpec, limits: Limits) -> ExitCode:
    """Answer requests until idle or a signal. Raises TuneryError if run.json has no token, OSError for the port."""
    if run.fetch is None:
        raise TuneryError(FailureReason.INTERNAL_ERROR, "run.json has no token digest")
    stop = when_told_to_stop()
    server = ResultsServer(run, run.fetch.token_sha256)
    runner = web.AppRunner(server.app(), access_log=None, shutdown_timeout=_END_SECONDS)
    await runner.setup()
    await web.TCPSite(runner, HOST, limits.port).start()
    logger.info("Serving results: address=%s:%d", HOST, limits.port)
    try:
        while not stop.is_set():
            left = limits.idle_seconds - server.idle_seconds()
            if left <= 0:
                logger.info("Stopped serving results: no request for %.0f seconds", limits.idle_seconds)
                return ExitCode.OK
            await _wait(stop, min(left, _CHECK_SECONDS))
        return ExitCode.TERMINATED
    finally:
        await runner.cleanup()


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
