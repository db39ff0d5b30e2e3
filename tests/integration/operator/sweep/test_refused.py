"""A sweep whose cluster refuses what it does to one of its trials: the others are seen to all the same."""

from __future__ import annotations

import pytest

from kit.operator.api import Json, Refused, eventually
from kit.operator.objects import Namespace, lorasweep
from kit.operator.stage import USER
from kit.operator.sweeps import Trials, failed

SWEEPS = "lorasweeps"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
FROZEN = "frozen by the platform"
REST: Json = {"maxTrials": 3, "parallelTrials": 3}


def freeze(namespace: Namespace, name: str) -> None:
    """Refuse every change that the operator makes of one LoRAJob, and one of a label, by which that is seen."""
    rule = {"apiGroups": ["tunery.dev"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["lorajobs"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    user = f"request.userInfo.username != '{USER}' && object.metadata.?labels[?'probe'].orValue('') == ''"
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here},
        "matchConditions": [{"name": "one", "expression": f"request.name == '{name}'"}],
        "validations": [{"expression": user, "message": FROZEN}],
    }
    meta = {"name": f"freeze-{namespace.name}"}
    namespace.api.call("POST", f"{ADMISSION}/validatingadmissionpolicies", {"metadata": meta, "spec": spec})
    binding = {"policyName": meta["name"], "validationActions": ["Deny"]}
    namespace.api.call("POST", f"{ADMISSION}/validatingadmissionpolicybindings", {"metadata": meta, "spec": binding})
    eventually("the policy is in force", lambda: is_frozen(namespace, name))


def is_frozen(namespace: Namespace, name: str) -> bool:
    probe = {"metadata": {"labels": {"probe": "x"}}}
    try:
        namespace.api.patch(f"{namespace.path('lorajobs', name)}?dryRun=All", probe)
    except Refused:
        return True
    return False


def thaw(namespace: Namespace) -> None:
    for plural in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        namespace.api.delete(f"{ADMISSION}/{plural}/freeze-{namespace.name}")


def states(namespace: Namespace) -> list[str]:
    return [row["state"] for row in namespace.status("s", SWEEPS).get("trials") or ()]


def begin(namespace: Namespace, **spec: object) -> None:
    namespace.apply(lorasweep("s", **(REST | spec)))
    eventually("three run", lambda: states(namespace) == ["Running"] * 3)


def searching(namespace: Namespace) -> str:
    return str(namespace.condition("s", "Searching", SWEEPS).get("message"))


@pytest.mark.slow
def test_where_one_cannot_be_stopped_the_others_are_and_a_retry_waits_for_it(
    namespace: Namespace, trials: Trials
) -> None:
    trials.held |= {"s-000", "s-001", "s-002"}
    trials.ends["train"] = lambda run: failed("SecretNotFound", "the Secret s3 is missing")
    begin(namespace)
    freeze(namespace, "s-000")
    trials.held.discard("s-002")
    namespace.wait_phase("s-001", "Stopped")
    eventually("its row says so", lambda: states(namespace) == ["Running", "Pruned", "Failed"])
    assert FROZEN in searching(namespace)
    assert "stop" not in (namespace.get("lorajobs", "s-000") or {})["spec"]
    eventually("it waits for one", lambda: "waits for s-000 to end" in searching(namespace))
    assert namespace.status("s", SWEEPS)["phase"] == "Searching"
    del trials.ends["train"]
    namespace.annotate("s", SWEEPS, retry="1")
    thaw(namespace)
    status = namespace.wait_phase("s", "Succeeded", SWEEPS, timeout=90)
    assert (status["observedRetry"], status["forgiven"], status["countsText"]) == ("1", 3, "3/3")
    assert states(namespace) == ["Pruned", "Pruned", "Failed", "Complete", "Complete", "Complete"]


@pytest.mark.slow
def test_where_one_cannot_be_suspended_the_others_are_and_the_sweep_does_not_rest(
    namespace: Namespace, trials: Trials
) -> None:
    trials.held.add("*")
    begin(namespace)
    freeze(namespace, "s-000")
    namespace.patch_spec("s", SWEEPS, suspend=True)
    namespace.wait_phase("s-001", "Suspended")
    namespace.wait_phase("s-002", "Suspended")
    eventually("their rows say so", lambda: states(namespace) == ["Running", "Waiting", "Waiting"])
    assert namespace.status("s", SWEEPS)["phase"] == "Suspending"
    assert "trial s-000 is not suspended yet" in namespace.condition("s", "Suspended", SWEEPS)["message"]
    assert FROZEN in searching(namespace)
    thaw(namespace)
    namespace.wait_phase("s", "Suspended", SWEEPS)


@pytest.mark.slow
def test_where_one_cannot_be_taken_back_it_counts_and_the_search_goes_on(namespace: Namespace, trials: Trials) -> None:
    trials.held |= {"s-000", "s-001", "s-002"}
    begin(namespace, maxTrials=4)
    freeze(namespace, "s-000")
    namespace.api.patch(namespace.path("lorajobs", "s-000"), {"metadata": {"ownerReferences": None}})
    eventually("it is reported", lambda: FROZEN in searching(namespace))
    trials.held.discard("s-001")
    eventually("it continues", lambda: states(namespace) == ["Running", "Complete", "Running", "Complete"])
    trials.held.clear()
    namespace.wait_phase("s", "Succeeded", SWEEPS)
    assert states(namespace) == ["Complete"] * 4
    thaw(namespace)


@pytest.mark.slow
def test_a_trial_that_has_ended_is_told_where_nothing_can_be_published(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("s-001")
    namespace.apply(lorasweep("s", maxTrials=2, parallelTrials=2))
    eventually("one runs on", lambda: states(namespace) == ["Complete", "Running"])
    namespace.deny("batch", "jobs", "no Jobs today")
    trials.held.clear()
    namespace.wait_reason("s", "CreateRefused", SWEEPS)
    assert namespace.status("s", SWEEPS)["phase"] == "Searching"
    assert "no Jobs today" in searching(namespace)
    assert states(namespace) == ["Complete", "Complete"]
    assert namespace.status("s", SWEEPS)["countsText"] == "2/2"
    namespace.delete("lorajobs", "s-001")
    namespace.allow()
    status = namespace.wait_phase("s", "Succeeded", SWEEPS)
    best = min(status["trials"], key=lambda row: float(row["value"]))
    assert (status["best"]["trial"], status["counts"]["complete"]) == (best["number"], 2)


@pytest.mark.slow
def test_a_trial_that_has_ended_is_told_where_the_job_that_publishes_is_somebody_elses(
    namespace: Namespace, trials: Trials
) -> None:
    container = {"name": "c", "image": "i"}
    pod = {"restartPolicy": "Never", "containers": [container]}
    theirs = {"metadata": {"name": "s-publish-best"}, "spec": {"suspend": True, "template": {"spec": pod}}}
    namespace.api.call("POST", f"/apis/batch/v1/namespaces/{namespace.name}/jobs", theirs)
    namespace.apply(lorasweep("s", maxTrials=2, parallelTrials=2))
    assert namespace.wait_phase("s", "Failed", SWEEPS, timeout=40)["failure"]["reason"] == "NameConflict"
    assert states(namespace) == ["Complete", "Complete"]
