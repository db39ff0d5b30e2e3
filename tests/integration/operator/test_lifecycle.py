"""Suspension, deletion, expiry, names that are taken, and operators that are killed."""

from __future__ import annotations

import time

import pytest

from kit.operator.api import Json, eventually
from kit.operator.objects import Namespace, lorajob


def test_suspended_from_the_start_has_no_pod(namespace: Namespace) -> None:
    namespace.apply(lorajob("s", suspend=True))
    namespace.wait_phase("s", "Suspended")
    assert namespace.api.items(namespace.path("jobs")) == []
    namespace.patch_spec("s", suspend=False)
    namespace.pass_preflight("s")
    namespace.finish("s")
    namespace.wait_phase("s", "Succeeded")


def test_the_deadline_may_change_while_it_runs(namespace: Namespace) -> None:
    namespace.apply(lorajob("t", preflight="Skip", activeDeadlineSeconds=7200))
    namespace.run_pod("t-train")
    namespace.wait_running("t")
    namespace.patch_spec("t", activeDeadlineSeconds=1)
    assert namespace.wait_phase("t", "Failed")["failure"]["reason"] == "DeadlineExceeded"
    assert namespace.get("jobs", "t-train") is None


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


def test_a_job_that_someone_deleted_is_made_again(namespace: Namespace) -> None:
    namespace.apply(lorajob("gone", preflight="Skip"))
    first = namespace.job("gone-train")["metadata"]["uid"]
    namespace.api.delete(namespace.path("jobs", "gone-train"))
    eventually("a new Job", lambda: _uid(namespace, "gone-train") not in (None, first))


def _uid(namespace: Namespace, job: str) -> str | None:
    """Return the uid of a Job, or None where there is none."""
    body = namespace.get("jobs", job)
    return body["metadata"]["uid"] if body is not None else None


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
