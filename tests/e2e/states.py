"""What stands in the way of a job on a real cluster: how each is made, what must be said, and how it is taken away."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.conftest import LONG, chat, lorajob

from kit.jobs import Job
from kit.kubectl import Kubectl
from kit.policies import changing_pods, refusing_jobs

Objects = list[dict[str, Any]]
FRIDAYS = "no training on Fridays"
MISSING = "e2e-later"
"""A name that nothing has until the cause is taken away."""
CPU_OF_NOBODY = "10m"


def resources(cpu: str = "50m", disk: str = "2Gi") -> dict[str, Any]:
    """Return spec.resources of a row's job."""
    return {"gpus": 0, "cpu": cpu, "memory": "1Gi", "ephemeralStorage": disk}


@dataclass(frozen=True)
class Place:
    """Where one row is tried: a namespace of its own, and a folder of the node's that does not exist yet."""

    kubectl: Kubectl
    row: str
    folder: Path

    @property
    def namespace(self) -> str:
        return f"e2e-state-{self.row}"

    @property
    def policy(self) -> str:
        return self.namespace

    def job(self, **blocks: Any) -> Job:
        """Return the row's job, not applied yet; it asks for little, since all rows wait on one node at once."""
        common = {"preflight": "Skip", "resources": resources()}
        return Job(self.kubectl, lorajob(self.namespace, self.row, **(common | blocks)), self.namespace)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects in the row's namespace."""
        self.kubectl.apply(*objects, namespace=self.namespace)


@dataclass(frozen=True)
class Row:
    """One state: what makes it, the reason and the words that the status must show, and the cure."""

    reason: str
    said: str
    cure: Callable[[Place], None]
    before: Callable[[Place], Objects] = lambda place: []
    blocks: Mapping[str, Any] = field(default_factory=dict)
    within: float = 30
    """Seconds from the job's creation."""


def _object(api: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, **fields}


def _quota(**hard: str) -> Callable[[Place], Objects]:
    amounts = {name.replace("__", "/").replace("_", "."): value for name, value in hard.items()}
    return lambda place: [_object("v1", "ResourceQuota", "tight", spec={"hard": amounts})]


def _deleting(kind: str, name: str) -> Callable[[Place], None]:
    return lambda place: place.kubectl.delete(kind, name, place.namespace)


def _applying(*objects: dict[str, Any]) -> Callable[[Place], None]:
    return lambda place: place.apply(*objects)


def _refused(place: Place) -> Objects:
    return refusing_jobs(place.policy, place.namespace, place.row, FRIDAYS)


def _allow(place: Place) -> None:
    for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
        place.kubectl.delete(kind, place.policy)


def _with_container(path: str, value: Any, op: str = "add") -> Callable[[Place], Objects]:
    """Return a policy that changes the trainer's container below `path`."""
    patch = {"op": op, "path": f"/spec/containers/0/{path}", "value": value}
    return lambda place: changing_pods(place.policy, place.namespace, place.row, patch)


def _leave_alone(place: Place) -> None:
    """Take the policy away, and the pod that was made under it."""
    for kind in ("mutatingadmissionpolicybinding", "mutatingadmissionpolicy"):
        place.kubectl.delete(kind, place.policy)
    for pod in place.job().pods("train"):
        place.kubectl.delete("pod", pod["metadata"]["name"], place.namespace, wait=False)


def _reschedule(place: Place) -> None:
    place.job().patch_spec(scheduling=None)


def _claim(place: Place) -> Objects:
    """Return a claim, bound to a folder of the node."""
    size = {"storage": "1Gi"}
    bound = {"namespace": place.namespace, "name": MISSING}
    volume = {
        "capacity": size,
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "claimRef": bound,
        "hostPath": {"path": str(place.folder), "type": "Directory"},
    }
    claim = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "volumeName": place.namespace,
        "resources": {"requests": size},
    }
    return [
        _object("v1", "PersistentVolume", place.namespace, spec=volume),
        _object("v1", "PersistentVolumeClaim", MISSING, spec=claim),
    ]


def _fill(place: Place) -> None:
    place.folder.mkdir(parents=True)
    place.folder.chmod(0o755)
    rows = "\n".join(json.dumps(chat(index)) for index in range(80))
    (place.folder / "rows.jsonl").write_text(rows)


def _fill_and_claim(place: Place) -> None:
    _fill(place)
    place.apply(*_claim(place))


def _more_disk(place: Place) -> None:
    job = place.job()
    job.patch_spec(resources={"ephemeralStorage": "2Gi"})
    job.retry("more-disk")


FROM_CLAIM = {"dataset": {"uri": f"pvc://{MISSING}/rows.jsonl"}}
LIMITS = {"limits": [{"type": "Container", "max": {"cpu": CPU_OF_NOBODY}}]}
FROM_CONFIG_MAP = {"name": "FROM", "valueFrom": {"configMapKeyRef": {"name": MISSING, "key": "key"}}}
NO_IMAGE = "127.0.0.1:1/nothing:here"

ROWS: dict[str, Row] = {
    "quota-pods": Row("QuotaExceeded", "exceeded quota: tight", _deleting("resourcequota", "tight"), _quota(pods="0")),
    "quota-jobs": Row(
        "QuotaExceeded", "exceeded quota: tight", _deleting("resourcequota", "tight"), _quota(count__jobs_batch="0")
    ),
    "job-policy": Row("CreateRefused", FRIDAYS, _allow, _refused),
    "limit-range": Row(
        "PodRefused",
        f"maximum cpu usage per Container is {CPU_OF_NOBODY}",
        _deleting("limitrange", "tight"),
        lambda place: [_object("v1", "LimitRange", "tight", spec=LIMITS)],
    ),
    "service-account": Row(
        "PodRefused",
        f'serviceaccount "{MISSING}" not found',
        _applying(_object("v1", "ServiceAccount", MISSING)),
        blocks={"scheduling": {"serviceAccountName": MISSING}},
    ),
    "priority-class": Row(
        "PodRefused",
        f"no PriorityClass with name {MISSING} was found",
        _applying(_object("scheduling.k8s.io/v1", "PriorityClass", MISSING, value=1)),
        blocks={"scheduling": {"priorityClassName": MISSING}},
    ),
    "runtime-class": Row(
        "PodRefused",
        f'RuntimeClass "{MISSING}" not found',
        _applying(_object("node.k8s.io/v1", "RuntimeClass", MISSING, handler="runc")),
        blocks={"scheduling": {"runtimeClassName": MISSING}},
    ),
    "selector": Row(
        "Unschedulable",
        "didn't match Pod's node affinity/selector",
        _reschedule,
        blocks={"scheduling": {"nodeSelector": {"example.com/kind": "nowhere"}}},
    ),
    "claim": Row("Unschedulable", f'persistentvolumeclaim "{MISSING}" not found', _fill_and_claim, blocks=FROM_CLAIM),
    "mount": Row("MountFailed", "hostPath type check failed", _fill, _claim, FROM_CLAIM),
    "image": Row("ImagePullFailed", NO_IMAGE, _leave_alone, _with_container("image", NO_IMAGE, "replace")),
    "container": Row(
        "ContainerRefused",
        f'configmap "{MISSING}" not found',
        _applying(_object("v1", "ConfigMap", MISSING, data={"key": "value"})),
        _with_container("env/-", FROM_CONFIG_MAP),
    ),
    # The kubelet measures a pod's volumes once a minute: the run has to go on for longer, on a quiet machine, too.
    "disk": Row(
        "DiskFull",
        "exceeds the limit",
        _more_disk,
        blocks=LONG | {"training": LONG["training"] | {"maxSteps": 1500}, "resources": resources("500m", "1Mi")},
        within=240,
    ),
}
