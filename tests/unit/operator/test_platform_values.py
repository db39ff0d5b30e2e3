"""A failure that may come from the platform names the values of the chart that the pod uses, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.failures import Failure
from tunery_api.kinds import Kind
from tunery_operator.config import Settings
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.event import ClusterWarning
from tunery_operator.planning.platform_values import PlatformValues, platform_values, with_platform_values

from kit.operator.servers import deployment, server_pod
from kit.operator.serverstatuskit import compute
from kit.operator.serverstatuskit import snapshot as server
from kit.operator.settings import settings
from kit.operator.statuskit import at, ended, job, pod, status_for

PLAIN = settings()
PLACED = settings(
    trainer={
        "nodeSelector": {"pool": "ml"},
        "priorityClassName": "low",
        "gpu": {"runtimeClassName": "nvidia", "nodeSelector": {"gpu": "h100"}},
        "caBundle": {"configMap": "corp"},
    },
    preflight={"nodeSelector": {"pool": "cpu"}, "runtimeClassName": "gvisor"},
    cache={"claimName": "models"},
)
OWN = {"scheduling": {"nodeSelector": {"pool": "x", "gpu": "a"}, "priorityClassName": "p", "runtimeClassName": "r"}}
NO_NODE = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."
UNPLACED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_NODE}
REFUSED = ClusterWarning("FailedCreate", 'pods "x" is forbidden: RuntimeClass "gvisor" not found', at(-9), "Job")


def named(reason: str, kind: Kind, spec: dict[str, Any], on: Settings, *, check: bool = False) -> list[str]:
    """Return the values that a failure of a pod with one GPU names."""
    values = platform_values(kind, spec, on, 1)
    failure = with_platform_values(Failure(reason=reason, message="m"), values.checks if check else values.work)
    return [name for name in failure.facts.get("chartValues", "").split(", ") if name]


PLACING = ["trainer.nodeSelector", "trainer.priorityClassName", "trainer.gpu.nodeSelector"]
CASES: dict[str, tuple[list[str], list[str]]] = {
    "no node fits": (named("Unschedulable", Kind.LORAJOB, {}, PLACED), ["cache.claimName", *PLACING]),
    "no node fits a check": (
        named("Unschedulable", Kind.LORAJOB, {}, PLACED, check=True),
        ["cache.claimName", "preflight.resources", "preflight.nodeSelector", *PLACING[:2]],
    ),
    "the manifest's own placing": (named("Unschedulable", Kind.LORAJOB, OWN, PLACED), ["cache.claimName"]),
    "the manifest's own cache": (named("MountFailed", Kind.LORAJOB, {"cache": {}} | OWN, PLAIN), []),
    "a volume": (named("MountFailed", Kind.LORAJOB, {}, PLACED), ["trainer.caBundle.configMap", "cache.claimName"]),
    "a merge has no cache": (named("MountFailed", Kind.ADAPTERMERGE, {}, PLACED), ["trainer.caBundle.configMap"]),
    "a class that is missing": (
        named("PodRefused", Kind.LORAJOB, {}, PLACED),
        ["trainer.securityContext", *PLACING, "trainer.gpu.runtimeClassName"],
    ),
    "a limit": (
        named("PodRefused", Kind.LORAJOB, {}, PLAIN, check=True),
        ["trainer.securityContext", "preflight.resources"],
    ),
    "the image": (named("ImagePullFailed", Kind.LORAJOB, {}, PLAIN), ["trainer.image"]),
    "the image of a batch": (named("ContainerRefused", Kind.BATCHINFERENCE, {}, PLAIN)[:1], ["serving.server.image"]),
    "the images of a server": (
        named("ImagePullFailed", Kind.ADAPTERSERVER, {}, PLAIN),
        ["serving.server.image", "serving.engine.image"],
    ),
    "the manifest's own engine": (
        named("ImagePullFailed", Kind.ADAPTERSERVER, {"engine": {"image": "mine"}}, PLAIN),
        ["serving.server.image"],
    ),
    "a failure of the manifest": (named("DatasetInvalid", Kind.LORAJOB, {}, PLACED), []),
}


@pytest.mark.parametrize(("found", "values"), CASES.values(), ids=CASES.keys())
def test_which_values_a_failure_may_come_from(found: list[str], values: list[str]) -> None:
    assert found == values


@pytest.mark.parametrize("role", ["preflight", "train"])
@pytest.mark.parametrize("warning", [None, REFUSED], ids=["unplaced", "refused"])
def test_a_blocked_pod_names_the_values_of_its_role(role: str, warning: ClusterWarning | None) -> None:
    waits = (pod(conditions=[UNPLACED]),) if warning is None else ()
    attempt = Attempt(job(labels={"tunery.dev/role": role}), waits, (warning,) if warning is not None else ())
    values = PlatformValues(work=("trainer.nodeSelector",), checks=("preflight.nodeSelector",))
    stage = {"main": None, "preflight_needed": True, "preflight": attempt} if role == "preflight" else {"main": attempt}
    failure = status_for(platform=values, **stage)["failure"]
    expected = "preflight.nodeSelector" if role == "preflight" else "trainer.nodeSelector"
    assert failure["facts"]["chartValues"] == expected
    label = "If the platform is the cause, ask a cluster admin to check these values of Tunery's chart"
    assert f"{label}: {expected}." in failure["hint"]


def test_an_attempt_that_ended_for_the_image_names_it_too() -> None:
    end = ended(code=128, why="StartError", says='exec: "python": executable file not found in $PATH')
    values = platform_values(Kind.BATCHINFERENCE, {}, PLAIN, 0)
    failure = status_for(end, train=job(failed_reason="BackoffLimitExceeded"), platform=values)["failure"]
    assert failure["reason"] == "ContainerRefused"
    assert "serving.server.image" in failure["facts"]["chartValues"]


def test_a_replica_names_them_too() -> None:
    waits = server_pod("a", ready=False, phase="Pending", containers=(), unschedulable=NO_NODE)
    values = platform_values(Kind.ADAPTERSERVER, {}, PLACED, 1)
    failure = compute(server(waits, rollout=deployment(1, updated=0), platform=values)).status["failure"]
    assert failure["facts"]["chartValues"] == "serving.server.resources, " + ", ".join(PLACING)
