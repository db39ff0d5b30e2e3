"""What the reports of servers cost the operator: 1,000 replicas, at the interval that they are told, half with news.

    python -m bench.replica_reports [--replicas 1000] [--servers 50] [--adapters 20] [--seconds 60]

The real endpoint with its server, memory and queue in a process of its own; the API server's reviews are imitated, and
what the queue leads to, a look at the server and perhaps a write of its status, is left out. Every second replica has
something new to say each time: one adapter is cold, each time another. Prints one JSON object: seconds of CPU of
that process for each second, of which the goal is at most 0.5, and for each report; the time until the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp

from tunery_api.serving import ReplicaState, ReportedAdapter
from tunery_operator.dispatch.queue import WorkQueue
from tunery_operator.kube.cache import Cache
from tunery_operator.reconcile.requeue import DONE
from tunery_server.report import body_of

from bench.meter import cpu_seconds, memory_mb, percentiles
from bench.progress import ADDRESSES, beside, open_session
from kit.operator.reporting import Pods, Site, token
from kit.operator.server_bodies import replica, see_replicas

SPREAD_SECONDS: Final = 10.0
"""Over which the first reports are spread."""
GOAL: Final = 0.5


async def serve(folder: Path, replicas: int, servers: int) -> None:
    """Be the operator as far as reports go, until the parent ends this process."""
    cache = Cache()
    see_replicas(cache, replicas, servers)
    queue = WorkQueue(lambda _: DONE, 4)
    queue.open()
    async with Site(folder, Pods(set()), queue=queue, cache=cache) as site:  # type: ignore[arg-type]
        print(site.port, flush=True)
        await asyncio.Event().wait()


def report(adapters: int, cold: int | None) -> bytes:
    """Return what a replica posts whose adapters are all served, or all but one."""
    found = [
        ReportedAdapter(
            name=f"adapter-{at}",
            state="Cold" if at == cold else "Served",
            manifest_sha256=f"{at:064x}",
            rank=16,
            size_bytes=20_000_000,
            last_used=1_767_000_000.0,
        )
        for at in range(adapters)
    ]
    return body_of(ReplicaState(revision=1, engine_ready=True, engine_version="0.32.0", adapters=found))


class Reporters:
    """All replicas, each of which posts at the interval that it is told."""

    def __init__(self, site: Site, options: argparse.Namespace) -> None:
        self.site, self.options = site, options
        self.milliseconds: list[float] = []
        self.intervals: set[float] = set()
        self.news = 0

    async def run(self, session: aiohttp.ClientSession, index: int) -> None:
        """Be one replica, for ever."""
        options, number = self.options, 0
        has_news = index // options.servers % 2 == 0
        headers = {"Authorization": f"Bearer {token(replica(index))}"}
        await asyncio.sleep(SPREAD_SECONDS * index / options.replicas)
        while True:
            body = report(options.adapters, number % options.adapters if has_news else None)
            began = time.perf_counter()
            async with session.post(self.site.url, data=body, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                interval = float((await answer.json())["intervalSeconds"])
            took = time.perf_counter() - began
            self.milliseconds.append(took * 1000)
            self.intervals.add(interval)
            self.news, number = self.news + has_news, number + 1
            await asyncio.sleep(max(0.0, interval - took))


async def measure(site: Site, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the reports cost once all connections are open and all tokens reviewed."""
    reporters = Reporters(site, options)
    sessions = [open_session(site, address, keep=True) for address in range(ADDRESSES)]
    try:
        async with asyncio.TaskGroup() as group:
            running = [
                group.create_task(reporters.run(sessions[index % ADDRESSES], index))
                for index in range(options.replicas)
            ]
            await asyncio.sleep(2 * SPREAD_SECONDS)
            reporters.milliseconds.clear()
            began, cpu, news = time.perf_counter(), cpu_seconds(pid), reporters.news
            await asyncio.sleep(options.seconds)
            seconds, spent = time.perf_counter() - began, cpu_seconds(pid) - cpu
            for each in running:
                each.cancel()
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    count = len(reporters.milliseconds)
    return {
        "cpu_s_a_second": round(spent / seconds, 3),
        "goal": GOAL,
        "interval_s": sorted(reporters.intervals),
        "reports_a_second": round(count / seconds, 1),
        "with_news": round((reporters.news - news) / count, 2),
        "cpu_ms_a_report": round(spent * 1000 / count, 3),
        "report_bytes": len(report(options.adapters, None)),
        **percentiles(reporters.milliseconds),
        "memory": memory_mb(pid),
    }


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=50)
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve, options.replicas, options.servers))
        return 0
    return beside(
        "bench.replica_reports",
        ("--replicas", options.replicas, "--servers", options.servers),
        lambda site, pid: measure(site, pid, options),
    )


if __name__ == "__main__":
    sys.exit(main())
