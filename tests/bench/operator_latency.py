"""How fast the operator turns a LoRAJob into its train Job and follows its user, and what memory it needs.

    python -m bench.operator_latency [--sequential 100] [--burst 500] [--bursts 3] [--running 1000]
                                     [--finished 1000 10000]

Against a real API server of its own (etcd, API server, controller manager, scheduler; no node), beside the floor of
the same run: POST of a bare Job until a watch shows it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from bench.environments import operators_python
from bench.meter import CONNECTIONS, Meter, cpu_seconds, memory_mb, percentiles
from bench.population import add_finished, for_each, start_pods
from kit.accounts import kubeconfig_of
from kit.installation import ROOT
from kit.kubectl import Kubectl
from kit.operator.api import Api, Json
from kit.operator.objects import lorajob
from kit.operator.process import OperatorProcess
from tools.cluster.controlplane import ControlPlane

SETTLE_SECONDS = 15.0
SUSPENDED = 20
"""Jobs of those that run that are suspended one after the other."""
_MERGE = {"Content-Type": "application/merge-patch+json"}


def bare_job(name: str) -> Json:
    """Return a suspended Job: nothing follows it."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    return {"metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": pod}}}


def skipped(name: str) -> Json:
    """Return a LoRAJob without preflight."""
    return lorajob(name, preflight="Skip")


class Load:
    """What is posted, and the Job that must appear for it."""

    def __init__(self, meter: Meter, path: str, body: Callable[[str], Json], suffix: str) -> None:
        self.meter = meter
        self.path = path
        self.body = body
        self.suffix = suffix

    async def once(self, name: str) -> float:
        """Return the milliseconds from the POST of an object until its Job is seen."""
        sent = await self.meter.post(self.path, self.body(name))
        return (await self.meter.until(name + self.suffix) - sent) * 1000

    async def one_at_a_time(self, count: int, label: str = "s") -> Json:
        """Return the latencies of `count` objects, each posted when the one before has its Job."""
        latencies = []
        for index in range(count + 3):
            latencies.append(await self.once(f"{label}-{index:05d}"))
            await asyncio.sleep(0.1)
        # The first ones open connections.
        return percentiles(latencies[3:])

    async def all_at_once(self, count: int, label: str) -> float:
        """Return how many Jobs a second appear when `count` objects are posted at once."""
        names = [f"{label}-{index:05d}" for index in range(count)]
        started = time.perf_counter()

        async def post(name: str) -> None:
            await self.meter.post(self.path, self.body(name))

        await for_each(names, post)
        last = max([await self.meter.until(name + self.suffix, 300) for name in names]) - started
        return count / last


async def measure_bursts(floor: Load, load: Load, pid: int, options: argparse.Namespace) -> Json:
    """Return the rates of bursts, each beside a floor of its own, and the median of their ratios."""
    pairs, used = [], 0.0
    for index in range(options.bursts):
        least = await floor.all_at_once(options.burst, f"g{index}")
        await asyncio.sleep(3)
        began = cpu_seconds(pid)
        pairs.append((await load.all_at_once(options.burst, f"b{index}"), least))
        used += cpu_seconds(pid) - began
        # Else the Job controller would be busy with these Jobs for a minute more.
        await clear(floor.meter)
    return {
        "jobs_per_s": [round(rate, 1) for rate, _ in pairs],
        "floor_jobs_per_s": [round(least, 1) for _, least in pairs],
        "ratio_median": round(statistics.median(rate / least for rate, least in pairs), 3),
        "cpu_ms_a_job": round(used * 1000 / (options.burst * options.bursts), 2),
    }


async def measure_running(meter: Meter, operator: OperatorProcess, count: int) -> Json:
    """Return the memory with so many running jobs, and how long a user's `suspend` takes to reach one's Job."""
    names = [f"r-{index:05d}" for index in range(count)]
    starting = asyncio.create_task(start_pods(meter, count))

    async def post(name: str) -> None:
        await meter.post(meter.lorajobs, skipped(name))

    await for_each(names, post)
    await starting
    await asyncio.sleep(SETTLE_SECONDS)
    found: Json = {"memory": memory_mb(operator.pid)}
    latencies = []
    for name in names[:: max(1, count // SUSPENDED)]:
        await meter.until(f"{name}-train")
        before = max(meter.seen[f"{name}-train"])
        sent = time.perf_counter()
        await meter.send("PATCH", f"{meter.lorajobs}/{name}", {"spec": {"suspend": True}}, _MERGE)
        latencies.append((await meter.until(f"{name}-train", 60, before + 1) - sent) * 1000)
        await asyncio.sleep(0.2)
    return found | {"suspend": percentiles(latencies)}


async def measure_finished(meter: Meter, operator: OperatorProcess, counts: list[int]) -> Json:
    """Return what an operator needs that starts on so many finished objects: until it is ready, and once settled."""
    found, have = {}, 0
    for count in counts:
        await add_finished(meter, have, count)
        have = count
        began = time.perf_counter()
        operator.start()
        ready = time.perf_counter() - began
        await asyncio.sleep(SETTLE_SECONDS)
        found[str(count)] = memory_mb(operator.pid) | {"ready_s": round(ready, 1)}
        operator.stop()
    return found


async def clear(meter: Meter) -> None:
    """Delete what the measurements before left."""
    for path in (meter.lorajobs, meter.jobs, meter.path("pods")):
        # The API server gives a deletion of thousands a minute only: what is left is asked for again.
        while (await meter.send("GET", f"{path}?limit=1"))["items"]:
            await _delete_all(meter, path)
            await asyncio.sleep(1)
    await asyncio.sleep(SETTLE_SECONDS)


async def _delete_all(meter: Meter, path: str) -> None:
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
    with contextlib.suppress(aiohttp.ClientError):
        async with meter.session.delete(path, json=options) as answer:
            await answer.read()


def with_crds(plane: ControlPlane) -> Kubectl:
    """Return kubectl for a control plane that knows our kinds from now on."""
    path = f"{plane.kubectl.parent}:{os.environ['PATH']}"
    kubectl = Kubectl(os.environ | {"KUBECONFIG": str(plane.kubeconfig), "PATH": path})
    kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
    kubectl.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return kubectl


def account(kubectl: Kubectl, folder: Path) -> Path:
    """Return a kubeconfig with the token of an account that may do everything: a pod shows no certificate, either."""
    kubectl.run("create", "serviceaccount", "operator", "-n", "default")
    role = ["--clusterrole=cluster-admin", "--serviceaccount=default:operator"]
    kubectl.run("create", "clusterrolebinding", "operator", *role)
    return kubeconfig_of(kubectl, "default", "operator", folder)


class Found(dict[str, Any]):
    """What was found, told as it is found, too: all of it takes a quarter of an hour."""

    def __setitem__(self, name: str, value: object) -> None:
        super().__setitem__(name, value)
        print(f"{name}: {json.dumps(value)}", file=sys.stderr, flush=True)


async def measure(plane: ControlPlane, kubeconfig: Path, folder: Path, options: argparse.Namespace) -> Json:
    """Run everything once."""
    api, found = Api(plane.kubeconfig), Found()
    for name in ("bench", "finished"):
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    operator = OperatorProcess(folder / "operator", kubeconfig, python=operators_python()).start()
    meter, finished = Meter(plane.kubeconfig, "bench"), Meter(plane.kubeconfig, "finished")
    ready = asyncio.Event()
    watch = asyncio.create_task(meter.watch(ready))
    await ready.wait()
    floor, load = Load(meter, meter.jobs, bare_job, ""), Load(meter, meter.lorajobs, skipped, "-train")
    try:
        await asyncio.sleep(5)
        found["idle"] = memory_mb(operator.pid)
        found["floor"] = await floor.one_at_a_time(options.sequential)
        found["one_at_a_time"] = await load.one_at_a_time(options.sequential)
        await asyncio.sleep(3)
        found["burst"] = await measure_bursts(floor, load, operator.pid, options)
        found["after_bursts"] = memory_mb(operator.pid)
        await clear(meter)
        found["running"] = await measure_running(meter, operator, options.running)
        operator.stop()
        await clear(meter)
        found["finished"] = await measure_finished(finished, operator, options.finished)
        return found
    finally:
        operator.stop()
        watch.cancel()
        await meter.session.close()
        await finished.session.close()


def parse_options() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequential", type=int, default=100)
    parser.add_argument("--burst", type=int, default=500)
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument("--running", type=int, default=1000)
    parser.add_argument("--finished", type=int, nargs="*", default=[1000, 10_000])
    return parser.parse_args()


def main() -> int:
    """Measure, and print what was found."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder) / "plane").temporary() as plane:
        kubectl = with_crds(plane)
        found: dict[str, Any] = {"load_before": os.getloadavg()[0], "connections": CONNECTIONS}
        found |= asyncio.run(measure(plane, account(kubectl, Path(folder)), Path(folder), options))
        found["load_after"] = os.getloadavg()[0]
        json.dump(found, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
