"""What a loaded adapter's requests see while two hundred of two thousand adapters are asked for in eight places.

    python -m bench.serving_thousands [--rounds 5] [--seconds 0.1]

The loader and the door of a replica before an engine that answers after a fixed time (`kit.faulty_engine`): compared is
the door alone, with requests beside it to adapters that are loaded, and to others by Zipf.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from tunery_server.adapters.loop import Loader
from tunery_server.engine import Engine
from tunery_server.routes import Routes

from kit.engine_process import EngineProcess, Kind
from kit.server.loader import BASE, Table, adapter_files, behind_a_door

COUNT, ASKED, ROOM, AT_ONCE, IN_A_BLOCK = 2_000, 200, 8, 2, 60


async def ask(client: aiohttp.ClientSession, url: str, model: str) -> tuple[int, float]:
    """Return the status of one request and how long it took."""
    began = time.perf_counter()
    async with client.post(url, json={"model": model, "prompt": "x", "max_tokens": 1}) as answer:
        await answer.read()
    return answer.status, time.perf_counter() - began


async def block(client: aiohttp.ClientSession, url: str, others: Iterator[str], seen: Counter[str]) -> float:
    """Return the median of a loaded adapter's requests, one after the other, beside those of `others`."""
    ended = asyncio.Event()

    async def beside() -> None:
        while not ended.is_set():
            seen[f"beside {(await ask(client, url, next(others)))[0]}"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(beside())
        took = [await ask(client, url, "a0") for _ in range(IN_A_BLOCK)]
        ended.set()
    seen.update(f"warm {status}" for status, _ in took)
    return statistics.median(seconds for _, seconds in took)


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return the medians of both kinds of blocks, which take turns, and their ratios."""
    switches = folder / "switches.json"
    engine_process = EngineProcess(
        Kind.FAULTY, folder, ["--served-model-name", BASE], {"TUNERY_FAULTS": str(switches)}
    ).start()
    table = Table(folder, limit=ROOM)
    names = [f"a{number}" for number in range(COUNT)]
    published = [table.publish(name, adapter_files(lora_alpha=1000 + at)) for at, name in enumerate(names)]
    table.want(*map(table.item, names, published))
    routes, engine = Routes(BASE), Engine(str(engine_process.socket))
    loader = Loader(table.spec, routes, engine)
    try:
        async with behind_a_door(loader, routes, engine) as door:
            while not loader.ready():
                await asyncio.sleep(0.1)
            switches.write_text(json.dumps({"slow_generate": options.seconds}))
            url = f"{door}/v1/completions"
            weights = [1 / place for place in range(1, ASKED + 1)]
            cold = iter(random.Random(11).choices(names[ROOM : ROOM + ASKED], weights, k=1_000_000))
            medians: dict[str, list[float]] = {"warm": [], "cold": []}
            seen: dict[str, Counter[str]] = {"warm": Counter(), "cold": Counter()}
            async with aiohttp.ClientSession() as client:
                for _ in range(options.rounds):
                    for kind, others in (("warm", itertools.cycle(["a1", "a2"])), ("cold", cold)):
                        for name in ("a0", "a1", "a2"):
                            await ask(client, url, name)
                        medians[kind].append(await block(client, url, others, seen[kind]))
    finally:
        engine_process.kill()
    ratios = [one / other for one, other in zip(medians["cold"], medians["warm"], strict=True)]
    return {
        "p50_ms": {kind: round(1000 * statistics.median(each), 1) for kind, each in medians.items()},
        "cold_of_warm": {"median": round(statistics.median(ratios), 3), "rounds": [round(each, 3) for each in ratios]},
        "requests": {kind: dict(each) for kind, each in seen.items()},
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="that the engine takes for an answer")
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(asyncio.run(measure(Path(name), parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
