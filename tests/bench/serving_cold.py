"""What requests of a loaded adapter see while others are brought in cold, beside the same load without cold ones.

Blocks in turn: in both there is a request to another adapter every half second; in one of them it is loaded, in the
other it is one of many that have no room together, so that nearly each of these requests loads an adapter and ends
another.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

from bench.serving_peft import Peft
from bench.serving_replica import BASE, Replica

WARM: Final = "support"
BESIDE: Final = "tone"
COLD: Final = 20
EVERY_SECONDS: Final = 0.5
TOKENS: Final = 16
IN_A_BLOCK: Final = 60


async def measure(replica: Replica, peft: Peft, options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of both kinds of blocks, and their ratio in each round."""
    # Cold requests come faster than loads end: who may make room for them are the cold ones themselves.
    replica.want(*(replica.wanted[name].model_copy(update={"keep_loaded": True}) for name in (WARM, BESIDE)))
    names = [f"cold{number}" for number in range(COLD)]
    for number, name in enumerate(names):
        folder = replica.folder / "made" / name
        await peft.ask("make", str(folder), 3000 + number, BASE)
        replica.want(replica.publish(f"{name}/0", folder))
    async with asyncio.timeout(120):
        while (await replica.ask(names[-1], "Hello", 1))["status"] != 200:
            await asyncio.sleep(0.2)
    medians: dict[str, list[float]] = {"warm": [], "cold": []}
    answers: Counter[str] = Counter()
    for _ in range(options.rounds):
        for kind, others in (("warm", [BESIDE]), ("cold", names)):
            async with beside(replica, itertools.cycle(others), answers, kind):
                medians[kind].append(statistics.median([await seconds(replica) for _ in range(IN_A_BLOCK)]))
    for name in names:
        replica.want_no(name)
    ratios = [cold / warm for warm, cold in zip(medians["warm"], medians["cold"], strict=True)]
    return {
        "p50_ms": {kind: round(1000 * statistics.median(each), 1) for kind, each in medians.items()},
        "cold_of_warm": {"median": round(statistics.median(ratios), 3), "rounds": [round(each, 3) for each in ratios]},
        "beside": dict(answers),
        "load": round(os.getloadavg()[0], 1),
    }


async def seconds(replica: Replica) -> float:
    """Return how long one request of the loaded adapter takes."""
    began = time.perf_counter()
    answer = await replica.ask(WARM, "Say number 4.", TOKENS)
    assert answer["status"] == 200, answer
    return time.perf_counter() - began


@asynccontextmanager
async def beside(replica: Replica, others: Iterator[str], answers: Counter[str], kind: str) -> AsyncIterator[None]:
    """Ask other adapters at a steady pace until the block ends; what came of it is counted."""

    async def one(name: str) -> None:
        answers[f"{kind} {(await replica.ask(name, 'Say number 5.', 1))['status']}"] += 1

    async def keep_asking() -> None:
        async with asyncio.TaskGroup() as tasks:
            while not ended.is_set():
                tasks.create_task(one(next(others)))
                await asyncio.sleep(EVERY_SECONDS)

    ended = asyncio.Event()
    asking = asyncio.create_task(keep_asking())
    try:
        yield
    finally:
        ended.set()
        await asking
