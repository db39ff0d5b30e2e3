"""The program: `python -m tunery_server door /etc/tunery/serve.json`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tunery_api.serving import ServeSpec
from tunery_server.adapters.loop import Loader
from tunery_server.door.app import Door
from tunery_server.door.auth import ApiKeys
from tunery_server.engine import Engine
from tunery_server.logs import configure_logging
from tunery_server.process import close_door, open_door, when_told_to_stop
from tunery_server.routes import Routes

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Do what is asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    configure_logging()
    try:
        spec = ServeSpec.model_validate_json(options.spec.read_bytes())
    except (OSError, ValidationError) as error:
        logger.error("%s cannot be read: %s", options.spec, error)  # noqa: TRY400 - its trace says no more
        return 2
    return asyncio.run(serve(spec))


async def serve(spec: ServeSpec) -> int:
    """Answer requests and bring adapters until told to stop; returns the exit code."""
    told = when_told_to_stop()
    routes, engine = Routes(spec.served_name), Engine(spec.engine_socket)
    loader = Loader(spec, routes, engine)
    door = Door(routes, engine, loader, ApiKeys(spec.api_keys))
    runner = await open_door(door, spec.port)
    logger.info("the door for %s is open on port %d", spec.served_name, spec.port)
    parts = [asyncio.create_task(loader.run(), name="loader")]
    stop = asyncio.create_task(told.wait())
    await asyncio.wait([stop, *parts], return_when=asyncio.FIRST_COMPLETED)
    for part in parts:
        if part.done() and not part.cancelled():
            logger.error("the %s has ended: a defect", part.get_name(), exc_info=part.exception())
    await close_door(door, runner)
    for task in (stop, *parts):
        task.cancel()
    await asyncio.gather(stop, *parts, return_exceptions=True)
    await engine.close()
    return 0 if told.is_set() else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tunery_server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    door = commands.add_parser("door", help="answer requests before an engine, and bring adapters into it")
    door.add_argument("spec", type=Path, help="serve.json")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
