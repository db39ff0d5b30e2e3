"""`tunery logs` through a real API server, from a node that only serves logs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tunery.cli import run
from tunery.errors import ExitCode

from kit.log_kubelet import LogKubelet, log_kubelet
from kit.operator.api import Api, Json, eventually
from kit.operator.objects import Namespace, lorajob
from tools.cluster.controlplane import ControlPlane

Make = Callable[..., Json]


@pytest.fixture
def kubelet(api: Api, control_plane: ControlPlane, team: Namespace) -> Iterator[LogKubelet]:
    """The kubelet of a node of this test."""
    pair = control_plane.authority.issue(f"kubelet-{team.name}", "kubelet", hosts=["127.0.0.1"])
    with log_kubelet(api, f"node-{team.name}", pair) as kubelet:
        yield kubelet


@pytest.fixture
def job(team: Namespace) -> Json:
    """A job whose pods and status the test makes."""
    return team.apply(lorajob("a"))


@pytest.fixture
def make_pod(team: Namespace, job: Json, kubelet: LogKubelet) -> Make:
    """Makes a pod of the job on that node: `make_pod("a-1", "train", state="running")`."""
    eventually("the namespace's ServiceAccount", lambda: team.get("serviceaccounts", "default"))

    def make(name: str, role: str, state: str = "terminated", index: int | None = None) -> Json:
        labels = {"tunery.dev/owner-uid": job["metadata"]["uid"], "tunery.dev/role": role}
        if index is not None:
            labels["batch.kubernetes.io/job-completion-index"] = str(index)
        spec = {"nodeName": kubelet.node, "containers": [{"name": "trainer", "image": "none"}]}
        pod = team.api.call("POST", team.path("pods"), {"metadata": {"name": name, "labels": labels}, "spec": spec})
        set_state(team, name, state)
        return pod

    return make


def set_state(team: Namespace, pod: str, state: str) -> None:
    """Set the state of the container of a pod."""
    details = {"terminated": {"exitCode": 0}, "running": {}, "waiting": {"reason": "ContainerCreating"}}[state]
    container = {"name": "trainer", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
    status = {"phase": {"terminated": "Succeeded", "running": "Running", "waiting": "Pending"}[state],
              "containerStatuses": [{**container, "state": {state: details}}]}  # fmt: skip
    team.api.patch(f"{team.path('pods', pod)}/status", {"status": status})


def test_the_latest_main_pod(tunery: Callable[..., Any], make_pod: Make, kubelet: LogKubelet) -> None:
    make_pod("a-check", "preflight")
    kubelet.write("a-check", "data is fine")
    assert tunery("logs", "a").out == "data is fine\n"
    for name in ("a-train-1", "a-train-2"):
        make_pod(name, "train")
        kubelet.write(name, f"first of {name}", "[bold]step\x1b[31m 2\x1b[0m")
        time.sleep(1)
    make_pod("a-fetch", "fetch", state="running")  # it serves results
    assert tunery("logs", "a").out == "first of a-train-2\n[bold]step 2\n"
    assert tunery("logs", "a", "--tail", "1").out == "[bold]step 2\n"
    assert tunery("logs", "a", "--preflight").out == "data is fine\n"
    documents = [json.loads(line) for line in tunery("-o", "json", "logs", "a").out.splitlines()]
    assert documents[0] == {"pod": "a-train-2", "line": "first of a-train-2"}


def test_an_attempt_of_the_history(
    tunery: Callable[..., Any], make_pod: Make, kubelet: LogKubelet, put_status: Callable[..., None]
) -> None:
    pods = [make_pod(name, "train") for name in ("a-1", "a-2")]
    kubelet.write("a-1", "one")
    kubelet.write("a-2", "two")
    times = {"startTime": "2026-12-01T12:00:00Z", "endTime": "2026-12-01T12:01:00Z"}
    history = [{"uid": "gone", "pod": "a-0", "node": "n", "reason": "NodeLost", "seconds": 60, **times}]
    history += [{"uid": pod["metadata"]["uid"], "pod": pod["metadata"]["name"], **times} for pod in pods]
    put_status("a", attempts=3, attemptHistory=history, phase="Training")
    assert tunery("logs", "a", "--attempt", "2").out == "one\n"
    gone = tunery("logs", "a", "--attempt", "1")
    assert gone.code == ExitCode.FAILED
    assert gone.out == "lorajob/a: the log is gone; pod a-0 on node n ended after 60 s: NodeLost\n"
    assert tunery("logs", "a", "--attempt", "4").code == ExitCode.USAGE


def test_the_index_of_several_nodes(tunery: Callable[..., Any], make_pod: Make, kubelet: LogKubelet) -> None:
    for index in (0, 1):
        make_pod(f"a-{index}", "train", index=index)
        kubelet.write(f"a-{index}", f"node {index}")
    assert tunery("logs", "a").out == "node 0\n"
    assert tunery("logs", "a", "--index", "1").out == "node 1\n"


def test_a_failed_job_without_pods_has_its_failure(
    tunery: Callable[..., Any], job: Json, put_status: Callable[..., None]
) -> None:
    failure = {"reason": "DatasetInvalid", "message": "line 3", "hint": "Fix.", "facts": {"dataReport": "s3://r/x"}}
    entry = {"uid": "u", "pod": "a-0", "startTime": "2026-12-01T12:00:00Z", "endTime": "2026-12-01T12:00:09Z"}
    put_status("a", phase="Failed", failure=failure, attempts=1, attemptHistory=[entry])
    done = tunery("logs", "a")
    assert done.code == ExitCode.FAILED
    assert done.out.splitlines() == [
        "lorajob/a: its pods are gone, and their logs with them. From its status:",
        "  pod a-0 ended: for an unknown reason",
        "lorajob/a failed: DatasetInvalid: line 3",
        "  Fix.",
        "  dataReport: s3://r/x",
    ]


def test_a_pod_that_has_not_started(tunery: Callable[..., Any], make_pod: Make) -> None:
    make_pod("a-1", "train", "waiting")
    done = tunery("logs", "a")
    assert done.code == ExitCode.FAILED
    assert "has not started" in done.err
    assert "explain lorajob/a" in done.err


def test_a_container_that_is_restarted_shows_its_last_run(
    team: Namespace, tunery: Callable[..., Any], make_pod: Make, kubelet: LogKubelet
) -> None:
    make_pod("a-1", "train", "waiting")
    kubelet.write("a-1", "it broke")
    ended = {"terminated": {"exitCode": 1}}
    status = {"name": "trainer", "image": "none", "imageID": "", "ready": False, "restartCount": 1, "lastState": ended,
              "state": {"waiting": {"reason": "CrashLoopBackOff"}}}  # fmt: skip
    team.api.patch(f"{team.path('pods', 'a-1')}/status", {"status": {"containerStatuses": [status]}})
    assert tunery("logs", "a").out == "it broke\n"


def test_following_goes_on_over_a_broken_connection_and_to_the_next_pod(
    team: Namespace, control_plane: ControlPlane, make_pod: Make, kubelet: LogKubelet,
    put_status: Callable[..., None], capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    put_status("a", phase="Training", attempts=1)
    codes: list[int] = []
    arguments = ["--kubeconfig", str(control_plane.kubeconfig), "-n", team.name, "logs", "-f", "a"]
    thread = threading.Thread(target=lambda: codes.append(run(arguments)), daemon=True)
    thread.start()
    out: list[str] = []

    def shown(text: str) -> bool:
        out.append(capfd.readouterr().out)
        return text in "".join(out)

    kubelet.open("a-1")
    make_pod("a-1", "train", "waiting")
    kubelet.write("a-1", "step 1")
    set_state(team, "a-1", "running")
    eventually("step 1", lambda: shown("step 1\n"), 20)
    kubelet.break_connections()
    kubelet.write("a-1", "step 2", "step 3")
    eventually("step 3", lambda: shown("step 3\n"), 20)
    set_state(team, "a-1", "terminated")
    kubelet.close("a-1")
    make_pod("a-2", "train")
    kubelet.write("a-2", "step 4")
    eventually("step 4", lambda: shown("step 4\n"), 20)
    put_status("a", phase="Succeeded")
    thread.join(20)
    assert codes == [ExitCode.SUCCEEDED]
    assert "".join(out).splitlines() == ["step 1", "step 2", "step 3", "step 4"]
    assert any("sinceTime" in query for query in kubelet.queries)
