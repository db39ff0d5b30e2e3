"""An AdapterMerge from apply to its end, against a real API server."""

from __future__ import annotations

import pytest

from kit.operator.api import Json
from kit.operator.objects import REPORT, RESULT, Namespace, adaptermerge, lorajob
from kit.operator.runs import run_of

MERGED: Json = {
    "adapter": {"uri": "s3://adapters/m", "manifestSha256": "cd" * 32, "sizeBytes": 5},
    "inputs": [{"uri": "s3://adapters/x", "sha256": "ab" * 32, "rank": 16, "weight": "1.0"}],
    "verification": {"maxError": "1e-7", "method": "deltas compared"},
    "rank": 32,
}


def merge(name: str, *references: str) -> Json:
    """Return a merge of LoRAJobs by name."""
    return adaptermerge(name, [{"loraJobRef": {"name": reference}} for reference in references])


def test_a_merge_waits_for_its_lorajobs_then_runs(namespace: Namespace) -> None:
    namespace.apply(merge("m", "one", "two"))
    namespace.wait_phase("m", "Waiting", "adaptermerges")
    condition = namespace.condition("m", "InputsReady", "adaptermerges")
    assert (condition["status"], condition["reason"]) == ("False", "InputMissing")
    assert "LoRAJob one does not exist yet" in condition["message"]
    for name in ("one", "two"):
        assert namespace.get("jobs", "m-merge") is None
        namespace.apply(lorajob(name, preflight="Skip"))
        namespace.finish(name)
        namespace.wait_phase(name, "Succeeded")
    run = run_of(namespace, "m-merge")
    digest = RESULT["adapter"]["manifestSha256"]
    assert run["adapters"] == [{"uri": "s3://adapters/x", "manifestSha256": digest}] * 2
    assert run["secrets"]["adapter-0"]["name"] == "s3"
    pod = namespace.run_pod("m-merge")
    namespace.wait_running("m", "adaptermerges")
    namespace.end_pod(pod, message=MERGED)
    status = namespace.wait_phase("m", "Succeeded", "adaptermerges")
    assert status["inputs"] == MERGED["inputs"]
    assert status["verification"] == MERGED["verification"]
    assert status["rank"] == 32


def test_a_merge_fails_as_soon_as_a_lorajob_has_a_method_that_cannot_be_merged(namespace: Namespace) -> None:
    namespace.apply(lorajob("auto"))
    namespace.apply(merge("mp", "auto", "later"))
    namespace.wait_phase("mp", "Waiting", "adaptermerges")
    resolved = {"resolved": REPORT["resolved"] | {"method": "PromptTuning"}}
    namespace.end_pod(namespace.run_pod("auto-preflight"), message=REPORT | resolved)
    failure = namespace.wait_phase("mp", "Failed", "adaptermerges")["failure"]
    assert failure["reason"] == "InvalidSpec"
    text = "LoRAJob auto, which this waits for, has method PromptTuning: its adapter cannot be merged"
    assert failure["message"] == text
    assert failure["hint"] == "Name a LoRAJob whose method can be merged, such as LoRA, in a new AdapterMerge."
    assert namespace.get("jobs", "mp-merge") is None
    assert namespace.status("auto")["phase"] != "Failed"


def test_a_merge_of_uris_waits_for_nothing(namespace: Namespace) -> None:
    namespace.apply(adaptermerge("mu", [{"uri": "s3://adapters/one/"}]))
    namespace.job("mu-merge")


def test_continue_from_waits_for_the_lorajob(namespace: Namespace) -> None:
    namespace.apply(lorajob("next", continueFrom={"loraJobRef": {"name": "first"}}))
    namespace.wait_phase("next", "Waiting")
    namespace.apply(lorajob("first", preflight="Skip"))
    namespace.finish("first")
    assert run_of(namespace, "next-preflight")["adapters"][0]["uri"] == "s3://adapters/x"


@pytest.mark.slow
def test_resume_from_waits_for_the_end_of_the_lorajob(namespace: Namespace) -> None:
    namespace.apply(lorajob("later", resumeFrom={"loraJobRef": {"name": "late"}}))
    namespace.wait_phase("later", "Waiting")
    late = namespace.apply(lorajob("late", preflight="Skip", retries=0))
    pod = namespace.run_pod("late-train")
    place = f"s3://adapters/tunery-checkpoints/{namespace.name}/late-{late['metadata']['uid']}"
    assert run_of(namespace, "late-train")["checkpointUri"] == place
    assert "LoRAJob late is " in namespace.condition("later", "InputsReady")["message"]
    said = {"failure": {"reason": "NotImproved", "message": "the loss rose"}, "checkpoint": _step(place, 900)}
    said["rejectedAdapter"] = RESULT["adapter"] | {"uri": "s3://adapters/late-rejected"}
    namespace.end_pod(pod, 64, said)
    status = namespace.wait_phase("late", "Failed")
    assert status["rejectedAdapter"]["uri"] == "s3://adapters/late-rejected"
    assert "adapter" not in status
    assert "resumeFrom.loraJobRef.name: late" in status["failure"]["hint"]
    run = run_of(namespace, "later-preflight")
    assert run["resumeUri"] == place, "the folder of all of them: the pod may have stored a newer one since"
    assert run["adapters"] == []
    assert run["secrets"]["resume-from"]["name"] == "s3"
    references = namespace.status("later")["inputReferences"]
    assert references == [{"name": "late", "uid": late["metadata"]["uid"], "uri": place}]
    namespace.delete("lorajobs", "late")
    namespace.pass_preflight("later")
    assert run_of(namespace, "later-train")["resumeUri"] == place


def _step(place: str, step: int) -> Json:
    return {"uri": f"{place}/step-{step:06}", "step": step}


def test_a_merge_that_names_a_merge_is_told_so(namespace: Namespace) -> None:
    namespace.apply(merge("self", "self"))
    namespace.wait_phase("self", "Waiting", "adaptermerges")
    condition = namespace.condition("self", "InputsReady", "adaptermerges")
    assert "an AdapterMerge of that name does: name its result by its uri" in condition["message"]
