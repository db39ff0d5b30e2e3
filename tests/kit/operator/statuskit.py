"""What the tables of verdicts are written with: Jobs and pods as the API server returns them, and snapshots of them."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tunery_api.kinds import Kind
from tunery_api.names import PROGRESS_URL_ENV
from tunery_api.runspec import TrainerStatus
from tunery_api.status import Phase
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.job import JobView, parse_job
from tunery_operator.observed.metadata import Key, Owner
from tunery_operator.observed.pod import PodView, parse_pod
from tunery_operator.status.compute import compute_status
from tunery_operator.status.snapshot import Snapshot

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
OWNER = Owner(Key(Kind.LORAJOB, "ns", "x"), "uid-1", 3, {})
NODE = "gpu-1"
REPORTS_TO = "https://tunery.tunery-system.svc:8443"
"""The URL that pods post progress to."""
TRAINING = TrainerStatus(progress_percentage=10, phase=Phase.TRAINING)
"""The report of a pod that trains."""


def at(seconds: float) -> str:
    """Return a time, in seconds from NOW, as the API writes it."""
    return (NOW + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def job(*, labels: dict[str, str] | None = None, admitted: bool = False, **changes: Any) -> JobView:
    """Return a Job that was started ten minutes ago; `changes` are fields of the view."""
    template = {"metadata": {"labels": {"kueue.x-k8s.io/podset": "main"}}} if admitted else {}
    body = {
        "metadata": {
            "name": "x-train",
            "namespace": "ns",
            "uid": "j",
            "labels": labels or {},
            "creationTimestamp": at(-600),
        },
        "spec": {"template": template},
        "status": {"startTime": at(-600)},
    }
    return dataclasses.replace(parse_job(body), **changes)


def queued_job(**changes: Any) -> JobView:
    """Return a Job that names queue team-a."""
    return job(labels={"kueue.x-k8s.io/queue-name": "team-a"}, **changes)


def pod(
    name: str = "p1",
    state: dict[str, Any] | None = None,
    *,
    phase: str = "Pending",
    meta: dict[str, Any] | None = None,
    disruption: str | None = None,
    sidecars: tuple[str, ...] = (),
    seen: datetime = NOW + timedelta(days=1),
    **status: Any,
) -> PodView:
    """Return a pod, `seen` when its clock cannot be ahead; `state` is our container's, `status` more of its status."""
    conditions = list(status.pop("conditions", ()))
    url = status.pop("reports_to", REPORTS_TO)
    env = [{"name": PROGRESS_URL_ENV, "value": url}] if url else []
    if disruption is not None:
        target = {"type": "DisruptionTarget", "status": "True", "reason": disruption, "lastTransitionTime": at(-5)}
        conditions.append(target)
    states = [{"name": sidecar, "state": {"running": {"startedAt": at(-500)}}} for sidecar in sidecars]
    states += [{"name": "trainer", "state": state}] if state is not None else []
    body = {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": name,
            "creationTimestamp": at(-86_400 + int(name[-1])),
            **(meta or {}),
        },
        "spec": {"nodeName": NODE, "containers": [{"name": "trainer", "env": env}]},
        "status": {"phase": phase, "conditions": conditions, "containerStatuses": states, **status},
    }
    return parse_pod(body, seen)


def running(name: str = "p1", started: float = -300, **more: Any) -> PodView:
    """Return a pod whose container runs since `started` seconds from NOW."""
    return pod(name, {"running": {"startedAt": at(started)}}, phase="Running", **more)


def ended(
    name: str = "p1",
    code: int = 0,
    *,
    started: float = -300,
    stopped: float = -60,
    why: str = "Error",
    says: Any = "",
    **more: Any,
) -> PodView:
    """Return a pod whose container ended."""
    text = says if isinstance(says, str) else json.dumps(says)
    state = {"exitCode": code, "reason": why, "startedAt": at(started), "finishedAt": at(stopped), "message": text}
    return pod(name, {"terminated": state}, phase="Failed" if code else "Succeeded", **more)


def deleting(seconds: float) -> dict[str, Any]:
    """Return the metadata of a pod that was told to end, whose grace period is over in so many seconds."""
    return {"deletionTimestamp": at(seconds), "deletionGracePeriodSeconds": 120}


def snapshot(*pods: PodView, **changes: Any) -> Snapshot:
    """Return a LoRAJob, or an object of another kind, whose preflight has passed and whose Job has these pods."""
    pods = tuple(changes.pop("pods", pods))
    changes.setdefault("main", Attempt(changes.pop("train", job()), pods))
    if pods and "progress" in changes:
        changes.setdefault("reporter", pods[-1].uid)
        changes.setdefault("reported_at", changes.get("now", NOW))
    changes.setdefault("taking_reports_since", NOW)
    kind = changes.pop("kind", Kind.LORAJOB)
    owner = changes.pop("owner", dataclasses.replace(OWNER, key=Key(kind, "ns", "x")))
    return Snapshot(kind, owner, changes.pop("status", {}), changes.pop("now", NOW), **changes)


def status_for(*pods: PodView, **changes: Any) -> dict[str, Any]:
    """Return the status of such a LoRAJob."""
    return compute_status(snapshot(*pods, **changes))


def again(seen: Snapshot, *pods: PodView, seconds: float = 0, **changes: Any) -> Snapshot:
    """Return the next snapshot after the status of `seen` was written, with other pods, so many seconds later."""
    main = Attempt(changes.pop("train", seen.main.job if seen.main else job()), pods)
    now = seen.now + timedelta(seconds=seconds)
    if changes.get("progress") is not None:
        changes.setdefault("reported_at", now)
    return dataclasses.replace(seen, **{"status": compute_status(seen), "now": now, "main": main, **changes})


def condition(status: dict[str, Any], type_: str) -> tuple[str, str] | None:
    """Return status and reason of a condition, or None where it is not set."""
    found = next((c for c in status["conditions"] if c["type"] == type_), None)
    return (found["status"], found["reason"]) if found else None


def message_of(status: dict[str, Any], type_: str) -> str:
    """Return the message of a condition that is set."""
    return next(str(each.get("message", "")) for each in status["conditions"] if each["type"] == type_)
