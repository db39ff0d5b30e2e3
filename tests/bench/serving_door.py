"""What the door costs: the CPU time of its process for each request and each streamed token, before a fake engine.

python -m bench.serving_door [--repeats 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from bench.meter import memory_mb
from bench.serving_replica import BASE, DoorProcess, new_client, started_door
from kit.server.gateway import CHAT, FakeEngine, chunk, event, stream

STREAMS: Final = {1: 1600, 16: 400, 64: 200}
"""How many at once, and the tokens of each."""
REQUESTS: Final = 320
STEP_SECONDS: Final = 0.002
"""Between two tokens of a stream, as an engine sends one to each of them with every step."""


async def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Return the medians, and the peak of the process's memory."""
    engine = FakeEngine(str(folder / "fake.sock"))
    engine.handler = _answer
    await engine.start()
    try:
        async with started_door(folder, engine.socket) as door:
            await _posts(door, 4, 4, stream=True)
            rows = [await _round(door, engine) for _ in range(repeats)]
            memory = memory_mb(door.process.pid)
    finally:
        await engine.stop()
    medians = {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}
    return {**medians, **memory, "load": round(os.getloadavg()[0], 1)}


async def _round(door: DoorProcess, engine: FakeEngine) -> dict[str, float]:
    found = {}
    for at_once, tokens in STREAMS.items():
        used = await _posts(door, at_once, at_once, stream=True, max_tokens=tokens)
        found[f"us_a_token_of_{at_once}_streams"] = used / (at_once * tokens) * 1e6
        used = await _posts(door, REQUESTS, at_once, max_tokens=1)
        found[f"us_a_request_of_{at_once}_at_once"] = used / REQUESTS * 1e6
        engine.asked.clear()
        engine.headers.clear()
    return found


async def _posts(door: DoorProcess, count: int, at_once: int, **more: Any) -> float:
    """Return the seconds of CPU that the door took for `count` requests."""
    body = {"model": BASE, "messages": [{"role": "user", "content": "x" * 800}], **more}
    room = asyncio.Semaphore(at_once)
    async with new_client() as client:

        async def post() -> None:
            async with room, client.post(door.url + CHAT, json=body) as answer:
                await answer.read()
                assert answer.status == 200

        before = door.cpu()
        await asyncio.gather(*(post() for _ in range(count)))
        return door.cpu() - before


async def _answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body.get("stream"):
        tokens = [event(chunk(" token"))] * int(body.get("max_tokens", 3))
        return await stream(request, [*tokens, b"data: [DONE]\n\n"], STEP_SECONDS)
    usage = {"prompt_tokens": 200, "completion_tokens": 100, "total_tokens": 300}
    choice = {"index": 0, "message": {"role": "assistant", "content": "y" * 400}}
    return web.json_response({"id": "x", "model": body.get("model"), "choices": [choice], "usage": usage})


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), options.repeats)), indent=1))


if __name__ == "__main__":
    main()
