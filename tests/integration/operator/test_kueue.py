"""Suspension where a queue has its say, too: the tests play Kueue's webhook and controller; the real one is in e2e."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kit.operator.api import Api, Json, eventually
from kit.operator.objects import Namespace, lorajob
from kit.operator.process import OperatorProcess
from kit.operator.stage import make_namespace

QUEUE = "kueue.x-k8s.io/queue-name"
BY_US = "tunery.dev/suspended-by"
Make = Callable[..., OperatorProcess]


def queued(name: str, **spec: object) -> Json:
    """Return a LoRAJob that names a queue."""
    body = lorajob(name, preflight="Skip", **spec)
    body["metadata"]["labels"] = {QUEUE: "team-a"}
    return body


def hold(namespace: Namespace, job: str, queue: str | None = None) -> None:
    """Suspend a Job, and name its queue, as Kueue's webhook and controller do."""
    labels = {"metadata": {"labels": {QUEUE: queue}}} if queue is not None else {}
    namespace.api.patch(namespace.path("jobs", job), {**labels, "spec": {"suspend": True}})


def admit(namespace: Namespace, job: str) -> None:
    """Start a Job, as Kueue does."""
    namespace.api.patch(namespace.path("jobs", job), {"spec": {"suspend": False}})


def generation(namespace: Namespace, job: str) -> int:
    number: int = namespace.job(job)["metadata"]["generation"]
    return number


def touch(namespace: Namespace, name: str) -> None:
    """Let the operator look at an object again, as any edit does."""
    namespace.api.patch(namespace.path("lorajobs", name), {"metadata": {"labels": {"touched": str(time.time_ns())}}})


def test_a_default_queue_holds_what_names_none(namespace: Namespace) -> None:
    namespace.apply(lorajob("d", preflight="Skip"))
    namespace.job("d-train")
    hold(namespace, "d-train", queue="default")
    status = namespace.wait_phase("d", "Queued")
    assert status["queue"] == "default"
    before = generation(namespace, "d-train")
    for _ in range(5):
        touch(namespace, "d")
        time.sleep(0.3)
    assert generation(namespace, "d-train") == before
    admit(namespace, "d-train")
    namespace.finish("d")
    namespace.wait_phase("d", "Succeeded")
    assert namespace.condition("d", "QuotaReserved")["status"] == "True"


def test_a_default_queue_holds_the_preflight_too(namespace: Namespace) -> None:
    namespace.apply(lorajob("p"))
    namespace.job("p-preflight")
    hold(namespace, "p-preflight", queue="default")
    namespace.wait_reason("p", "PreflightQueued")
    before = generation(namespace, "p-preflight")
    touch(namespace, "p")
    time.sleep(1)
    assert generation(namespace, "p-preflight") == before
    admit(namespace, "p-preflight")
    namespace.pass_preflight("p")
    namespace.job("p-train")


def test_suspended_while_queued_frees_the_place_and_comes_back(namespace: Namespace) -> None:
    namespace.apply(queued("q"))
    first = namespace.job("q-train")["metadata"]["uid"]
    hold(namespace, "q-train")
    namespace.wait_phase("q", "Queued")
    namespace.patch_spec("q", suspend=True)
    namespace.wait_phase("q", "Suspended")
    assert namespace.get("jobs", "q-train") is None
    namespace.patch_spec("q", suspend=False)
    second = namespace.job("q-train")
    assert second["metadata"]["uid"] != first
    assert second["metadata"]["labels"][QUEUE] == "team-a"
    namespace.finish("q")
    namespace.wait_phase("q", "Succeeded")


def test_suspended_while_running_waits_for_the_pod_before_a_new_job(namespace: Namespace) -> None:
    namespace.apply(queued("r"))
    namespace.job("r-train")
    pod = namespace.run_pod("r-train", node="n1")
    namespace.wait_running("r")
    namespace.patch_spec("r", suspend=True)
    eventually("the Job is gone", lambda: namespace.get("jobs", "r-train") is None)
    namespace.wait_phase("r", "Suspending")
    namespace.patch_spec("r", suspend=False)
    eventually("it is resumed", lambda: namespace.condition("r", "Suspended").get("reason") == "Resumed")
    time.sleep(2)
    assert namespace.get("jobs", "r-train") is None
    assert namespace.condition("r", "Running")["reason"] == "Stopping"
    namespace.stop_pod(pod)
    namespace.job("r-train")
    namespace.finish("r")
    assert namespace.wait_phase("r", "Succeeded")["attempts"] == 2


def test_our_own_suspension_is_marked_and_undone(namespace: Namespace) -> None:
    namespace.apply(lorajob("o", preflight="Skip"))
    first = namespace.run_pod("o-train")
    namespace.wait_running("o")
    before = generation(namespace, "o-train")
    namespace.patch_spec("o", suspend=True)
    eventually("the mark", lambda: namespace.job("o-train")["metadata"]["annotations"].get(BY_US) == "spec")
    eventually("no pod", lambda: not [pod for pod in namespace.pods("o-train") if pod["metadata"]["name"] == first])
    namespace.wait_phase("o", "Suspended")
    namespace.patch_spec("o", suspend=False)
    eventually("no mark", lambda: BY_US not in namespace.job("o-train")["metadata"]["annotations"])
    assert namespace.job("o-train")["spec"]["suspend"] is False
    assert generation(namespace, "o-train") - before <= 2
    namespace.finish("o")
    assert namespace.wait_phase("o", "Succeeded")["attempts"] == 2
    assert namespace.condition("o", "Suspended") == {}


@pytest.mark.slow
def test_a_suspension_that_is_not_ours_is_left_alone(namespace: Namespace) -> None:
    namespace.apply(lorajob("s", preflight="Skip"))
    namespace.job("s-train")
    hold(namespace, "s-train")
    touch(namespace, "s")
    time.sleep(1)
    namespace.patch_spec("s", suspend=True)
    time.sleep(0.5)
    namespace.patch_spec("s", suspend=False)
    time.sleep(1)
    assert namespace.job("s-train")["spec"]["suspend"] is True


@pytest.mark.slow
def test_a_quarrel_is_given_up_and_told(namespace: Namespace) -> None:
    namespace.apply(lorajob("f", preflight="Skip"))
    namespace.run_pod("f-train")
    namespace.wait_running("f")
    namespace.patch_spec("f", suspend=True)
    before = generation(namespace, "f-train")

    def undo() -> bool:
        if namespace.job("f-train")["spec"]["suspend"] is True:
            admit(namespace, "f-train")
        return namespace.status("f").get("failure", {}).get("reason") == "FieldContested"

    eventually("the conflict is reported", undo)
    for _ in range(5):
        touch(namespace, "f")
        time.sleep(0.2)
    assert namespace.job("f-train")["spec"]["suspend"] is False
    # Four changes of ours, each undone once.
    assert generation(namespace, "f-train") - before <= 9
    assert namespace.status("f")["phase"] != "Failed"


@pytest.mark.slow
def test_preflights_are_bounded_and_waiting_is_told(api: Api, own_operator: Make) -> None:
    # The preflights that other tests have left count, too.
    jobs = api.items("/apis/batch/v1/jobs?labelSelector=tunery.dev/role%3Dpreflight,!tunery.dev/done")
    unfinished = [job for job in jobs if not job["status"].get("conditions")]
    own_operator(preflight={"maxConcurrent": len(unfinished) + 1}).start()
    namespace = make_namespace(api)
    for name in ("a", "b"):
        namespace.apply(lorajob(name))
    eventually(
        "one waits", lambda: {first_reason(namespace, name) for name in ("a", "b")} > {"WaitingForPreflightSlot"}
    )
    jobs = [job["metadata"]["name"] for job in api.items(namespace.path("jobs"))]
    assert len(jobs) == 1
    first = jobs[0].removesuffix("-preflight")
    namespace.pass_preflight(first)
    namespace.pass_preflight("b" if first == "a" else "a")


def first_reason(namespace: Namespace, name: str) -> str:
    reason: str = namespace.condition(name, "Preflight").get("reason", "")
    return reason
