"""What keeps a server's replicas from getting requests, as Deployment and pods tell it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_operator.controllers.warnings import Warnings, server_warnings
from tunery_operator.observed.deployment import ContainerView, ServerPodView, parse_deployment, parse_server_pod
from tunery_operator.observed.event import ClusterWarning

from kit.operator.servers import NOW, deployment, heard, reported, server_pod
from kit.operator.serverstatuskit import compute, condition, events_of, snapshot


def starting(**changes: Any) -> ServerPodView:
    return server_pod("a", ready=False, phase="Pending", containers=(), **changes)


def crashed(name: str, **changes: Any) -> ServerPodView:
    fields: dict[str, Any] = {
        "restarts": 1,
        "waiting_reason": "CrashLoopBackOff",
        "exit_code": 1,
        "exit_reason": "Error",
    }
    return server_pod("a", ready=False, containers=(ContainerView(name, **{**fields, **changes}),))


FAILURE = json.dumps({"failure": {"reason": "ModelNotFound", "message": "s3://models/tiny is empty"}})
OBSTACLES: list[tuple[ServerPodView, str, str]] = [
    (starting(unschedulable="0/3 nodes are available"), "Unschedulable", "no node fits pod a: 0/3 nodes are available"),
    (crashed("engine", waiting_reason="ImagePullBackOff", exit_code=None), "ImagePullFailed", "ImagePullBackOff"),
    (
        crashed("gateway", waiting_reason="CreateContainerError", exit_code=None),
        "ContainerRefused",
        "CreateContainerError",
    ),
    (crashed("engine", exit_reason="OOMKilled", exit_code=137), "OutOfMemory", "container engine of pod a was killed"),
    (
        crashed("engine", exit_message="x\nValueError: bad dtype\n"),
        "EngineFailed",
        "its log says: ValueError: bad dtype",
    ),
    (crashed("model", exit_message=FAILURE), "ModelNotFound", "s3://models/tiny is empty"),
    (crashed("engine", exit_code=137), "Killed", "container engine of pod a was killed (exit code 137)"),
    (crashed("gateway", exit_code=137), "Killed", "container gateway of pod a was killed (exit code 137)"),
    (crashed("model", exit_code=137, restarts=3), "Killed", "too much memory, 3 times so far"),
    (
        crashed("gateway", exit_reason="OOMKilled", exit_code=137),
        "OutOfMemory",
        "container gateway of pod a was killed",
    ),
    (crashed("gateway"), "InternalError", "container gateway of pod a ended with exit code 1"),
]


@pytest.mark.parametrize("name", ["model", "gateway", "engine"])
def test_where_a_container_has_said_nothing_its_log_is_named(name: str) -> None:
    hint = compute(snapshot(crashed(name), rollout=deployment(1, updated=0))).status["failure"]["hint"]
    assert f"kubectl logs a -c {name} -n team)" in hint


@pytest.mark.parametrize(
    ("pod", "reason", "words"), OBSTACLES, ids=[f"{pod.containers}-{r}" for pod, r, _ in OBSTACLES]
)
def test_a_replica_that_does_not_start_says_why(pod: ServerPodView, reason: str, words: str) -> None:
    outcome = compute(snapshot(pod, rollout=deployment(1, updated=0)))
    status = outcome.status
    assert status["failure"]["reason"] == reason
    assert words in status["failure"]["message"]
    assert status["failure"]["hint"]
    assert condition(status, "Progressing")["reason"] == reason
    assert (status["phase"], status["replicaStatuses"][0]["reason"]) == ("Starting", reason)
    assert (reason, True) in events_of(outcome)
    assert "job" not in status["failure"]["hint"].lower()


def ending(seconds: float = 60, **changes: Any) -> ServerPodView:
    """Return a pod that was told to end, and is killed after so many seconds."""
    return replace(
        server_pod("old", ready=False, **changes), deleting=True, deletion_deadline=NOW + timedelta(seconds=seconds)
    )


NO_ROOM = "0/1 nodes are available: 1 Insufficient cpu."


def test_a_replica_waits_for_a_pod_of_its_server_that_ends_and_then_for_a_node() -> None:
    found = snapshot(ending(), starting(unschedulable=NO_ROOM, node=None), replicas=1, rollout=deployment(1, updated=0))
    outcome = compute(found)
    status, words = outcome.status, "pod a waits for pod old, which is ending, to make room"
    assert "failure" not in status
    assert (status["phase"], status["replicas"]) == ("Starting", 1)
    progressing = condition(status, "Progressing")
    assert (progressing["status"], progressing["reason"], progressing["message"]) == (
        "True", "WaitingForPredecessor", words,
    )  # fmt: skip
    assert status["replicaStatuses"] == [
        {"pod": "a", "ready": False, "reason": "WaitingForPredecessor", "message": words}
    ]
    assert not any(warning for _, warning in events_of(outcome))
    # The kubelet has killed it by then: it makes no room any more by which to be excused.
    assert outcome.requeue_after is not None
    late = compute(found, status, seconds=outcome.requeue_after)
    assert outcome.requeue_after < 80
    assert late.status["failure"]["reason"] == "Unschedulable"


def test_beside_replicas_that_answer_a_wait_for_room_is_an_update() -> None:
    served = {"b": heard(reported("bot"))}
    pods = (server_pod("b"), ending(), starting(unschedulable=NO_ROOM))
    found = snapshot(*pods, replicas=2, reports=served, rollout=deployment(2, updated=1))
    status = compute(found).status
    assert (status["phase"], condition(status, "Progressing")["reason"]) == ("Updating", "WaitingForPredecessor")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (ending(node=None), NO_ROOM),
        (ending(phase="Succeeded"), NO_ROOM),
        (ending(-60), NO_ROOM),
        (server_pod("old"), NO_ROOM),
        (ending(), 'persistentvolumeclaim "models" not found'),
    ],
    ids=["never placed", "ended", "not ended in time", "not told to end", "a claim"],
)
def test_only_a_pod_that_ends_makes_room_and_only_room_is_made(other: ServerPodView, words: str) -> None:
    found = snapshot(other, starting(unschedulable=words), replicas=2, rollout=deployment(2, updated=1))
    status = compute(found).status
    assert status["failure"]["reason"] == "Unschedulable"
    assert words in status["failure"]["message"]


def warned(reason: str, message: str, seconds_ago: float = 5) -> tuple[ClusterWarning, ...]:
    at = (NOW - timedelta(seconds=seconds_ago)).isoformat()
    return (
        ClusterWarning("FailedMount", "an older one", "2026-01-02T11:59:00Z", "Pod"),
        ClusterWarning(reason, message, at, "Pod"),
    )


@pytest.mark.parametrize(
    ("warnings", "reason", "words"),
    [
        (warned("FailedMount", 'configmap "x" not found'), "MountFailed", 'FailedMount: configmap "x" not found'),
        (warned("FailedAttachVolume", "in use"), "MountFailed", "pod a on node n1: FailedAttachVolume: in use"),
        (warned("FailedCreatePodSandBox", "OOM-killed by runc"), "OutOfMemory", "cannot even start"),
    ],
)
def test_a_volume_that_cannot_be_mounted_is_told_though_only_events_say_it(
    warnings: tuple[ClusterWarning, ...], reason: str, words: str
) -> None:
    found = snapshot(starting(), rollout=deployment(1, updated=0))
    outcome = compute(replace(found, warnings={"uid-a": warnings}))
    assert outcome.status["failure"]["reason"] == reason
    assert words in outcome.status["failure"]["message"]
    assert outcome.status["replicaStatuses"][0]["reason"] == reason
    assert outcome.requeue_after == 15, "no watch tells of events"


def test_an_old_warning_is_no_failure() -> None:
    found = snapshot(starting(), rollout=deployment(1, updated=0))
    warnings = warned("FailedMount", 'configmap "x" not found', seconds_ago=181)[1:]
    assert "failure" not in compute(replace(found, warnings={"uid-a": warnings})).status


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(starting(node=None), id="no-node"),
        pytest.param(server_pod("a", ready=False), id="runs"),
        pytest.param(server_pod("a"), id="ready"),
    ],
)
def test_events_of_a_pod_that_runs_or_has_no_node_are_not_asked_for(pod: ServerPodView) -> None:
    api = KubeClientThatCounts()
    assert server_warnings(Warnings(lambda: 0.0), api, "ns", [pod], NOW) == {}  # type: ignore[arg-type]
    assert api.asked == 0


def test_the_events_of_a_pod_that_hangs_are_read_after_a_while() -> None:
    api = KubeClientThatCounts()
    young = starting(created=(NOW - timedelta(seconds=10)).isoformat())
    assert server_warnings(Warnings(lambda: 0.0), api, "ns", [young], NOW) == {}  # type: ignore[arg-type]
    found = server_warnings(Warnings(lambda: 0.0), api, "ns", [starting()], NOW)  # type: ignore[arg-type]
    assert [warning.message for warning in found["uid-a"]] == ["not found"]


class KubeClientThatCounts:
    """The API server, as far as it is asked for events."""

    asked = 0

    def request(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.asked += 1
        event = {"reason": "FailedMount", "message": "not found", "lastTimestamp": "2026-01-02T11:59:59Z"}
        return {"items": [{**event, "metadata": {}}]}


def test_of_an_engines_log_the_line_is_told_that_says_why() -> None:
    log = (
        "INFO start\nValueError: no such dtype\nRuntimeError: Engine core initialization failed. See root cause above."
    )
    status = compute(snapshot(crashed("engine", exit_message=log))).status
    assert status["failure"]["message"].endswith("its log says: ValueError: no such dtype")


ASKED = 'INFO:      - "POST /v1/completions HTTP/1.1" 200 OK'
FAILED_ONCE = 'INFO:      - "POST /v1/completions HTTP/1.1" 500 Internal Server Error'
LONG_LOG = "\n".join(['/completions" 200 OK', *[ASKED] * 40])
"""As the kubelet cuts it: its first line is the rest of one."""


@pytest.mark.parametrize(
    ("log", "code", "end"),
    [
        (f"{FAILED_ONCE}\n{ASKED}", 3, "exit code 3"),
        (LONG_LOG, 3, "exit code 3"),
        (
            f"ValueError: bad\n{ASKED}\n(APIServer pid=7) INFO 11-27 18:00:00 [x.py:1] Shutting down",
            1,
            "ValueError: bad",
        ),
        (
            "(APIServer pid=7) WARNING 11-27 18:00:00 [x.py:1] slow\nsh: 1: vllm: not found",
            127,
            "sh: 1: vllm: not found",
        ),
        (f"{ASKED}\nvllm serve: error: unrecognized arguments: --x", 2, "error: unrecognized arguments: --x"),
        (f"starting\n{ASKED}", 137, "too much memory"),
        (f"torch.OutOfMemoryError: CUDA\n{ASKED}", 137, "; its log says: torch.OutOfMemoryError: CUDA"),
    ],
)
def test_no_line_of_a_log_that_tells_of_work_is_told_as_why_an_engine_ended(log: str, code: int, end: str) -> None:
    message = compute(snapshot(crashed("engine", exit_message=log, exit_code=code))).status["failure"]["message"]
    assert message.endswith(end)
    assert "200 OK" not in message


@pytest.mark.parametrize("name", ["engine", "gateway"])
def test_an_end_that_a_container_has_come_back_from_hides_nothing_that_the_gateway_says_now(name: str) -> None:
    back = ContainerView(name, running=True, started=True, restarts=1, exit_code=137, exit_reason="Error")
    pod = server_pod("a", ready=False, containers=(back,))
    now = heard(reported("bot"), reason="SecretNotFound", message="the Secret keys is missing")
    status = compute(snapshot(pod, reports={"a": now})).status
    assert (status["phase"], status["failure"]["reason"]) == ("Starting", "SecretNotFound")
    assert status["failure"]["message"] == "pod a: the Secret keys is missing"
    assert status["replicaStatuses"][0]["reason"] == "SecretNotFound"
    assert "failure" not in compute(snapshot(pod, reports={"a": heard(reported("bot"))})).status
    # While it starts again nobody knows whether it comes back.
    coming = replace(pod, containers=(replace(back, started=False),))
    assert compute(snapshot(coming, reports={"a": now})).status["failure"]["reason"] == "Killed"


def test_what_brings_the_model_says_what_it_failed_of_while_it_tries_again() -> None:
    pod = crashed("model", running=True, started=True, waiting_reason=None, exit_message=FAILURE)
    assert compute(snapshot(pod)).status["failure"]["reason"] == "ModelNotFound"


def test_a_replica_that_was_evicted_says_why_until_its_successor_is_ready() -> None:
    over = 'Usage of EmptyDir volume "model" exceeds the limit "8Gi".'
    gone = server_pod("old", ready=False, phase="Failed", status_reason="Evicted", status_message=over, containers=())
    new = server_pod("new", ready=False, containers=())
    status = compute(snapshot(gone, new, replicas=1)).status
    assert (status["failure"]["reason"], status["replicas"]) == ("DiskFull", 1)
    assert over in status["failure"]["message"]
    pressed = replace(gone, disruption="TerminationByKubelet")
    assert compute(snapshot(pressed, new, replicas=1)).status["failure"]["reason"] == "NodePressure"
    ready = replace(new, ready=True)
    assert "failure" not in compute(snapshot(gone, ready, replicas=1, reports={"new": heard(reported("bot"))})).status


def test_a_rollout_without_a_gpu_to_spare_is_told_how_to_do_without() -> None:
    new = replace(starting(unschedulable="Insufficient nvidia.com/gpu"), name="new", uid="uid-new")
    found = snapshot(server_pod("old"), new, reports={"old": heard(reported("bot"))}, replicas=1)
    status = compute(replace(found, deployment=replace(deployment(1), replicas=2))).status
    assert "{maxSurge: 0, maxUnavailable: 1}" in status["failure"]["hint"]
    assert (status["phase"], status["adaptersText"]) == ("Degraded", "1/1")


def test_what_a_replica_says_of_itself_and_what_the_cluster_says_of_pods() -> None:
    gone = heard(reported("bot", "Loading"), reason="EngineFailed", message="the engine does not answer")
    status = compute(snapshot(server_pod("a", ready=False), reports={"a": gone})).status
    assert status["failure"]["message"] == "pod a: the engine does not answer"
    full = replace(deployment(1), replicas=0, failure='pods "x" is forbidden: exceeded quota: gpus')
    assert compute(snapshot(rollout=full)).status["failure"]["reason"] == "QuotaExceeded"
    rejected = compute(
        snapshot(deployment=None, rejection=Failure(reason=FailureReason.CREATE_REFUSED, message="policy says no"))
    )
    assert (rejected.status["phase"], rejected.status["failure"]["reason"]) == ("Pending", "CreateRefused")
    assert rejected.requeue_after is not None
    taken = compute(snapshot(deployment=None, conflict="Service support-server belongs to another"))
    assert taken.status["failure"]["reason"] == "NameConflict"


def test_a_replica_that_starts_beside_others_is_progress_and_not_a_problem() -> None:
    new = server_pod("new", ready=False, containers=(ContainerView("engine", running=True),))
    found = snapshot(server_pod("a"), new, reports={"a": heard(reported("bot"))})
    status = compute(found).status
    assert (status["phase"], condition(status, "Progressing")["reason"]) == ("Updating", "RollingOut")
    assert (status["readyText"], status["adaptersText"]) == ("1/2", "1/1")
    ending = compute(replace(found, pods=(*found.pods, server_pod("old", deleting=True)))).status
    assert ending["replicas"] == 2


# Views


def test_a_deployment_and_its_rollout_are_read() -> None:
    body: dict[str, Any] = {
        "metadata": {
            "name": "s-server",
            "namespace": "ns",
            "uid": "d",
            "generation": 3,
            "annotations": {"tunery.dev/plan": "p"},
        },
        "spec": {"replicas": 2},
        "status": {
            "observedGeneration": 2,
            "replicas": 2,
            "updatedReplicas": 2,
            "readyReplicas": 2,
            "conditions": [
                {
                    "type": "Progressing",
                    "status": "False",
                    "reason": "ProgressDeadlineExceeded",
                    "message": "timed out",
                },
                {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"},
            ],
        },
    }
    view = parse_deployment(body)
    assert (view.plan, view.settled, view.stalled, view.failure) == ("p", False, "timed out", "exceeded quota")
    body["status"]["observedGeneration"] = 3
    assert parse_deployment(body).settled


def test_a_pod_of_a_server_is_read_with_its_sidecar() -> None:
    ended = {"exitCode": 137, "reason": "OOMKilled", "message": "m"}
    body: dict[str, Any] = {
        "metadata": {
            "name": "p",
            "namespace": "team",
            "uid": "u",
            "deletionTimestamp": "2026-01-02T12:01:00Z",
            "labels": {"tunery.dev/owner-uid": "o"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "rs", "uid": "r", "controller": True}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "initContainerStatuses": [
                {"name": "gateway", "state": {"running": {}}, "started": True, "restartCount": 0}
            ],
            "containerStatuses": [
                {
                    "name": "engine",
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {"terminated": ended},
                    "restartCount": 2,
                }
            ],
        },
    }
    view = parse_server_pod(body)
    assert (view.replica_set, view.owner_uid, view.ready, view.unschedulable) == ("rs", "o", True, None)
    assert (view.deleting, view.deletion_deadline) == (True, NOW + timedelta(minutes=1))
    engine = view.container("engine")
    assert (engine.waiting_reason, engine.exit_code, engine.restarts) == ("CrashLoopBackOff", 137, 2)
    assert (view.container("gateway").running, view.container("model").running) == (True, False)
    assert (view.container("gateway").started, engine.started) == (True, False)
