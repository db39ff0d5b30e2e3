"""What many sweeps cost an operator and the LoRAJobs beside them: `python -m bench.sweep_operator [--sweeps 50]`.

A whole operator against a real API server and Job controller; pods are played by another process. LoRAJobs are applied
one at a time, at first alone, then from the moment on at which all sweeps are applied at once; then the operator starts
anew where all of them have ended. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tunery_operator.__main__ import TRIM_AGAIN_SECONDS

from bench.environments import operators_python
from bench.meter import Meter, cpu_seconds, memory_mb, percentiles
from bench.operator_latency import SETTLE_SECONDS, Found, Load, account, bare_job, skipped, with_crds
from bench.population import for_each
from kit.operator.api import Api, Json
from kit.operator.objects import lorasweep
from kit.operator.players import Kubelets
from kit.operator.process import OperatorProcess
from kit.operator.sweeps import Trials
from tools.cluster.controlplane import ControlPlane

NAMESPACES: Final = ("bench", "sweeps")
SWEEPS: Final = "/apis/tunery.dev/v1alpha1/namespaces/sweeps/lorasweeps"
ALL_SECONDS: Final = 1500


def play(kubeconfig: Path) -> None:
    """Play every pod, until the process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Kubelets(Api(kubeconfig), Trials().end, seconds=0.5).run()


def loaded(pid: int) -> list[str]:
    """Return which of the search's libraries a process has in its memory: each brings compiled parts."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [name for name in ("numpy", "sqlalchemy", "optuna") if f"/{name}/" in maps]


async def phases(meter: Meter) -> Counter[str]:
    """Return how many sweeps are in each phase."""
    items = (await meter.send("GET", SWEEPS))["items"]
    return Counter(str(item.get("status", {}).get("phase", "")) for item in items)


async def beside_floor(floor: Load, load: Load, count: int, label: str) -> Json:
    """Return the latencies of so many LoRAJobs, each beside a bare Job: what that takes is not the operator's."""
    bare, jobs = [], []
    for index in range(count + 3):
        bare.append(await floor.once(f"f-{label}-{index:05d}"))
        await asyncio.sleep(0.05)
        jobs.append(await load.once(f"{label}-{index:05d}"))
        await asyncio.sleep(0.05)
    # The first ones open connections.
    return percentiles(jobs[3:]) | {"floor": percentiles(bare[3:])}


async def measure(plane: ControlPlane, operator: OperatorProcess, options: argparse.Namespace) -> Json:
    """Run everything once."""
    found = Found()
    meter, ready = Meter(plane.kubeconfig, "bench"), asyncio.Event()
    watch = asyncio.create_task(meter.watch(ready))
    await ready.wait()
    floor, load = Load(meter, meter.jobs, bare_job, ""), Load(meter, meter.lorajobs, skipped, "-train")
    try:
        await asyncio.sleep(SETTLE_SECONDS)
        found["idle"] = memory_mb(operator.pid) | {"loaded": loaded(operator.pid)}
        found["alone"] = await beside_floor(floor, load, options.jobs, "alone")
        names = [f"sweep-{index:03d}" for index in range(options.sweeps)]
        began, used = time.perf_counter(), cpu_seconds(operator.pid)

        async def post(name: str) -> None:
            await meter.send("POST", SWEEPS, lorasweep(name, maxTrials=options.trials, parallelTrials=2))

        await for_each(names, post)
        found["beside"] = await beside_floor(floor, load, options.jobs, "beside")
        found["phases_after_it"] = dict(await phases(meter))
        while (await phases(meter))["Succeeded"] < options.sweeps and time.perf_counter() < began + ALL_SECONDS:
            await asyncio.sleep(2)
        found["phases"] = dict(await phases(meter))
        found["seconds"] = round(time.perf_counter() - began)
        found["cpu_ms_a_trial"] = round(
            (cpu_seconds(operator.pid) - used) * 1000 / (options.sweeps * options.trials), 1
        )
        found["after"] = memory_mb(operator.pid) | {"loaded": loaded(operator.pid)}
        await asyncio.sleep(TRIM_AGAIN_SECONDS + SETTLE_SECONDS)
        found["a_minute_after"] = memory_mb(operator.pid)
        operator.stop()
        operator.start()
        await asyncio.sleep(2 * SETTLE_SECONDS)
        found["started_with_all_ended"] = memory_mb(operator.pid) | {"loaded": loaded(operator.pid)}
        return found
    finally:
        watch.cancel()
        await meter.session.close()


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=50)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plane = ControlPlane(Path(folder) / "plane")
        plane.start()
        player = multiprocessing.get_context("spawn").Process(target=play, args=(plane.kubeconfig,), daemon=True)
        try:
            kubectl = with_crds(plane)
            for name in NAMESPACES:
                kubectl.run("create", "namespace", name)
            player.start()
            kubeconfig = account(kubectl, Path(folder))
            operator = OperatorProcess(Path(folder) / "operator", kubeconfig, python=operators_python()).start()
            try:
                found: dict[str, Any] = asyncio.run(measure(plane, operator, options))
            finally:
                operator.stop()
            json.dump({"load_before": os.getloadavg()[0]} | found, sys.stdout, indent=1)
        finally:
            player.terminate()
            plane.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
