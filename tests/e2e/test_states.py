"""Whatever stands in the way of a job is said within 30 s in the cluster's own words, and goes away with its cause."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from e2e.conftest import LONG, Launch, chat, checkpointed, resumed, running_pod
from e2e.states import ROWS, Place

from kit.environment import images
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.policies import changing_pods
from kit.tenant import create_tenant

pytestmark = pytest.mark.slow

CURED_SECONDS = 150
"""The Job controller waits longer and longer before it tries a refused pod again."""
SUCCEEDED_SECONDS = 600
"""All rows train at once then, on two cores."""
GHOST = "example.com/ghost"
CLUSTER_WIDE = {
    "persistentvolume": ("e2e-state-claim", "e2e-state-mount"),
    "priorityclass": ("e2e-later",),
    "runtimeclass": ("e2e-later",),
    "validatingadmissionpolicybinding": ("e2e-state-job-policy",),
    "validatingadmissionpolicy": ("e2e-state-job-policy",),
    "mutatingadmissionpolicybinding": ("e2e-state-image", "e2e-state-container"),
    "mutatingadmissionpolicy": ("e2e-state-image", "e2e-state-container"),
}


class Told(NamedTuple):
    """What a status said first with the right reason, and how long after the job was created."""

    seconds: float
    message: str
    hint: str


@pytest.fixture(scope="module")
def places(
    kubectl: Kubectl, environment: dict[str, str], installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Place]]:
    """Every row of the table in a namespace of its own, all at once: most of them only wait."""
    folder = tmp_path_factory.mktemp("volumes")
    made = {name: Place(kubectl, name, folder / name) for name in ROWS}
    _remove(kubectl, made, wait=True)
    for name, place in made.items():
        create_tenant(kubectl, place.namespace, environment)
        if objects := ROWS[name].before(place):
            place.apply(*objects)
    # A quota counts once its controller has looked, a policy once the API server has compiled it.
    wait_for("the quotas", lambda: all(q["status"].get("hard") for q in kubectl.list("resourcequotas")), 30)
    time.sleep(5)
    yield made
    _remove(kubectl, made, wait=False)


def _remove(kubectl: Kubectl, places: dict[str, Place], *, wait: bool) -> None:
    for kind, names in CLUSTER_WIDE.items():
        kubectl.run("delete", kind, *names, "--ignore-not-found", "--wait=false")
    names = [place.namespace for place in places.values()]
    kubectl.run("delete", "namespace", *names, "--ignore-not-found", f"--wait={str(wait).lower()}", timeout=180)


@pytest.fixture(scope="module")
def told(places: dict[str, Place], kubectl: Kubectl) -> dict[str, Told]:
    """Start all jobs, note when each status says what it should, and take the cause away as soon as it does."""
    for name, place in places.items():
        place.job(**ROWS[name].blocks).apply()
    heard: dict[str, Told] = {}
    end = time.monotonic() + max(row.within for row in ROWS.values()) + 10
    while len(heard) < len(ROWS) and time.monotonic() < end:
        new = {name: found for name, found in _said(kubectl) if name not in heard}
        heard |= new
        for name in new:
            ROWS[name].cure(places[name])
        time.sleep(1)
    return heard


def _said(kubectl: Kubectl) -> Iterator[tuple[str, Told]]:
    """Yield the rows whose status says now what it should."""
    for body in kubectl.list("lorajobs"):
        name, failure = body["metadata"]["name"], body.get("status", {}).get("failure", {})
        if name in ROWS and failure.get("reason") == ROWS[name].reason:
            created = datetime.fromisoformat(body["metadata"]["creationTimestamp"])
            seconds = (datetime.now(UTC) - created).total_seconds()
            yield name, Told(seconds, failure["message"], failure.get("hint", ""))


@pytest.mark.parametrize("name", ROWS)
def test_what_stands_in_the_way_is_said_and_goes_away(
    name: str, places: dict[str, Place], told: dict[str, Told]
) -> None:
    row, job = ROWS[name], places[name].job()
    assert name in told, f"never said {row.reason}, but {job.failure}\n{job.story()}"
    assert row.said in told[name].message
    assert told[name].hint
    assert told[name].seconds <= row.within
    job.wait_no_failure(CURED_SECONDS)
    job.wait_phase("Succeeded", timeout=SUCCEEDED_SECONDS)
    job.kubectl.delete(job.kind, job.name, job.namespace, wait=False)


@pytest.fixture
def tainted_node(kubectl: Kubectl) -> Iterator[None]:
    """The node takes no new pods for the time of a test."""
    (node,) = [node["metadata"]["name"] for node in kubectl.list("nodes")]
    kubectl.run("taint", "node", node, "example.com/reserved=yes:NoSchedule", "--overwrite")
    yield
    kubectl.run("taint", "node", node, "example.com/reserved-")


def test_a_taint_is_said_and_goes_away(kubectl: Kubectl, tainted_node: None, launch: Launch) -> None:
    job = launch("tainted", preflight="Skip")
    assert "untolerated taint" in job.wait_failure("Unschedulable", timeout=30)["message"]
    (node,) = kubectl.list("nodes")
    kubectl.run("taint", "node", node["metadata"]["name"], "example.com/reserved-")
    job.wait_no_failure(60)
    kubectl.run("taint", "node", node["metadata"]["name"], "example.com/reserved=yes:NoSchedule")


def test_a_sidecar_that_sorts_first_changes_nothing(
    launch: Launch, kubectl: Kubectl, namespace: str, environment: dict[str, str]
) -> None:
    """As a service mesh injects it: the kubelet sorts the statuses of containers by name."""
    sidecar = {
        "name": "istio-proxy",
        "image": images(environment)["trainer.image"],
        "command": ["python", "-c", "import time; time.sleep(20)"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    patch = {"op": "add", "path": "/spec/containers/-", "value": sidecar}
    policy = changing_pods(namespace, namespace, "meshed", patch)
    kubectl.apply(*policy)
    try:
        time.sleep(5)  # until the API server has compiled it
        job = launch("meshed", preflight="Skip")
        status = job.wait_phase("Succeeded", timeout=300)
        (pod,) = job.pods("train")
        assert [each["name"] for each in pod["status"]["containerStatuses"]] == ["istio-proxy", "trainer"]
        assert status["adapter"]["uri"]
    finally:
        for made in policy:
            kubectl.delete(made["kind"].lower(), namespace)


def test_an_eviction_is_free_and_resumes(launch: Launch, kubectl: Kubectl, namespace: str) -> None:
    job = launch("evicted", **(LONG | {"retries": 0}))
    checkpointed(job)
    name = running_pod(job)["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
    kubectl.run("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    status = job.wait_phase("Succeeded", timeout=500)
    assert status["attempts"] == 2, job.story()
    assert "failure" not in status
    assert resumed(job)


def test_rows_in_a_config_map_that_was_deleted_are_missed_and_come_back(
    launch: Launch, kubectl: Kubectl, namespace: str
) -> None:
    rows = "\n".join(json.dumps(chat(index)) for index in range(40))
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows", "namespace": namespace}}
    job = launch("rows", suspend=True, dataset={"uri": "configmap://rows/chat.jsonl"})
    kubectl.apply(config | {"data": {"chat.jsonl": rows}})
    job.wait_phase("Suspended", timeout=60)
    kubectl.run("delete", "configmap", "rows", "-n", namespace)
    job.patch_spec(suspend=False)
    job.wait_phase("Failed", timeout=120)
    assert job.failure["reason"] == "DatasetNotFound"
    assert "the ConfigMap rows does not exist in the job's namespace" in job.failure["message"]
    kubectl.apply(config | {"data": {"chat.jsonl": rows}})
    job.retry("rows-are-back")
    job.wait_phase("Succeeded", timeout=300)


@pytest.fixture
def ghost(kubectl: Kubectl) -> Iterator[str]:
    """A node that is Ready and has no kubelet: after some 50 s without a heartbeat it is lost."""
    name = "ghost"
    kubectl.delete("node", name)
    taint = {"key": GHOST, "effect": "NoSchedule"}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {GHOST: "yes"}}}
    kubectl.apply(node | {"spec": {"taints": [taint]}})
    amounts = {"cpu": "4", "memory": "16Gi", "ephemeral-storage": "50Gi", "pods": "10"}
    _patch_status(
        kubectl,
        "node",
        name,
        {"capacity": amounts, "allocatable": amounts, "conditions": [_ready("KubeletReady", lastHeartbeatTime=_now())]},
    )
    yield name
    kubectl.delete("node", name)
    for real in kubectl.list("nodes"):
        kubectl.run("label", "node", real["metadata"]["name"], f"{GHOST}-")


def test_a_lost_node_is_said_and_the_job_goes_on_elsewhere(
    launch: Launch, kubectl: Kubectl, ghost: str, namespace: str
) -> None:
    lost = [
        {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
        for why in ("unreachable", "not-ready")
    ]
    scheduling = {"nodeSelector": {GHOST: "yes"}, "tolerations": [{"key": GHOST, "operator": "Exists"}, *lost]}
    job = launch("lost", scheduling=scheduling, preflight="Skip")
    pod = wait_for("the pod on the ghost", lambda: _pod_on(job, ghost), 60)
    _pretend_to_run(kubectl, namespace, pod)
    wait_for("the pod to be seen", lambda: job.condition("Running").get("status") == "True", 60)
    # 50 s until the node is lost, 2 s of toleration, 120 s in which the pod might still end in order.
    message = job.wait_failure("NodeLost", timeout=300)["message"]
    assert ghost in message
    assert job.condition("Running")["status"] == "Unknown"
    for real in kubectl.list("nodes"):
        kubectl.run("label", "node", real["metadata"]["name"], f"{GHOST}=yes", "--overwrite")
    kubectl.delete("node", ghost)
    status = job.wait_phase("Succeeded", timeout=400)
    assert status["attempts"] == 2
    assert "failure" not in status


def _pod_on(job: Job, node: str) -> str | None:
    return next((p["metadata"]["name"] for p in job.pods("train") if p["spec"].get("nodeName") == node), None)


def _pretend_to_run(kubectl: Kubectl, namespace: str, pod: str) -> None:
    """Say of a pod what a kubelet would say."""
    container = {
        "name": "trainer",
        "image": "trainer",
        "imageID": "",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": _now()}},
    }
    status = {"phase": "Running", "startTime": _now(), "conditions": [_ready()], "containerStatuses": [container]}
    _patch_status(kubectl, "pod", pod, status, "-n", namespace)


def _patch_status(kubectl: Kubectl, kind: str, name: str, status: dict[str, Any], *where: str) -> None:
    kubectl.run("patch", kind, name, *where, "--subresource=status", "-p", json.dumps({"status": status}))


def _ready(reason: str = "PodReady", **fields: str) -> dict[str, str]:
    return {"type": "Ready", "status": "True", "reason": reason, "lastTransitionTime": _now(), **fields}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
