"""What the operator's process holds of sweeps that have ended: `python -m bench.sweep_memory [--sweeps 0 50]`.

At the level of its cache: a process for each number, with all that the operator loads, takes objects as a watch hands
them on. Kopf, the API server's connections and the metrics of a real one are not there.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import tunery_operator.__main__ as operator
from tunery_api.kinds import Kind
from tunery_api.names import SWEEP_LABEL, TRIAL_LABEL
from tunery_operator.runtime.cache import Cache

from bench.meter import memory_mb
from bench.population import TIME, finished_status
from kit.operator.api import Json
from kit.operator.objects import lorajob
from kit.sweeps import curves, sweep, trial

TRIALS: Final = 20


def objects(number: int) -> Iterator[tuple[Kind, str]]:
    """Yield a sweep that has ended and its trials, as a watch reads them: as text."""
    name, uid = f"sweep-{number:03}", f"{number:08}-0000-0000-0000-000000000000"
    owner = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep", "name": name, "uid": uid, "controller": True}
    for index in range(TRIALS):
        child = f"{name}-{index:03}"
        body = lorajob(child, retries=3)
        labels = {SWEEP_LABEL: name, TRIAL_LABEL: f"{index:03}"}
        body["metadata"] |= _metadata(child, f"{uid}-{index}") | {"labels": labels, "ownerReferences": [owner]}
        yield Kind.LORAJOB, json.dumps(body | {"status": finished_status(child)})
    rows = [trial(index, losses=curves()[index].losses).row.to_json_dict() for index in range(TRIALS)]
    status = {"phase": "Succeeded", "observedGeneration": 1, "completionTime": TIME, "trials": rows}
    spec = sweep(maxTrials=TRIALS).to_json_dict()
    kind = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep"}
    yield Kind.LORASWEEP, json.dumps({**kind, "metadata": _metadata(name, uid), "spec": spec, "status": status})


def _metadata(name: str, uid: str) -> Json:
    return {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": "100",
        "generation": 1,
        "creationTimestamp": TIME,
    }


def measure(sweeps: int) -> dict[str, Any]:
    """Return the memory of this process before and with so many sweeps, in MiB, and what it has loaded of Optuna's."""
    cache = Cache()
    gc.collect()
    operator.trim_memory()
    before, size = memory_mb(os.getpid())["rss_mb"], 0
    for number in range(sweeps):
        for kind, text in objects(number):
            size += len(text)
            cache.put_object(kind, json.loads(text))
    gc.collect()
    operator.trim_memory()
    known = sum(cache.phases().values())
    loaded = sorted({"optuna", "numpy", "sqlalchemy"} & set(sys.modules))
    read = round(size / 2**20, 1)
    return {"objects": known, "read_mib": read, "before": before, **memory_mb(os.getpid()), "loaded": loaded}


def main() -> None:
    """Print one JSON line for each number of sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, nargs="*", default=[0, 50])
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        print(json.dumps({"sweeps": options.here} | measure(options.here)))
        return
    for count in options.sweeps:
        subprocess.run([sys.executable, "-m", "bench.sweep_memory", "--here", str(count)], check=True)


if __name__ == "__main__":
    main()
