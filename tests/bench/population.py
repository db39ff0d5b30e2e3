"""LoRAJobs as the operator leaves and follows them, in any number: with Jobs and pods of real size."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from tunery_api.kinds import Kind
from tunery_api.validation import parse_lorajob
from tunery_operator.manifests.job import build_job
from tunery_operator.observed.metadata import parse_owner
from tunery_operator.planning.job import JobPlan, Platform, Progress
from tunery_operator.planning.lorajob import ResolvedInputs, plan_preflight, plan_train

from bench.meter import CONNECTIONS, Meter
from kit.operator.api import Json
from kit.operator.kubelet import timestamp
from kit.operator.objects import RESULT, lorajob
from kit.operator.settings import settings

TIME: Final = "2026-01-31T12:00:00Z"
PLATFORM: Final = Platform(settings(), Progress("https://tunery-progress.tunery.svc:8443", "x" * 600))
_MERGE: Final = {"Content-Type": "application/merge-patch+json"}


async def for_each(names: Iterable[str], do: Callable[[str], Awaitable[None]]) -> None:
    """Do something for each name, some dozens at a time."""
    waiting = list(names)

    async def worker() -> None:
        while waiting:
            await do(waiting.pop())

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


async def add_finished(meter: Meter, start: int, end: int) -> None:
    """Create LoRAJobs that have succeeded, numbered from `start` to `end`, while no operator runs."""
    await for_each((f"done-{index:06d}" for index in range(start, end)), lambda name: _add_one(meter, name))


async def _add_one(meter: Meter, name: str) -> None:
    body = await meter.send("POST", meter.lorajobs, lorajob(name, retries=3))
    owner, spec = parse_owner(Kind.LORAJOB, body), parse_lorajob(body)
    known = ResolvedInputs(revision="0123abc")
    for plan in (plan_preflight(spec, owner, PLATFORM, known), plan_train(spec, owner, PLATFORM, known)):
        await _add_children(meter, plan)
    status = finished_status(name)
    await meter.send("PATCH", f"{meter.lorajobs}/{name}/status", {"status": status}, _MERGE)


async def _add_children(meter: Meter, plan: JobPlan) -> None:
    job = build_job(plan)
    job["metadata"]["labels"]["tunery.dev/done"] = "true"
    # Nobody follows it: what the Job controller and a kubelet would write is written here.
    job["spec"]["managedBy"] = "bench.example/nobody"
    made = await meter.send("POST", meter.jobs, job)
    true = {"status": "True", "lastTransitionTime": TIME, "lastProbeTime": TIME, "reason": "CompletionsReached"}
    conditions = [{"type": kind, **true} for kind in ("SuccessCriteriaMet", "Complete")]
    status = {"startTime": TIME, "completionTime": TIME, "succeeded": 1, "ready": 0, "conditions": conditions}
    path = f"{meter.jobs}/{plan.name}/status"
    await meter.send("PATCH", path, {"status": status | {"uncountedTerminatedPods": {}}}, _MERGE)
    await _add_pod(meter, plan, made)


async def _add_pod(meter: Meter, plan: JobPlan, job: Json) -> None:
    template, uid = job["spec"]["template"], job["metadata"]["uid"]
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": plan.name, "uid": uid, "controller": True}
    labels = template["metadata"]["labels"] | {"batch.kubernetes.io/controller-uid": uid, "job-name": plan.name}
    meta = {"name": f"{plan.name}-abcde", "labels": labels, "ownerReferences": [reference]}
    # No scheduler looks at it.
    pod = {"metadata": meta, "spec": template["spec"] | {"schedulerName": "nobody"}}
    await meter.send("POST", meter.path("pods"), pod)
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": TIME, "finishedAt": TIME, "message": json.dumps(RESULT)}
    status = {"phase": "Succeeded", "startTime": TIME, "containerStatuses": [container({"terminated": ended})]}
    await meter.send("PATCH", f"{meter.path('pods')}/{meta['name']}/status", {"status": status}, _MERGE)


async def start_pods(meter: Meter, count: int) -> None:
    """Start the container of each pod that waits, until so many run."""
    running = 0
    while running < count:
        pods = (await meter.send("GET", f"{meter.path('pods')}?fieldSelector=status.phase%3DPending"))["items"]
        await for_each([pod["metadata"]["name"] for pod in pods], lambda name: _start(meter, name))
        running += len(pods)
        await asyncio.sleep(0.5)


async def _start(meter: Meter, name: str) -> None:
    status = {"phase": "Running", "containerStatuses": [container({"running": {"startedAt": timestamp()}})]}
    await meter.send("PATCH", f"{meter.path('pods')}/{name}/status", {"status": status}, _MERGE)


def container(state: Json) -> Json:
    """Return the status of the trainer's container."""
    return {"name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def finished_status(name: str) -> dict[str, Any]:
    """Return a status as large as a real run's, about 7 kB."""
    types = [
        *("Validated", "Preflight", "Running", "CheckpointSaved"),
        *("Evaluated", "AdapterUploaded", "Succeeded", "Finished"),
    ]
    text = f"published at s3://adapters/{name}, read back, and every digest matches"
    common = {"lastTransitionTime": TIME, "observedGeneration": 1, "message": text}
    conditions = [{"type": kind, "status": "True", "reason": kind, **common} for kind in types]
    values = [{"name": f"training.setting{index:02d}", "value": "0.0002", "source": "Preset"} for index in range(40)]
    attempt = {"uid": "0" * 36, "pod": f"{name}-train-abcde", "node": "node-1", "startTime": TIME, "endTime": TIME}
    return {
        **RESULT,
        "phase": "Succeeded",
        "specVersion": "v1alpha1",
        "observedGeneration": 1,
        "conditions": conditions,
        "startTime": TIME,
        "completionTime": TIME,
        "jobName": f"{name}-train",
        "podName": f"{name}-train-abcde",
        "attempts": 1,
        "runSeconds": 5000,
        "attemptHistory": [attempt | {"reason": "Succeeded", "seconds": 5000, "gpuSeconds": 0}],
        "dataset": {
            "rows": 9000,
            "invalidRows": 0,
            "tokens": 4_000_000,
            "format": "PromptCompletion",
            "sha256": "a" * 64,
        },
        "memory": {"estimateBytes": 7 << 30, "availableBytes": 24 << 30, "suggestedBatchSize": 4},
        "progress": {"percent": 100, "percentText": "100%", "step": 1000, "totalSteps": 1000, "epoch": "3.0"},
        "resolved": {"method": "QLoRA", "rank": 16, "revision": "0123abc", "steps": 1000, "values": values},
    }
