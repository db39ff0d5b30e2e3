"""How fast the operator turns a LoRAJob into its train Job, and what memory it needs.

    python -m bench.operator_latency [--sequential 100] [--burst 500] [--finished 1000 10000]

Against a real API server of its own (etcd, API server, controller manager, scheduler; no node), beside the floor of
the same run: POST of a bare Job until a watch shows it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from controller.api import Api, Json
from controller.objects import RESULT, lorajob
from controller.process import OperatorProcess

from cluster.controlplane import ControlPlane
from kit.installation import ROOT
from kit.kubectl import Kubectl

CONNECTIONS = 32
METADATA_ONLY = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}


class Meter:
    """A client of the API server that notes when Jobs appear on a watch."""

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
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.lorajobs = f"/apis/tunery.dev/v1alpha1/namespaces/{namespace}/lorajobs"
        self.seen: dict[str, float] = {}
        self.broken: Exception | None = None
        self._changed = asyncio.Event()

    async def watch(self, ready: asyncio.Event) -> None:
        """Note the time at which each Job is first seen."""
        async with self.session.get(f"{self.jobs}?limit=1", headers={"Accept": "application/json"}) as answer:
            version = (await answer.json())["metadata"]["resourceVersion"]
        query = {"watch": "1", "resourceVersion": version}
        try:
            async with self.session.get(self.jobs, params=query, headers=METADATA_ONLY) as answer:
                ready.set()
                async for line in answer.content:
                    self._note(json.loads(line))
            self.broken = RuntimeError("the watch has ended")
        except (aiohttp.ClientError, KeyError, ValueError) as error:
            self.broken = error
        self._changed.set()

    def _note(self, event: Json) -> None:
        if event["type"] == "ADDED":
            self.seen.setdefault(event["object"]["metadata"]["name"], time.perf_counter())
            self._changed.set()

    async def post(self, path: str, body: Json) -> float:
        """Create an object; return the time at which the request was sent."""
        data = json.dumps(body).encode()
        sent = time.perf_counter()
        async with self.session.post(path, data=data, headers={"Content-Type": "application/json"}) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise SystemExit(f"POST {path}: {answer.status} {text[:300]}")
        return sent

    async def until(self, name: str, seconds: float = 60) -> float:
        """Return the time at which a Job was seen."""
        async with asyncio.timeout(seconds):
            while name not in self.seen:
                self._changed.clear()
                await self._changed.wait()
                if self.broken is not None:
                    raise self.broken
        return self.seen[name]


def bare_job(name: str) -> Json:
    """Return a suspended Job: nothing follows it."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    return {"metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": pod}}}


async def one_at_a_time(meter: Meter, count: int, path: str, body: Callable[[str], Json], suffix: str) -> Json:
    """Return the latencies of `count` objects, each posted when the one before has its Job."""
    latencies = []
    for index in range(count + 3):
        name = f"{'f' if not suffix else 's'}-{index:05d}"
        sent = await meter.post(path, body(name))
        latencies.append((await meter.until(name + suffix) - sent) * 1000)
        await asyncio.sleep(0.1)
    # The first ones open connections.
    return percentiles(latencies[3:])


def percentiles(milliseconds: list[float]) -> Json:
    """Return p50, p99 and the largest."""
    ordered = sorted(milliseconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"p50_ms": round(statistics.median(ordered), 1), "p99_ms": round(p99, 1), "max_ms": round(ordered[-1], 1)}


async def all_at_once(meter: Meter, count: int, path: str, body: Callable[[str], Json], suffix: str) -> Json:
    """Return how many Jobs a second appear when `count` objects are posted at once."""
    names = [f"{'g' if not suffix else 'b'}-{index:05d}" for index in range(count)]
    waiting = list(reversed(names))
    started = time.perf_counter()

    async def worker() -> None:
        while waiting:
            name = waiting.pop()
            await meter.post(path, body(name))

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    posted = time.perf_counter() - started
    for name in names:
        await meter.until(name + suffix, 300)
    last = max(meter.seen[name + suffix] for name in names) - started
    return {"jobs_per_s": round(count / last, 1), "all_posted_s": round(posted, 2), "all_seen_s": round(last, 2)}


def memory_mb(pid: int) -> Json:
    """Return the resident memory of a process now and at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {"rss_mb": round(values["VmRSS"]), "peak_mb": round(values["VmHWM"])}


async def add_finished(meter: Meter, start: int, end: int) -> None:
    """Create finished LoRAJobs, each with a Job, while no operator runs."""
    waiting = list(range(start, end))

    async def worker() -> None:
        while waiting:
            await add_one_finished(meter, f"done-{waiting.pop():05d}")

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


async def add_one_finished(meter: Meter, name: str) -> None:
    """Create one finished LoRAJob as the operator leaves it."""
    body = json.dumps(lorajob(name, preflight="Skip")).encode()
    async with meter.session.post(meter.lorajobs, data=body, headers={"Content-Type": "application/json"}) as answer:
        created = await answer.json()
    owner = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "name": name, "controller": True}
    job = bare_job(f"{name}-train")
    job["metadata"]["ownerReferences"] = [owner | {"uid": created["metadata"]["uid"]}]
    job["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "tunery"}
    await meter.post(meter.jobs, job)
    patch = json.dumps({"status": finished_status(name)}).encode()
    headers = {"Content-Type": "application/merge-patch+json"}
    async with meter.session.patch(f"{meter.lorajobs}/{name}/status", data=patch, headers=headers) as answer:
        await answer.read()
        answer.raise_for_status()


def finished_status(name: str) -> Json:
    """Return a status of the usual size."""
    types = ("Validated", "Preflight", "Running", "CheckpointSaved", "Evaluated", "AdapterUploaded", "Succeeded")
    text = f"published at s3://adapters/{name}, read back, and every digest matches"
    common = {"lastTransitionTime": "2026-01-31T12:00:00Z", "observedGeneration": 1, "message": text}
    conditions = [{"type": kind, "status": "True", "reason": kind, **common} for kind in types]
    return {**RESULT, "phase": "Succeeded", "conditions": conditions, "completionTime": "2026-01-31T12:00:00Z"}


async def measure(plane: ControlPlane, folder: Path, options: argparse.Namespace) -> Json:
    """Run everything once."""
    api, found = Api(plane.kubeconfig), {}
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "bench"}})
    operator = OperatorProcess(folder / "operator", plane.kubeconfig).start()
    meter = Meter(plane.kubeconfig, "bench")
    ready = asyncio.Event()
    watch = asyncio.create_task(meter.watch(ready))
    await ready.wait()
    try:
        await asyncio.sleep(5)
        found["idle"] = memory_mb(operator.pid)
        found["floor"] = await one_at_a_time(meter, options.sequential, meter.jobs, bare_job, "")
        found["one_at_a_time"] = await one_at_a_time(meter, options.sequential, meter.lorajobs, skipped, "-train")
        await asyncio.sleep(3)
        found["floor_burst"] = await all_at_once(meter, options.burst, meter.jobs, bare_job, "")
        await asyncio.sleep(3)
        cpu = cpu_seconds(operator.pid)
        found["burst"] = await all_at_once(meter, options.burst, meter.lorajobs, skipped, "-train")
        found["burst"]["cpu_ms_a_job"] = round((cpu_seconds(operator.pid) - cpu) * 1000 / options.burst, 2)
        await asyncio.sleep(5)
        found["after_burst"] = memory_mb(operator.pid)
        operator.stop()
        await clear(meter)
        found["finished"] = await measure_finished(meter, operator, options.finished)
        return found
    finally:
        operator.stop()
        watch.cancel()
        await meter.session.close()


async def measure_finished(meter: Meter, operator: OperatorProcess, counts: list[int]) -> Json:
    """Return the memory of an operator that starts on so many finished objects, and settles."""
    found, have = {}, 0
    for count in counts:
        await add_finished(meter, have, count)
        have = count
        operator.start()
        await asyncio.sleep(15)
        found[str(count)] = memory_mb(operator.pid)
        operator.stop()
    return found


async def clear(meter: Meter) -> None:
    """Delete what the measurements before left."""
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
    for path in (meter.lorajobs, meter.jobs):
        async with meter.session.delete(path, json=options) as answer:
            await answer.read()
    await asyncio.sleep(15)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def skipped(name: str) -> Json:
    """Return a LoRAJob without preflight."""
    return lorajob(name, preflight="Skip")


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequential", type=int, default=100)
    parser.add_argument("--burst", type=int, default=500)
    parser.add_argument("--finished", type=int, nargs="*", default=[1000, 10_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plane = ControlPlane(Path(folder) / "plane")
        plane.start()
        try:
            path = f"{plane.kubectl.parent}:{os.environ['PATH']}"
            kubectl = Kubectl(os.environ | {"KUBECONFIG": str(plane.kubeconfig), "PATH": path})
            kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
            kubectl.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
            found: dict[str, Any] = asyncio.run(measure(plane, Path(folder), options))
            found["load"] = os.getloadavg()[0]
            json.dump(found, sys.stdout, indent=1)
        finally:
            plane.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
