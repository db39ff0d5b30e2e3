"""The program: `python -m tunery_server fetch-model|gateway serve.json`, `batch|report|fetch run.json`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tunery_api.names import FETCH_PORT
from tunery_api.runspec import Task
from tunery_api.serving import Desired, ReplicaState, ServeSpec
from tunery_common.errors import TuneryError
from tunery_common.storage.authorities import trust_platform
from tunery_server import fetch_model
from tunery_server.adapters.loop import Loader
from tunery_server.batch import program
from tunery_server.engine import Engine
from tunery_server.gateway.app import Gateway
from tunery_server.gateway.auth import ApiKeys
from tunery_server.gateway.connections import raise_files
from tunery_server.logs import configure_logging
from tunery_server.process import close_gateway, open_gateway, when_told_to_stop
from tunery_server.report import Reporter, poster
from tunery_server.results import program as results
from tunery_server.routes import Routes

FETCH_MODEL: Final = "fetch-model"
_OF_RUNS: Final = (Task.BATCH, Task.REPORT, Task.FETCH)
"""The commands that read run.json."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    configure_logging()
    if options.command == Task.FETCH:
        return results.main(options.spec, results.Limits(port=options.port))
    if options.command in _OF_RUNS:
        return program.main(options.spec, task=Task(options.command))
    try:
        spec = ServeSpec.model_validate_json(options.spec.read_bytes())
    except (OSError, ValidationError) as error:
        logger.error("%s cannot be read: %s", options.spec, error)  # noqa: TRY400 - its trace says no more
        return 2
    if options.command == FETCH_MODEL:
        return fetch_model.main(spec)
    _trust_platform()
    return asyncio.run(serve(spec))


def _trust_platform() -> None:
    """Trust the platform's authorities; a gateway that has lost them serves what it has, and reports the cause."""
    try:
        trust_platform()
    except TuneryError as error:
        logger.error("%s: %s", error.reason, error.message)  # noqa: TRY400 - its trace says no more


class Replica:
    """What is reported of: loader and gateway together."""

    def __init__(self, loader: Loader, gateway: Gateway) -> None:
        self._loader = loader
        self._gateway = gateway

    def state(self) -> ReplicaState:
        """Return how the replica stands."""
        return self._gateway.state()

    def ready(self) -> bool:
        """Tell whether requests may come, and somebody gets in."""
        return self._loader.ready() and self._gateway.keys.problem() is None

    def offer(self, desired: Desired) -> None:
        """Take what is to be served, if it is newer."""
        self._loader.offer(desired)


async def serve(spec: ServeSpec) -> int:
    """Answer requests, bring adapters and report until told to stop; returns the exit code."""
    told = when_told_to_stop()
    raise_files()
    routes, engine = Routes(spec.served_name), Engine(spec.engine_socket)
    if spec.api_keys is not None:
        # Until the list has been read: a gateway that follows another stands before an engine that answers.
        routes.allow(None)
    loader = Loader(spec, routes, engine)
    gateway = Gateway(routes, engine, loader, ApiKeys(spec.api_keys))
    runner = await open_gateway(gateway, spec.port)
    logger.info("the gateway for %s is open on port %d", spec.served_name, spec.port)
    parts = [asyncio.create_task(loader.run(), name="loader")]
    if (post := poster(os.environ)) is not None:
        reporter = Reporter(post, Replica(loader, gateway))
        gateway.told = reporter.told
        parts.append(asyncio.create_task(reporter.run(), name="reporter"))
    stop = asyncio.create_task(told.wait())
    await asyncio.wait([stop, *parts], return_when=asyncio.FIRST_COMPLETED)
    for part in parts:
        if part.done() and not part.cancelled():
            logger.error("the %s has ended: a defect", part.get_name(), exc_info=part.exception())
    await close_gateway(gateway, runner)
    for task in (stop, *parts):
        task.cancel()
    await asyncio.gather(stop, *parts, return_exceptions=True)
    await engine.close()
    return 0 if told.is_set() else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tunery_server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        (FETCH_MODEL, "bring the base model to the folder that the engine serves"),
        ("gateway", "answer requests before an engine, bring adapters into it, and report"),
        (Task.BATCH, "answer a file of requests through a server, and publish the answers"),
        (Task.REPORT, "say again what a batch has published"),
        (Task.FETCH, "serve what an object has published on 127.0.0.1, to the bearer of one token"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("spec", type=Path, help="run.json" if name in _OF_RUNS else "serve.json")
        if name == Task.FETCH:
            command.add_argument("--port", type=int, default=FETCH_PORT, help="port on 127.0.0.1")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
