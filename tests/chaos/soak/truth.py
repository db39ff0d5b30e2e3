"""What a status must say, judged from Jobs and pods alone: a second opinion that shares no code with the operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

AT_WORK: Final = ("Downloading", "Training", "Evaluating", "Merging", "Uploading")
OVER: Final = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Children:
    """What the cluster holds of one LoRAJob."""

    jobs: dict[str, Json] = field(default_factory=dict)
    """By role."""
    pods: tuple[Json, ...] = ()


def children_by_owner(jobs: Iterable[Json], pods: Iterable[Json]) -> dict[str, Children]:
    """Return Jobs and pods by the uid of the LoRAJob whose they are."""
    found: dict[str, dict[str, Json]] = defaultdict(dict)
    owner_of_job = {}
    for job in jobs:
        owner = _controller(job)
        owner_of_job[job["metadata"]["uid"]] = owner
        found[owner][job["metadata"]["labels"]["tunery.dev/role"]] = job
    of_owner: dict[str, list[Json]] = defaultdict(list)
    for pod in pods:
        of_owner[owner_of_job.get(_controller(pod), "")].append(pod)
    return {uid: Children(found.get(uid, {}), tuple(of_owner.get(uid, ()))) for uid in {*found, *of_owner}}


def complaints(lorajob: Json, children: Children) -> list[str]:
    """Return each sentence of the status that is not so; none for one that is being deleted."""
    if lorajob["metadata"].get("deletionTimestamp"):
        return []
    phase = lorajob.get("status", {}).get("phase", "")
    wrong = [*_phase_without_cause(lorajob, phase, children), *_cause_without_phase(lorajob, phase, children)]
    return [f"{phase or 'no phase'}: {text}" for text in wrong]


def _phase_without_cause(lorajob: Json, phase: str, children: Children) -> list[str]:
    train, status = children.jobs.get("train"), lorajob.get("status", {})
    checks = (
        (phase == "Training" and not _running(children, "train"), "no pod trains"),
        (phase == "Succeeded" and not _is(train, "Complete"), "the train Job is not complete"),
        (phase == "Succeeded" and "adapter" not in status, "no adapter is named"),
        (phase == "Failed" and "failure" not in status, "no failure is named"),
        (phase == "Failed" and any(not _leaving(pod) for pod in _unended(children)), "a pod goes on"),
        (phase == "Suspended" and bool(_unended(children)), "a pod has not ended"),
        (phase in ("Suspended", "Suspending") and not lorajob["spec"].get("suspend"), "nobody asked for it"),
        (phase == "Preflight" and "preflight" not in children.jobs, "there is no preflight Job"),
        (phase == "Preflight" and train is not None, "there is a train Job"),
        (phase in AT_WORK and train is None, "there is no train Job"),
        (
            status.get("startTime", "~") < lorajob["metadata"].get("creationTimestamp", ""),
            "it started before it was created",
        ),
    )
    return [text for wrong, text in checks if wrong]


def _cause_without_phase(lorajob: Json, phase: str, children: Children) -> list[str]:
    train, suspend = children.jobs.get("train"), bool(lorajob["spec"].get("suspend"))
    working = ("Starting", "Suspending", *AT_WORK)
    checks = (
        (not phase, "nothing is said"),
        (_running(children, "train") and phase not in working, "a pod trains"),
        (_is(train, "Complete") and phase != "Succeeded", "the train Job is complete"),
        (_is(train, "Failed") and phase != "Failed", "the train Job has failed"),
        (
            suspend and not _unended(children) and phase not in ("Suspended", *OVER),
            "it is suspended, and no pod is left",
        ),
        (not suspend and phase not in OVER and bool(train and train["spec"].get("suspend")), "its Job is suspended"),
        (len(_unended(children, "train")) > 1, "two pods train at once"),
    )
    return [text for wrong, text in checks if wrong]


def _unended(children: Children, role: str | None = None) -> list[Json]:
    """Return the pods that hold, or may come to hold, a node."""
    pods = (pod for pod in children.pods if role is None or pod["metadata"]["labels"]["tunery.dev/role"] == role)
    return [pod for pod in pods if pod.get("status", {}).get("phase") not in OVER]


def _running(children: Children, role: str) -> bool:
    pods = (pod for pod in _unended(children, role) if not _leaving(pod))
    return any(pod["status"].get("phase") == "Running" for pod in pods)


def _leaving(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _is(job: Json | None, condition: str) -> bool:
    found = (job or {}).get("status", {}).get("conditions", [])
    return any(item["type"] == condition and item["status"] == "True" for item in found)


def _controller(child: Json) -> str:
    owners = child["metadata"].get("ownerReferences", [])
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), "")
