"""What progress reports cost the operator: 1,000 pods on connections that are kept, beside a new connection for each.

    python -m bench.progress [--pods 1000] [--rounds 10] [--fresh 1000]

The real endpoint with its server in a process of its own; the cache knows every pod, and the API server's reviews are
imitated (one a minute for each token). A round is one report of every pod, spread over what the interval asks for.
Prints one JSON object: CPU of the endpoint for each report, time until the answer, and the ratio of both ways.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from bench.meter import cpu_seconds, memory_mb, percentiles
from kit.operator.reporting import Pods, Site, certificates, pod, token

REPORT = {
    "trainerStatus": {
        "progressPercentage": 42,
        "estimatedRemainingSeconds": 200,
        "metrics": [{"name": name, "value": "1.234567"} for name in ("loss", "learning_rate", "grad_norm")],
        "lastUpdatedTime": "2026-01-31T12:00:00+00:00",
        "step": 42,
        "totalSteps": 100,
        "phase": "Training",
    }
}
PACE_SECONDS = 5.0
ADDRESSES = 8
"""Loopback addresses that the pods come from: one address may hold only some connections."""


async def serve(folder: Path, pods: int) -> None:
    """Be the endpoint, until the parent ends this process."""
    async with Site(folder, Pods({pod(index) for index in range(pods)})) as site:
        print(site.port, flush=True)
        await asyncio.Event().wait()


def open_session(site: Site, address: int, *, keep: bool) -> aiohttp.ClientSession:
    """Return a session whose connections come from one of the addresses."""
    connector = aiohttp.TCPConnector(
        limit=0, ssl=site.trust, local_addr=(f"127.0.0.{2 + address}", 0), force_close=not keep
    )
    return aiohttp.ClientSession(connector=connector)


class Reporters:
    """All pods, which report in turn."""

    def __init__(self, site: Site, pods: int) -> None:
        self.site = site
        self.tokens = [token(pod(index)) for index in range(pods)]
        self.milliseconds: list[float] = []
        self.statuses: set[int] = set()

    async def post(self, session: aiohttp.ClientSession, index: int) -> None:
        """Send one pod's report."""
        headers = {"Authorization": f"Bearer {self.tokens[index]}"}
        began = time.perf_counter()
        async with session.post(self.site.url, json=REPORT, headers=headers) as answer:
            await answer.read()
            self.statuses.add(answer.status)
        self.milliseconds.append((time.perf_counter() - began) * 1000)

    async def kept(self, sessions: list[aiohttp.ClientSession], rounds: int) -> None:
        """Let every pod report so many times, each in its own session."""

        async def one(index: int) -> None:
            await asyncio.sleep(PACE_SECONDS * index / len(self.tokens))
            for _ in range(rounds):
                began = time.perf_counter()
                await self.post(sessions[index], index)
                await asyncio.sleep(max(0.0, PACE_SECONDS - (time.perf_counter() - began)))

        await asyncio.gather(*(one(index) for index in range(len(self.tokens))))

    async def fresh(self, count: int) -> None:
        """Send so many reports at the same pace, each over a new connection."""

        async def one(index: int) -> None:
            await asyncio.sleep(PACE_SECONDS * index / len(self.tokens))
            async with open_session(self.site, index % ADDRESSES, keep=False) as session:
                await self.post(session, index % len(self.tokens))

        await asyncio.gather(*(one(index) for index in range(count)))


async def measure(site: Site, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what both ways cost."""
    reporters = Reporters(site, options.pods)
    sessions = [open_session(site, index % ADDRESSES, keep=True) for index in range(options.pods)]
    # Connections are opened and tokens reviewed before anything is measured.
    await reporters.kept(sessions, 1)
    found = {"memory": memory_mb(pid)}
    found["kept"] = await cost(reporters, pid, reporters.kept(sessions, options.rounds))
    await asyncio.gather(*(session.close() for session in sessions))
    found["fresh"] = await cost(reporters, pid, reporters.fresh(options.fresh))
    found["fresh_to_kept_cpu"] = round(found["fresh"]["cpu_ms_a_report"] / found["kept"]["cpu_ms_a_report"], 1)
    return found


async def cost(reporters: Reporters, pid: int, work: Coroutine[Any, Any, None]) -> dict[str, Any]:
    """Return what the reports that `work` sends cost the endpoint, and how long each took."""
    reporters.milliseconds.clear()
    cpu = cpu_seconds(pid)
    await work
    count = len(reporters.milliseconds)
    assert reporters.statuses == {200}, reporters.statuses
    spent = (cpu_seconds(pid) - cpu) * 1000 / count
    return {"reports": count, "cpu_ms_a_report": round(spent, 3), **percentiles(reporters.milliseconds)}


def beside(
    program: str, words: Iterable[object], measured: Callable[[Site, int], Coroutine[Any, Any, dict[str, Any]]]
) -> int:
    """Print what is measured beside `python -m program --serve FOLDER WORDS`, the operator in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = certificates(Path(name))
        command = [sys.executable, "-m", program, "--serve", str(folder), *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                site = Site(folder, Pods(set()), port=int(process.stdout.readline()))
                found = asyncio.run(measured(site, process.pid))
            finally:
                process.terminate()
    json.dump({**found, "load": os.getloadavg()[0]}, sys.stdout, indent=1)
    return 0


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=1000)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve, options.pods))
        return 0
    return beside("bench.progress", ("--pods", options.pods), lambda site, pid: measure(site, pid, options))


if __name__ == "__main__":
    sys.exit(main())
