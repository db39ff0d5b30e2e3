"""The engine's own metrics, told under the names that clients know."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from typing import Final

import aiohttp

from tunery_api.serving import VERSION_DIGITS
from tunery_server.gateway.session import HasSession, url

SECONDS: Final = 3.0
MAX_BYTES: Final = 8 << 20
_VERSION: Final = re.compile(rf"@[0-9a-f]{{{VERSION_DIGITS}}}(?=[\",])")
_LIST: Final = re.compile(r'(_lora_adapters=")([^"]*)"')
_OURS: Final = re.compile(r"(?:# (?:HELP|TYPE) )?tunery_")

logger = logging.getLogger(__name__)


async def engine_metrics(engine: HasSession) -> bytes:
    """Return the engine's metrics in Prometheus' text format; nothing where it does not answer."""
    try:
        async with asyncio.timeout(SECONDS):
            return await _read(engine)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return b""


async def _read(engine: HasSession) -> bytes:
    headers = {"Accept": "text/plain; version=0.0.4", "Accept-Encoding": "identity"}
    async with engine.session.get(url("/metrics"), headers=headers, allow_redirects=False) as answer:
        if answer.status != 200:
            return b""
        read = bytearray()
        async for part in answer.content.iter_any():
            read += part
            if len(read) > MAX_BYTES:
                logger.warning("the engine's metrics take more than %d MiB: they are left out", MAX_BYTES >> 20)
                return b""
    return public(read.decode(errors="replace")).encode()


def public(text: str) -> str:
    """Return metrics with name@version told as name, each series once; none that only the gateway may tell."""
    return "".join(f"{line}\n" for line in _lines(text))


def _lines(text: str) -> Iterator[str]:
    renamed: set[str] = set()
    for line in text.splitlines():
        if _OURS.match(line):
            continue
        if line.startswith("#") or _VERSION.search(line) is None:
            yield line
            continue
        told = _LIST.sub(_each_once, _VERSION.sub("", line))
        series = told.rpartition("}")[0]
        if series not in renamed:
            renamed.add(series)
            yield told


def _each_once(found: re.Match[str]) -> str:
    return f'{found[1]}{",".join(dict.fromkeys(found[2].split(",")))}"'
