"""A client of the API server that notes when Jobs appear and change, and the figures that are drawn from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import statistics
import time
from collections import defaultdict
from pathlib import Path

import aiohttp
import yaml

from kit.operator.api import Json

CONNECTIONS = 32
METADATA_ONLY = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}


class Meter:
    """One namespace of the API server, with a watch on its Jobs."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        self.session = aiohttp.ClientSession(
            cluster["server"],
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=2**20,
        )
        self._namespace = namespace
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.lorajobs = f"/apis/tunery.dev/v1alpha1/namespaces/{namespace}/lorajobs"
        self.seen: dict[str, dict[int, float]] = defaultdict(dict)
        """By Job: when each generation of it was first seen."""
        self._changed = asyncio.Event()

    def path(self, plural: str) -> str:
        """Return the path of a resource of the core group."""
        return f"/api/v1/namespaces/{self._namespace}/{plural}"

    async def watch(self, ready: asyncio.Event) -> None:
        """Note the time at which each Job is first seen, and each change of its spec; for ever."""
        version = (await self.send("GET", f"{self.jobs}?limit=1"))["metadata"]["resourceVersion"]
        while True:
            # The API server ends a watch that lasts long, or whose reader was too slow: it goes on where it was.
            query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "1"}
            with contextlib.suppress(aiohttp.ClientError):
                async with self.session.get(self.jobs, params=query, headers=METADATA_ONLY) as answer:
                    ready.set()
                    async for line in answer.content:
                        version = self._note(json.loads(line))
            await asyncio.sleep(0.1)

    def _note(self, event: Json) -> str:
        """Return the version from which a later watch goes on."""
        if event["type"] == "ERROR":
            raise SystemExit(f"the watch on the Jobs has lost its place: {event['object']}")
        meta = event["object"]["metadata"]
        if event["type"] in ("ADDED", "MODIFIED"):
            self.seen[meta["name"]].setdefault(meta["generation"], time.perf_counter())
            self._changed.set()
        version: str = meta["resourceVersion"]
        return version

    async def send(
        self, method: str, path: str, body: Json | None = None, headers: dict[str, str] | None = None
    ) -> Json:
        """Send a request and return its answer; ends the program where it is refused."""
        data = None if body is None else json.dumps(body).encode()
        headers = headers or {"Content-Type": "application/json"}
        async with self.session.request(method, path, data=data, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise SystemExit(f"{method} {path}: {answer.status} {text[:300]}")
        parsed: Json = json.loads(text)
        return parsed

    async def post(self, path: str, body: Json) -> float:
        """Create an object; return the time at which the request was sent."""
        sent = time.perf_counter()
        await self.send("POST", path, body)
        return sent

    async def until(self, name: str, seconds: float = 60, generation: int = 1) -> float:
        """Return the time at which a generation of a Job was seen."""
        async with asyncio.timeout(seconds):
            while generation not in self.seen[name]:
                self._changed.clear()
                await self._changed.wait()
        return self.seen[name][generation]


def percentiles(milliseconds: list[float]) -> Json:
    """Return p50, p99 and the largest."""
    ordered = sorted(milliseconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"p50_ms": round(statistics.median(ordered), 1), "p99_ms": round(p99, 1), "max_ms": round(ordered[-1], 1)}


def memory_mb(pid: int) -> Json:
    """Return the resident memory of a process now and at its peak, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"rss_mb": round(values["VmRSS"]), "peak_mb": round(values["VmHWM"])}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
