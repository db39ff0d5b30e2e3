"""What a cluster does to a job while nobody looks: refused, evicted, lost, deleted, upgraded; the status says which."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tunery_operator.client.permissions import PATCH_JOB, PERMISSIONS

from kit.operator.api import Api, Json, eventually
from kit.operator.objects import REPORT, RESULT, Namespace, adapterserver, lorajob, lorasweep
from kit.operator.process import OperatorProcess
from kit.operator.stage import USER, make_namespace, rules

Make = Callable[..., OperatorProcess]
SAYS_SO = 40.0
"""Seconds within which a refusal must be told: the promise is 30."""


def wait_failure(namespace: Namespace, name: str, reason: str) -> Json:
    """Return the status once `failure.reason` is this; it must not have failed for good."""
    status = namespace.wait_failure(name, reason, SAYS_SO)
    assert status["phase"] != "Failed"
    assert status["failure"]["hint"]
    assert reason in {condition["reason"] for condition in status["conditions"]}
    return status


def ends_well(namespace: Namespace, name: str) -> Json:
    """Let the train Job run to its end, and return the status of a success."""
    namespace.finish(name)
    status = namespace.wait_phase(name, "Succeeded")
    assert "failure" not in status
    return status


# Refused by the API server (M1)


def test_a_quota_on_jobs_is_told_and_goes_away(namespace: Namespace) -> None:
    namespace.limit(**{"count/jobs.batch": "0"})
    namespace.apply(lorajob("q", preflight="Skip"))
    status = wait_failure(namespace, "q", "QuotaExceeded")
    assert "exceeded quota: limit" in status["failure"]["message"]
    namespace.unlimit()
    eventually("the Job", lambda: namespace.get("jobs", "q-train"))
    ends_well(namespace, "q")


@pytest.mark.slow
def test_an_admission_policy_is_told_in_its_own_words(namespace: Namespace) -> None:
    namespace.deny("batch", "jobs", "no jobs of this team on Fridays")
    namespace.apply(lorajob("a"))
    status = wait_failure(namespace, "a", "CreateRefused")
    assert "no jobs of this team on Fridays" in status["failure"]["message"]
    namespace.allow()
    eventually("the preflight Job", lambda: namespace.get("jobs", "a-preflight"))
    namespace.pass_preflight("a")
    ends_well(namespace, "a")


# Refused by the cluster (M2)


@pytest.mark.slow
def test_a_quota_on_pods_is_told_though_only_an_event_of_the_job_says_so(namespace: Namespace) -> None:
    namespace.limit(pods="0")
    namespace.apply(lorajob("p", preflight="Skip"))
    status = wait_failure(namespace, "p", "QuotaExceeded")
    assert "exceeded quota: limit" in status["failure"]["message"]
    assert status.get("attempts", 0) == 0
    namespace.unlimit()
    eventually("a pod", lambda: namespace.pods("p-train"), 120)
    ends_well(namespace, "p")


# Nodes and what runs on them (M4, M6, M7)


# Suspension (M5)


# What is lost must be had again (M8, M15)


def test_a_result_whose_pod_is_gone_is_asked_for_again(api: Api, own_operator: Make) -> None:
    namespace, operator = make_namespace(api), own_operator().start()
    namespace.apply(lorajob("r", preflight="Skip"))
    pod = namespace.run_pod("r-train")
    namespace.wait_running("r")
    operator.kill()
    namespace.end_pod(pod, message=RESULT)
    eventually("the Job is complete", lambda: namespace.job("r-train").get("status", {}).get("succeeded"))
    namespace.remove_pod(pod)
    operator.start()
    again = eventually("a Job that reports", lambda: namespace.get("jobs", "r-report"))
    amounts = again["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert not [name for name in amounts if "gpu" in name]
    assert namespace.status("r")["phase"] != "Failed"
    namespace.end_pod(namespace.run_pod("r-report"), message=RESULT)
    status = namespace.wait_phase("r", "Succeeded")
    assert status["adapter"] == RESULT["adapter"]
    assert status["attempts"] == 1
    operator.assert_clean_log()


@pytest.mark.slow
def test_a_preflight_report_that_is_lost_is_made_again(api: Api, own_operator: Make) -> None:
    namespace, operator = make_namespace(api), own_operator().start()
    namespace.apply(lorajob("f"))
    pod = namespace.run_pod("f-preflight")
    operator.kill()
    first = namespace.job("f-preflight")["metadata"]["uid"]
    namespace.end_pod(pod, message=REPORT)
    eventually("the Job is complete", lambda: namespace.job("f-preflight").get("status", {}).get("succeeded"))
    namespace.remove_pod(pod)
    operator.start()
    eventually(
        "another preflight Job",
        lambda: (namespace.get("jobs", "f-preflight") or {"metadata": {"uid": first}})["metadata"]["uid"] != first,
        40,
    )
    namespace.pass_preflight("f")
    assert ends_well(namespace, "f")["dataset"]["rows"] == 90


# The ledger (M9)


@pytest.mark.slow
def test_seconds_and_attempts_are_exact_across_restarts(api: Api, own_operator: Make) -> None:
    namespace, operator = make_namespace(api), own_operator().start()
    namespace.apply(lorajob("l", preflight="Skip", resources={"gpus": 1}))
    first = namespace.run_pod("l-train", node="one")
    namespace.wait_running("l")
    namespace.patch_spec("l", suspend=True)
    eventually("the pod terminates", lambda: "deletionTimestamp" in namespace.get("pods", first)["metadata"])  # type: ignore[index]
    operator.kill()
    namespace.stop_pod(first, seconds=1)
    operator.start()
    namespace.wait_phase("l", "Suspended")
    operator.kill()
    operator.start()
    namespace.patch_spec("l", suspend=False)
    second = namespace.run_pod("l-train")
    namespace.wait_running("l")
    operator.kill()
    operator.start()
    namespace.end_pod(second, message=RESULT, seconds=1)
    status = namespace.wait_phase("l", "Succeeded")
    assert status["attempts"] == 2
    assert len(status["attemptHistory"]) == 2
    # The first pod's end was seen by nobody: what is known of it is when its node said that it ended, or when it went.
    assert status["attemptHistory"][1]["seconds"] == 1
    assert status["runSeconds"] == sum(attempt["seconds"] for attempt in status["attemptHistory"])
    assert status["gpuSeconds"] == status["runSeconds"]


# Another version's words (M10)


def test_a_reason_that_nobody_knows_yet_is_passed_on(namespace: Namespace) -> None:
    namespace.apply(lorajob("u", preflight="Skip"))
    words = {"failure": {"reason": "MoonTooBright", "message": "the moon was too bright", "phase": "new"}}
    namespace.end_pod(namespace.run_pod("u-train"), 64, words)
    failure = namespace.wait_phase("u", "Failed")["failure"]
    assert failure["reason"] == "MoonTooBright"
    assert failure["message"].startswith("the moon was too bright")


@pytest.mark.slow
def test_a_suspension_that_is_refused_is_told_and_carried_out_once_it_may(api: Api, own_operator: Make) -> None:
    own_operator().start()
    namespace = make_namespace(api)
    namespace.apply(lorajob("a", preflight="Skip"))
    namespace.run_pod("a-train")
    namespace.wait_running("a")
    role = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{USER}"
    api.patch(role, {"rules": rules(PERMISSIONS - {PATCH_JOB})})
    try:
        namespace.patch_spec("a", suspend=True)
        namespace.wait_failure("a", "CreateRefused")
        # Longer than it takes to try as often as it takes to see a quarrel.
        time.sleep(20)
        status = namespace.status("a")
        assert (status["failure"]["reason"], status["phase"]) == ("CreateRefused", "Starting")
        assert namespace.condition("a", "Suspended")["reason"] == "CreateRefused"
    finally:
        api.patch(role, {"rules": rules(PERMISSIONS)})
    eventually("the Job is suspended", lambda: namespace.job("a-train")["spec"]["suspend"])
    assert "failure" not in namespace.wait_phase("a", "Suspended")


# Judged once (B4)


@pytest.mark.slow
def test_a_setting_lost_in_an_upgrade_fails_no_job_that_runs(api: Api, own_operator: Make) -> None:
    namespace = make_namespace(api)
    before = own_operator(defaultOutput={"uri": "s3://adapters/all"}).start()
    namespace.apply(lorajob("old", output={}, preflight="Skip"))
    namespace.apply(lorajob("next", output={}))
    namespace.apply(lorajob("held", output={}, preflight="Skip", suspend=True))
    namespace.wait_phase("held", "Suspended")
    namespace.apply(lorajob("big", output={}, preflight="Skip", resources={"gpus": 0, "memory": "900Gi"}))
    namespace.wait_reason("big", "Unschedulable")
    pod = namespace.run_pod("old-train")
    namespace.wait_running("old")
    preflight = namespace.run_pod("next-preflight")
    assert before.stop() == 0
    after = own_operator().start()
    namespace.end_pod(preflight, message=REPORT)
    time.sleep(2)
    assert namespace.status("old")["phase"] == "Starting"
    assert namespace.condition("old", "Running")["status"] == "True"
    namespace.end_pod(pod, message=RESULT)
    namespace.wait_phase("old", "Succeeded")
    status = namespace.wait_reason("next", "PlatformChanged")
    assert status["phase"] != "Failed"
    # What may be changed gives no reason to judge the rest once more.
    namespace.patch_spec("held", suspend=False)
    namespace.wait_reason("held", "PlatformChanged")
    namespace.patch_spec("held", suspend=True)
    namespace.wait_phase("held", "Suspended")
    namespace.patch_spec("big", resources={"gpus": 0, "memory": "1Gi"})
    namespace.wait_reason("big", "PlatformChanged")
    # Whoever comes now is told at once: nothing was accepted for him.
    namespace.apply(lorajob("new", output={}))
    assert namespace.wait_phase("new", "Failed")["failure"]["reason"] == "InvalidSpec"
    assert after.stop() == 0
    own_operator(defaultOutput={"uri": "s3://adapters/all"}).start()
    namespace.patch_spec("held", suspend=False)
    for name in ("next", "held", "big"):
        ends_well(namespace, name)


def new_jobs_wait_for_the_platform(namespace: Namespace, own_operator: Make) -> dict[str, str]:
    """Show that a wrong setting of the platform fails nothing that is new; return what the mended one makes."""
    wrong = [{"key": "pool", "operator": "Exists", "tolerationSeconds": 60}]
    own = {"tolerations": [{"key": "mine", "operator": "Exists"}]}
    settings = {
        "trainer": {"tolerations": wrong},
        "preflight": {"tolerations": wrong},
        "progress": {"url": "https://elsewhere.svc:8443"},
    }
    # A certificate of another host is no reason not to be ready.
    operator = own_operator(**settings).start()
    eventually("it is reported", lambda: "certificate is not valid for 'elsewhere.svc'" in operator.log.read_text())
    namespace.apply(lorajob("new-a"))
    namespace.apply(lorajob("new-b", preflight="Skip", scheduling=own))
    namespace.apply(lorasweep("new-s", maxTrials=1, parallelTrials=1))
    namespace.apply(adapterserver("new-d", scheduling=own))
    for name in ("new-a", "new-b", "new-s-000"):
        failure = wait_failure(namespace, name, "CreateRefused")["failure"]
        assert "tolerations[" in failure["message"]
        assert "Ask a cluster admin" in failure["hint"]
        assert "trainer.tolerations" in failure["facts"]["chartValues"]
    status = eventually(
        "the server waits", lambda: (s := namespace.status("new-d", "adapterservers")).get("failure") and s
    )
    assert (status["failure"]["reason"], status["phase"]) == ("CreateRefused", "Pending")
    assert "trainer.tolerations" in status["failure"]["facts"]["chartValues"]
    assert operator.stop() == 0
    return {"jobs": "new-a-preflight"}


@pytest.mark.slow
def test_what_the_platform_mends_reaches_the_jobs_that_wait(api: Api, own_operator: Make) -> None:
    namespace, before = make_namespace(api), own_operator().start()
    for name in ("waits", "works", "queued"):
        manifest = lorajob(name, preflight="Skip")
        manifest["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"} if name == "queued" else {}
        namespace.apply(manifest)
    namespace.apply(lorajob("checked"))
    children = [f"{name}-train" for name in ("waits", "works", "queued")] + ["checked-preflight"]
    first = {name: namespace.job(name)["metadata"]["uid"] for name in children}
    namespace.api.patch(namespace.path("jobs", "queued-train"), {"spec": {"suspend": True}})
    pod = namespace.run_pod("works-train", node="one")
    namespace.wait_running("works")
    assert before.stop() == 0
    tolerations = [{"key": "example.com/pool", "operator": "Exists"}]
    newer = new_jobs_wait_for_the_platform(namespace, own_operator)
    placed = {part: {"tolerations": tolerations} for part in ("trainer", "preflight")}
    after = own_operator(**placed).start()
    for kind, name in newer.items():
        eventually(f"{kind} {name}", lambda kind=kind, name=name: namespace.get(kind, name))
    for name in ("waits-train", "checked-preflight"):
        eventually(f"{name} is another", lambda name=name: namespace.job(name)["metadata"]["uid"] != first[name])
        assert tolerations[0] in namespace.job(name)["spec"]["template"]["spec"]["tolerations"]
    second = {name: namespace.job(name)["metadata"]["uid"] for name in children}
    assert [name for name in children if second[name] == first[name]] == ["works-train", "queued-train"]
    # The same platform is no reason to make anything again.
    assert after.stop() == 0
    after.start()
    namespace.end_pod(pod, message=RESULT)
    namespace.wait_phase("works", "Succeeded")
    assert {name: namespace.job(name)["metadata"]["uid"] for name in children if name != "works-train"} == {
        name: uid for name, uid in second.items() if name != "works-train"
    }
    ends_well(namespace, "waits")


# Inputs that come and go (M17)
