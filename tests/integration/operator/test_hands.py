"""What people do by hand to a job, its Jobs and its pods: the status says what is there, and never more."""

from __future__ import annotations

import time

import pytest

from kit.operator.api import eventually
from kit.operator.objects import RESULT, Namespace, lorajob
from kit.operator.stage import make_namespace


@pytest.mark.slow
def test_a_job_that_is_applied_again_has_no_part_in_its_predecessors_pods(namespace: Namespace) -> None:
    namespace.apply(lorajob("re", preflight="Skip", activeDeadlineSeconds=60))
    old = namespace.run_pod("re-train", node="one")
    namespace.wait_running("re")
    namespace.delete("lorajobs", "re")
    eventually("the old pod ends", lambda: "deletionTimestamp" in (namespace.get("pods", old) or {})["metadata"])
    created = namespace.apply(lorajob("re", preflight="Skip", activeDeadlineSeconds=60))
    status = namespace.wait_reason("re", "WaitingForPredecessor")
    assert "attemptHistory" not in status
    assert "startTime" not in status
    assert not status.get("attempts")
    assert namespace.condition("re", "Running").get("status") != "True"
    assert old in str(status["conditions"])
    namespace.stop_pod(old, seconds=1)
    namespace.finish("re")
    status = namespace.wait_phase("re", "Succeeded")
    assert status["attempts"] == 1
    assert status["startTime"] >= created["metadata"]["creationTimestamp"]


@pytest.mark.slow
def test_a_pod_of_preflight_is_no_attempt_at_training(namespace: Namespace) -> None:
    namespace.apply(lorajob("pf"))
    pod = namespace.run_pod("pf-preflight", node="one")
    eventually("it is seen", lambda: namespace.condition("pf", "Preflight").get("reason") == "PreflightRunning")
    namespace.delete("jobs", "pf-preflight")
    eventually("the pod ends", lambda: "deletionTimestamp" in (namespace.get("pods", pod) or {})["metadata"])
    namespace.wait_reason("pf", "WaitingForPredecessor")
    namespace.stop_pod(pod, seconds=1)
    namespace.pass_preflight("pf")
    namespace.finish("pf")
    status = namespace.wait_phase("pf", "Succeeded")
    assert status["attempts"] == 1


def test_an_end_that_somebody_else_wrote_stops_the_job(namespace: Namespace) -> None:
    namespace.apply(lorajob("forged", preflight="Skip"))
    namespace.run_pod("forged-train")
    namespace.wait_running("forged")
    path = namespace.path("lorajobs", "forged") + "/status"
    namespace.api.patch(path, {"status": {"phase": "Succeeded"}})
    eventually("the Job is gone", lambda: namespace.get("jobs", "forged-train") is None)


def test_a_job_without_its_labels_is_suspended_all_the_same(namespace: Namespace) -> None:
    namespace.apply(lorajob("bare", preflight="Skip"))
    pod = namespace.run_pod("bare-train", node="one")
    namespace.wait_running("bare")
    labels = dict.fromkeys(namespace.job("bare-train")["metadata"]["labels"])
    namespace.api.patch(namespace.path("jobs", "bare-train"), {"metadata": {"labels": labels}})
    assert namespace.wait_running("bare")["attempts"] == 1
    namespace.patch_spec("bare", suspend=True)
    eventually("the Job is suspended", lambda: namespace.job("bare-train")["spec"]["suspend"])
    namespace.stop_pod(pod, seconds=1)
    status = namespace.wait_phase("bare", "Suspended")
    assert status["attempts"] == 1
    assert status["attemptHistory"][0]["reason"] == "Suspended"


def test_a_job_that_was_taken_from_its_owner_is_told(namespace: Namespace) -> None:
    namespace.apply(lorajob("orphan", preflight="Skip"))
    namespace.run_pod("orphan-train", node="one")
    namespace.wait_running("orphan")
    namespace.api.patch(namespace.path("jobs", "orphan-train"), {"metadata": {"ownerReferences": None}})
    failure = namespace.wait_failure("orphan", "NameConflict")["failure"]
    assert "orphan-train" in failure["message"]


def test_an_orphaned_job_of_an_earlier_object_takes_the_name(namespace: Namespace) -> None:
    namespace.apply(lorajob("again", preflight="Skip"))
    pod = namespace.run_pod("again-train", node="one")
    namespace.wait_running("again")
    namespace.orphan("lorajobs", "again")
    eventually("the first one is gone", lambda: namespace.get("lorajobs", "again") is None)
    namespace.apply(lorajob("again", preflight="Skip"))
    failure = namespace.wait_failure("again", "NameConflict")["failure"]
    assert "Job again-train" in failure["message"]
    assert failure["hint"].startswith("Delete or rename the object with the named name")
    namespace.delete("jobs", "again-train")
    namespace.end_pod(pod, 143)
    namespace.annotate("again", retry="1")
    assert namespace.run_pod("again-train") != pod


def test_a_pod_that_outlives_its_job_is_followed_to_its_end(namespace: Namespace) -> None:
    namespace.apply(lorajob("left", preflight="Skip"))
    began, pod = time.monotonic(), namespace.run_pod("left-train")
    namespace.wait_running("left")
    namespace.orphan("jobs", "left-train")

    def told() -> bool:
        running = namespace.condition("left", "Running")
        return running["status"] == "True" and f"kubectl delete pod {pod}" in running["message"]

    eventually("it is told that the pod runs on", told)
    namespace.patch_spec("left", suspend=True)
    assert f"kubectl delete pod {pod}" in str(namespace.wait_phase("left", "Suspending")["conditions"])
    namespace.end_pod(pod, 143)
    ran = time.monotonic() - began
    attempt = namespace.wait_phase("left", "Suspended")["attemptHistory"][0]
    assert abs(attempt["seconds"] - ran) <= 2
    namespace.patch_spec("left", suspend=False)
    namespace.finish("left")
    assert namespace.wait_phase("left", "Succeeded", timeout=40)["attempts"] == 2


@pytest.mark.slow
def test_a_job_that_may_have_no_pods_is_told(namespace: Namespace) -> None:
    namespace.apply(lorajob("none", preflight="Skip", retries=3))
    pod = namespace.run_pod("none-train", node="one")
    namespace.wait_running("none")
    namespace.api.patch(namespace.path("jobs", "none-train"), {"spec": {"parallelism": 0}})
    eventually("the pod ends", lambda: "deletionTimestamp" in (namespace.get("pods", pod) or {})["metadata"])
    namespace.stop_pod(pod, seconds=1)
    failure = namespace.wait_failure("none", "PodRefused")["failure"]
    assert "parallelism 0" in failure["message"]
    assert f"kubectl patch job none-train -n {namespace.name} " in failure["hint"]
    namespace.api.patch(namespace.path("jobs", "none-train"), {"spec": {"parallelism": 1}})
    namespace.finish("none")
    assert "failure" not in namespace.wait_phase("none", "Succeeded")


@pytest.mark.slow
def test_a_scheduler_that_does_not_exist_is_told_and_may_be_corrected(namespace: Namespace) -> None:
    namespace.apply(lorajob("sch", preflight="Skip", scheduling={"schedulerName": "nosuch"}))
    failure = namespace.wait_failure("sch", "Unschedulable")["failure"]
    assert "scheduler nosuch ignores pod sch-train-" in failure["message"]
    assert failure["remedies"][0]["fields"] == ["scheduling.schedulerName"]
    namespace.patch_spec("sch", scheduling=None)
    eventually("a Job of the default scheduler", lambda: "nosuch" not in str(namespace.job("sch-train")["spec"]))
    namespace.finish("sch")
    assert "failure" not in namespace.wait_phase("sch", "Succeeded")


@pytest.mark.slow
def test_a_placement_that_the_server_refuses_is_corrected_in_place(namespace: Namespace) -> None:
    term = {"matchExpressions": [{"key": "pool", "operator": "In"}]}
    required = {"nodeSelectorTerms": [term]}
    wrong = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}
    namespace.apply(lorajob("tol", preflight="Skip", scheduling=wrong))
    failure = namespace.wait_phase("tol", "Failed")["failure"]
    assert failure["message"].startswith("spec.scheduling: ")
    assert failure["remedies"] == [{"action": "Edit", "text": "Correct scheduling", "fields": ["scheduling"]}]
    assert failure["hint"].startswith("Correct scheduling. To retry: kubectl annotate lorajob tol")
    namespace.patch_spec("tol", scheduling=None)
    namespace.annotate("tol", retry="1")
    namespace.finish("tol")
    assert "failure" not in namespace.wait_phase("tol", "Succeeded")


def test_a_circle_of_jobs_ends_with_the_last_of_them(namespace: Namespace) -> None:
    for name, field, source in (("a", "resumeFrom", "b"), ("b", "continueFrom", "c")):
        namespace.apply(lorajob(name, preflight="Skip", **{field: {"loraJobRef": {"name": source}}}))
        namespace.wait_phase(name, "Waiting")
    namespace.apply(lorajob("c", preflight="Skip", continueFrom={"loraJobRef": {"name": "a"}}))
    failure = namespace.wait_phase("c", "Failed")["failure"]
    assert failure["reason"] == "InvalidSpec"
    text = "spec.continueFrom.loraJobRef.name: this job would wait for itself: c → a → b → c"
    assert failure["message"].startswith(text)
    failure = namespace.wait_phase("b", "Failed")["failure"]
    assert failure["reason"] == "AdapterMissing"
    assert "LoRAJob c, which this waits for, failed: InvalidSpec" in failure["message"]


def test_a_job_that_was_deleted_and_is_kept_by_somebody_is_stopped(namespace: Namespace) -> None:
    """Of an object that a foreign finalizer keeps nobody wants the pods: the GPU goes back, and the status says why."""
    body = lorajob("kept", preflight="Skip")
    body["metadata"]["finalizers"] = ["example.com/backup"]
    namespace.apply(body)
    pod = namespace.run_pod("kept-train", node="one")
    namespace.wait_running("kept")
    namespace.delete("lorajobs", "kept")
    eventually("the Job is suspended", lambda: namespace.job("kept-train")["spec"].get("suspend"))
    namespace.stop_pod(pod, seconds=1)
    status = namespace.wait_phase("kept", "Suspended")
    assert "example.com/backup" in namespace.condition("kept", "Suspended")["message"]
    assert status["attemptHistory"][0]["reason"] == "Suspended"
    namespace.api.patch(namespace.path("lorajobs", "kept"), {"metadata": {"finalizers": None}})
    eventually("it is gone", lambda: namespace.get("lorajobs", "kept") is None)
    eventually("its Job is gone", lambda: namespace.get("jobs", "kept-train") is None)


@pytest.mark.slow
def test_a_job_that_waits_for_a_kept_job_says_who_keeps_it(namespace: Namespace) -> None:
    namespace.apply(lorajob("held", preflight="Skip"))
    namespace.job("held-train")
    path = namespace.path("jobs", "held-train")
    namespace.api.patch(path, {"metadata": {"finalizers": ["example.com/audit"]}})
    namespace.delete("lorajobs", "held")
    eventually("the Job is being deleted", lambda: "deletionTimestamp" in namespace.job("held-train")["metadata"])
    namespace.apply(lorajob("held", preflight="Skip"))
    says = "waits for Job held-train of an earlier object of that name to go; the finalizer example.com/audit keeps it"
    eventually("it says who keeps it", lambda: _waits_for(namespace, says))
    namespace.api.patch(path, {"metadata": {"finalizers": None}})
    namespace.finish("held")
    namespace.wait_phase("held", "Succeeded")


def _waits_for(namespace: Namespace, words: str) -> str | None:
    """Return what a job waits for, where that is said with these words."""
    message: str = namespace.condition("held", "Running").get("message", "")
    return message if words in message else None


@pytest.mark.slow
@pytest.mark.parametrize("knows_job", [False, True], ids=["uid-of-the-lorajob", "uid-of-its-job"])
def test_a_pod_of_another_namespace_is_no_pod_of_a_job(namespace: Namespace, knows_job: bool) -> None:
    namespace.apply(lorajob("v", preflight="Skip", activeDeadlineSeconds=900))
    pod = namespace.run_pod("v-train", node="one")
    namespace.wait_running("v")
    body = namespace.api.call("GET", namespace.path("pods", pod))
    labels = dict(body["metadata"]["labels"])
    if not knows_job:
        labels |= dict.fromkeys(("controller-uid", "batch.kubernetes.io/controller-uid"), "1-1")
    other = make_namespace(namespace.api)
    spec = {"containers": [{"name": "trainer", "image": "i"}]}
    for name in ("forged-a", "forged-b"):
        forged = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        other.api.call("POST", f"/api/v1/namespaces/{other.name}/pods", forged)
        other.start_pod(name)
    other.remove_pod("forged-a")
    other.end_pod("forged-b", 64, {"failure": {"reason": "OutputExists", "message": "forged"}})
    namespace.annotate("v", note="reconcile")
    time.sleep(3)
    status = namespace.status("v")
    assert (status["phase"], status["podName"], status["attempts"]) == ("Starting", pod, 1)
    assert namespace.condition("v", "Running")["status"] == "True"
    namespace.end_pod(pod, message=RESULT)
    status = namespace.wait_phase("v", "Succeeded")
    assert [entry["pod"] for entry in status["attemptHistory"]] == [pod]
