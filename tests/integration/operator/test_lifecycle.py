"""Suspension, deletion, expiry, names that are taken, and operators that are killed."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from kit.fork_server import operator_server
from kit.operator.api import Api, Json, eventually
from kit.operator.objects import RESULT, Namespace, lorajob
from kit.operator.process import OperatorProcess
from kit.operator.stage import make_namespace


def test_suspended_from_the_start_has_no_pod(namespace: Namespace) -> None:
    namespace.apply(lorajob("s", suspend=True))
    namespace.wait_phase("s", "Suspended")
    assert namespace.api.items(namespace.path("jobs")) == []
    namespace.patch_spec("s", suspend=False)
    namespace.pass_preflight("s")
    namespace.finish("s")
    namespace.wait_phase("s", "Succeeded")


def test_suspended_while_training_stops_the_pod_and_goes_on_later(namespace: Namespace) -> None:
    namespace.apply(lorajob("d", preflight="Skip"))
    first = namespace.run_pod("d-train")
    namespace.wait_running("d")
    namespace.patch_spec("d", suspend=True)
    namespace.wait_phase("d", "Suspended")
    eventually("the pod is gone", lambda: not [p for p in namespace.pods("d-train") if p["metadata"]["name"] == first])
    assert namespace.job("d-train")["spec"]["suspend"] is True
    namespace.patch_spec("d", suspend=False)
    namespace.finish("d")
    status = namespace.wait_phase("d", "Succeeded")
    assert status["attempts"] == 2
    assert namespace.condition("d", "Suspended") == {}


def test_the_deadline_may_change_while_it_runs(namespace: Namespace) -> None:
    namespace.apply(lorajob("t", preflight="Skip", activeDeadlineSeconds=7200))
    namespace.run_pod("t-train")
    namespace.wait_running("t")
    namespace.patch_spec("t", activeDeadlineSeconds=1)
    assert namespace.wait_phase("t", "Failed")["failure"]["reason"] == "DeadlineExceeded"
    assert namespace.get("jobs", "t-train") is None


def test_a_job_that_runs_too_long_says_so(namespace: Namespace) -> None:
    namespace.apply(lorajob("late", preflight="Skip", activeDeadlineSeconds=2))
    namespace.run_pod("late-train")
    assert namespace.wait_phase("late", "Failed")["failure"]["reason"] == "DeadlineExceeded"


@pytest.mark.slow
def test_ttl_deletes_the_object_itself(namespace: Namespace) -> None:
    namespace.apply(lorajob("ttl", preflight="Skip", ttlSecondsAfterFinished=3))
    namespace.finish("ttl")
    namespace.wait_phase("ttl", "Succeeded")
    eventually("the LoRAJob is gone", lambda: namespace.get("lorajobs", "ttl") is None)
    # A fresh garbage collector looks for new kinds every 30 seconds only.
    eventually("its Job is gone", lambda: namespace.get("jobs", "ttl-train") is None)


def test_a_ttl_that_is_set_after_the_end_counts(namespace: Namespace) -> None:
    namespace.apply(lorajob("late-ttl", preflight="Skip"))
    namespace.finish("late-ttl")
    namespace.wait_phase("late-ttl", "Succeeded")
    namespace.patch_spec("late-ttl", ttlSecondsAfterFinished=0)
    eventually("the LoRAJob is gone", lambda: namespace.get("lorajobs", "late-ttl") is None)


@pytest.mark.slow
def test_deleting_the_object_removes_its_children(namespace: Namespace) -> None:
    namespace.apply(lorajob("del", preflight="Skip"))
    namespace.run_pod("del-train")
    namespace.api.delete(namespace.path("lorajobs", "del"))
    eventually("the Job is gone", lambda: namespace.get("jobs", "del-train") is None)
    eventually("the pods are gone", lambda: not namespace.api.items(namespace.path("pods")))


def strange_job(name: str) -> Json:
    """Return a Job that somebody else made."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    return {"metadata": {"name": name}, "spec": {"template": {"spec": pod}}}


def test_a_strangers_job_is_a_conflict_and_stays_untouched(namespace: Namespace) -> None:
    created = namespace.api.call("POST", namespace.path("jobs"), strange_job("nc-train"))
    namespace.apply(lorajob("nc", preflight="Skip"))
    failure = namespace.wait_phase("nc", "Failed")["failure"]
    assert failure["reason"] == "NameConflict"
    assert "Job nc-train" in failure["message"]
    after = namespace.job("nc-train")
    assert after["metadata"]["uid"] == created["metadata"]["uid"]
    assert after["spec"] == created["spec"]


@pytest.mark.slow
def test_a_predecessors_job_is_waited_for(namespace: Namespace) -> None:
    namespace.apply(lorajob("pre", preflight="Skip"))
    first = namespace.job("pre-train")
    # Held back by a finalizer, as by a slow garbage collection.
    namespace.api.patch(namespace.path("jobs", "pre-train"), {"metadata": {"finalizers": ["example.com/hold"]}})
    namespace.api.delete(namespace.path("lorajobs", "pre"))
    eventually("it is gone", lambda: namespace.get("lorajobs", "pre") is None)
    namespace.apply(lorajob("pre", preflight="Skip"))
    time.sleep(2)
    assert namespace.status("pre").get("phase") != "Failed"
    assert namespace.job("pre-train")["metadata"]["uid"] == first["metadata"]["uid"]
    namespace.api.patch(namespace.path("jobs", "pre-train"), {"metadata": {"finalizers": None}})

    old = first["metadata"]["uid"]
    eventually("a Job of its own", lambda: _uid(namespace, "pre-train") not in (None, old))
    namespace.finish("pre")
    namespace.wait_phase("pre", "Succeeded")


def test_a_job_that_someone_deleted_is_made_again(namespace: Namespace) -> None:
    namespace.apply(lorajob("gone", preflight="Skip"))
    first = namespace.job("gone-train")["metadata"]["uid"]
    namespace.api.delete(namespace.path("jobs", "gone-train"))
    eventually("a new Job", lambda: _uid(namespace, "gone-train") not in (None, first))


def _uid(namespace: Namespace, job: str) -> str | None:
    """Return the uid of a Job, or None where there is none."""
    body = namespace.get("jobs", job)
    return body["metadata"]["uid"] if body is not None else None


def test_kueue_holds_the_train_job(namespace: Namespace) -> None:
    body = lorajob("k", preflight="Skip")
    labels = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "high"}
    body["metadata"]["labels"] = labels | {"unrelated": "x"}
    namespace.apply(body)
    job = namespace.job("k-train")
    assert labels.items() <= job["metadata"]["labels"].items()
    assert "unrelated" not in job["metadata"]["labels"]
    # What Kueue's webhook and controller do.
    namespace.api.patch(namespace.path("jobs", "k-train"), {"spec": {"suspend": True}})
    status = namespace.wait_phase("k", "Queued")
    assert status["queue"] == "team-a"
    time.sleep(1)
    assert namespace.job("k-train")["spec"]["suspend"] is True
    namespace.api.patch(namespace.path("jobs", "k-train"), {"spec": {"suspend": False}})
    namespace.finish("k")
    namespace.wait_phase("k", "Succeeded")
    assert namespace.condition("k", "QuotaReserved")["status"] == "True"


@pytest.mark.slow
def test_a_broken_object_does_not_slow_the_others(namespace: Namespace) -> None:
    # Its Job can never be made: a predecessor's stands in the way, held by a finalizer.
    namespace.apply(lorajob("broken", preflight="Skip"))
    first = namespace.job("broken-train")["metadata"]["uid"]
    namespace.api.patch(namespace.path("jobs", "broken-train"), {"metadata": {"finalizers": ["example.com/hold"]}})
    namespace.api.delete(namespace.path("lorajobs", "broken"))
    eventually("the predecessor is gone", lambda: namespace.get("lorajobs", "broken") is None)
    namespace.apply(lorajob("broken", preflight="Skip"))
    for index in range(20):
        namespace.apply(lorajob(f"good-{index}", preflight="Skip"))
    started = time.monotonic()
    for index in range(20):
        namespace.job(f"good-{index}-train")
    assert time.monotonic() - started < 5
    assert "jobName" not in namespace.status("broken")
    namespace.api.patch(namespace.path("jobs", "broken-train"), {"metadata": {"finalizers": None}})
    eventually("its own Job", lambda: _uid(namespace, "broken-train") not in (None, first))


@pytest.mark.slow
def test_killed_at_any_time_nothing_happens_twice_and_nothing_is_lost(
    api: Api, operator: OperatorProcess, operator_kubeconfig: Path, tmp_path: Path
) -> None:
    assert operator.stop() == 0
    namespace, chance = make_namespace(api), random.Random(7)
    own = OperatorProcess(tmp_path / "killed", operator_kubeconfig, popen=operator_server().popen)
    try:
        own.start()
        names = [f"k{index}" for index in range(8)]
        for name in names:
            namespace.apply(lorajob(name))
            _kill_and_restart(own, chance)
        for name in names:
            namespace.pass_preflight(name)
            _kill_and_restart(own, chance)
        for name in names:
            namespace.end_pod(namespace.run_pod(f"{name}-train"), message=RESULT)
            _kill_and_restart(own, chance)
        for name in names:
            status = namespace.wait_phase(name, "Succeeded")
            assert status["attempts"] == 1
            assert status["dataset"]["rows"] == 90
        jobs = Counter(job["metadata"]["name"] for job in api.items(namespace.path("jobs")))
        assert jobs == Counter([f"{name}-{task}" for name in names for task in ("preflight", "train")])
        pods = [pod["metadata"]["labels"]["job-name"] for pod in api.items(namespace.path("pods"))]
        assert sorted(pods) == sorted(jobs)
        assert "Bug in Tunery" not in own.log.read_text()
    finally:
        own.kill()
        operator.start()


def _kill_and_restart(process: OperatorProcess, chance: random.Random) -> None:
    """Kill the operator within its next few calls, in two cases of three."""
    if chance.random() < 0.66:
        time.sleep(chance.uniform(0.0, 0.06))
        process.kill()
        process.start()
