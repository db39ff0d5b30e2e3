"""What people do to the LoRAJobs of a sweep's trials, on a real API server and Job controller."""

from __future__ import annotations

import pytest

from kit.operator.api import Json, eventually
from kit.operator.objects import Namespace, lorajob, lorasweep
from kit.operator.sweeps import Trials, failed

SWEEPS = "lorasweeps"


def states(namespace: Namespace) -> list[str]:
    return [row["state"] for row in namespace.status("s", SWEEPS).get("trials") or ()]


def wait_states(namespace: Namespace, *wanted: str) -> None:
    eventually(f"trials are {wanted}", lambda: states(namespace) == list(wanted))


def change(namespace: Namespace, name: str, **metadata: object) -> None:
    namespace.api.patch(namespace.path("lorajobs", name), {"metadata": metadata})


def reference(namespace: Namespace) -> Json:
    uid = (namespace.get(SWEEPS, "s") or {})["metadata"]["uid"]
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRASweep", "name": "s", "uid": uid, "controller": True}


def searching(namespace: Namespace) -> str:
    return str(namespace.condition("s", "Searching", SWEEPS).get("message"))


@pytest.mark.slow
def test_a_trial_whose_owner_is_taken_away_is_taken_back(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("*")
    namespace.apply(lorasweep("s", maxTrials=2, parallelTrials=1))
    wait_states(namespace, "Running")
    change(namespace, "s-000", ownerReferences=None)
    eventually(
        "it has its owner again",
        lambda: (namespace.get("lorajobs", "s-000") or {})["metadata"].get("ownerReferences"),
        20,
    )
    trials.held.clear()
    namespace.wait_phase("s", "Succeeded", SWEEPS)
    assert states(namespace) == ["Complete", "Complete"]


def test_who_forges_a_trial_is_named_and_not_counted(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("*")
    namespace.apply(lorasweep("s", maxTrials=2, parallelTrials=2))
    wait_states(namespace, "Running", "Running")
    for name, number in (("forged", "999999"), ("twin", "000")):
        body = lorajob(name, suspend=True)
        body["metadata"] |= {"labels": {"tunery.dev/trial": number}, "ownerReferences": [reference(namespace)]}
        namespace.apply(body)
    eventually("they are named", lambda: "did not create them: forged, twin" in searching(namespace))
    trials.held.clear()
    namespace.wait_phase("s", "Succeeded", SWEEPS)
    assert states(namespace) == ["Complete", "Complete"]


@pytest.mark.slow
def test_a_deleted_trial_that_is_kept_is_waited_for_aloud(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("s-000")
    namespace.apply(lorasweep("s", maxTrials=2, parallelTrials=1))
    wait_states(namespace, "Running")
    change(namespace, "s-000", finalizers=["example.org/keep"])
    namespace.delete("lorajobs", "s-000")
    namespace.wait_reason("s", "TrialKept", SWEEPS)
    assert "s-000, which was deleted and is kept by the finalizer example.org/keep" in searching(namespace)
    change(namespace, "s-000", finalizers=None)
    namespace.wait_phase("s", "Succeeded", SWEEPS)
    assert states(namespace)[0] == "Deleted"


@pytest.mark.slow
def test_a_retry_of_a_trial_is_answered_and_not_followed(namespace: Namespace, trials: Trials) -> None:
    trials.ends["train"] = lambda run: failed("SecretNotFound", "the Secret s3 is missing")
    namespace.apply(lorasweep("s", maxTrials=1, parallelTrials=1))
    namespace.wait_phase("s", "Failed", SWEEPS)
    hint = namespace.status("s-000")["failure"]["hint"]
    assert "LoRASweep s continues without this trial" in hint
    assert f"kubectl annotate lorasweep s -n {namespace.name}" in hint
    assert "annotate lorajob" not in hint
    del trials.ends["train"]
    namespace.annotate("s-000", retry="1")
    eventually("it is answered", lambda: namespace.status("s-000").get("observedRetry") == "1")
    eventually("it is reported", lambda: "RetryRefused" in namespace.event_reasons("s-000"))
    assert namespace.status("s-000")["phase"] == "Failed"
    namespace.annotate("s", SWEEPS, retry="1")
    namespace.wait_phase("s", "Succeeded", SWEEPS)
    assert states(namespace) == ["Failed", "Complete"]


@pytest.mark.slow
def test_once_the_best_is_published_the_others_name_nothing_that_is_gone(namespace: Namespace, trials: Trials) -> None:
    namespace.apply(lorasweep("s", maxTrials=3, keepAdapters=2))
    status = namespace.wait_phase("s", "Succeeded", SWEEPS)
    (gone,) = [row["name"] for row in status["trials"] if "adapter" not in row]
    for row in status["trials"]:
        one = namespace.status(row["name"])
        uploaded = namespace.condition(row["name"], "AdapterUploaded")
        assert one["phase"] == "Succeeded"
        assert ("adapter" in one) is (row["name"] != gone)
        assert (uploaded["status"], uploaded["reason"]) == (
            ("False", "AdapterRemoved") if row["name"] == gone else ("True", "AdapterUploaded")
        )
    told = namespace.condition(gone, "AdapterUploaded")["message"]
    assert told.startswith(
        "LoRASweep s has published its best; of its trials' own adapters it keeps those of the 2 best"
    )
    assert "s3://" not in str(namespace.status(gone)["conditions"])
    namespace.apply(lorajob("later", continueFrom={"loraJobRef": {"name": gone}}))
    failure = namespace.wait_failure("later", "AdapterMissing")["failure"]
    assert failure["message"].endswith(
        f"LoRAJob {gone}, which this waits for, was a trial of LoRASweep s, which has removed its adapter "
        "(spec.keepAdapters)"
    )
    assert "Name the result of LoRASweep s by its uri" in failure["hint"]


def config_map(namespace: Namespace) -> Json:
    """Return a reference to an object that somebody else has made."""
    path = f"/api/v1/namespaces/{namespace.name}/configmaps"
    uid = namespace.api.call("POST", path, {"metadata": {"name": "c"}})["metadata"]["uid"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": uid}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "not controlled", "of another"])
def test_a_trial_is_counted_whatever_is_done_to_whose_it_is(namespace: Namespace, trials: Trials, how: str) -> None:
    trials.held.add("*")
    namespace.apply(lorasweep("s", maxTrials=2, parallelTrials=2))
    wait_states(namespace, "Running", "Running")
    if how == "alone":
        change(namespace, "s-000", ownerReferences=None, labels={"tunery.dev/trial": None})
    else:
        ours = {**reference(namespace), "controller": False}
        change(namespace, "s-000", ownerReferences=[ours if how == "not controlled" else config_map(namespace)])
    eventually("it is named", lambda: "neither stopped nor suspended" in searching(namespace))
    assert "s-000" in searching(namespace)
    assert states(namespace) == ["Running", "Running"]
    trials.held.clear()
    namespace.wait_phase("s", "Succeeded", SWEEPS)
    assert states(namespace) == ["Complete", "Complete"]
    gone = next(row["name"] for row in namespace.status("s", SWEEPS)["trials"] if "adapter" not in row)
    assert namespace.condition(gone, "AdapterUploaded")["reason"] == "AdapterRemoved"


@pytest.mark.slow
def test_who_forges_the_next_trial_is_named_and_takes_no_place(namespace: Namespace, trials: Trials) -> None:
    trials.held.add("*")
    namespace.apply(lorasweep("s", maxTrials=3, parallelTrials=1))
    wait_states(namespace, "Running")
    for number in ("001", "017"):
        body = lorajob(f"s-{number}", suspend=True)
        body["metadata"] |= {"ownerReferences": [reference(namespace)], "labels": {"tunery.dev/trial": number}}
        namespace.apply(body)
    eventually("they are named", lambda: "did not create them: s-001, s-017" in searching(namespace))
    assert states(namespace) == ["Running"]
    trials.held.clear()
    status = namespace.wait_phase("s", "Failed", SWEEPS)
    assert status["failure"]["reason"] == "NameConflict"
    assert states(namespace) == ["Complete"]


@pytest.mark.slow
def test_who_began_from_a_trial_that_is_removed_since_is_told_so_at_its_retry(
    namespace: Namespace, trials: Trials
) -> None:
    trials.held |= {"s-002", "from-s-000", "from-s-001"}
    namespace.apply(lorasweep("s", maxTrials=3, parallelTrials=3))
    wait_states(namespace, "Complete", "Complete", "Running")
    for name in ("s-000", "s-001"):
        namespace.apply(lorajob(f"from-{name}", preflight="Skip", continueFrom={"loraJobRef": {"name": name}}))
        namespace.wait_running(f"from-{name}")
    trials.held.discard("s-002")
    status = namespace.wait_phase("s", "Succeeded", SWEEPS)
    gone = next(row["name"] for row in status["trials"] if "adapter" not in row and row["name"] != "s-002")
    trials.ends["train"] = lambda _: failed("AdapterMissing", "nothing lies there")
    trials.held.clear()
    assert namespace.wait_phase(f"from-{gone}", "Failed")["failure"]["reason"] == "AdapterMissing"
    namespace.annotate(f"from-{gone}", retry="1")
    told = f"LoRAJob {gone}, which this waits for, was a trial of LoRASweep s, which has removed its adapter"
    eventually("it is reported", lambda: told in namespace.status(f"from-{gone}").get("failure", {}).get("message", ""))
    assert namespace.status(f"from-{gone}")["attempts"] == 1
