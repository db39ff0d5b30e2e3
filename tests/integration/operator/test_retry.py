"""Another try of a failed object, settings that change at rest, and objects that change under the operator's hands."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kit.operator.api import Api, eventually
from kit.operator.objects import RESULT, Namespace, adaptermerge, lorajob
from kit.operator.process import OperatorProcess
from kit.operator.runs import run_of
from kit.operator.stage import make_namespace

Make = Callable[..., OperatorProcess]
DIVERGED = {"failure": {"reason": "LossDiverged", "message": "loss is NaN at step 7"}}


def test_a_failed_job_is_tried_again_with_its_uid_and_its_checkpoints(namespace: Namespace) -> None:
    created = namespace.apply(lorajob("a", retries=0))
    namespace.pass_preflight("a")
    first = namespace.job("a-train")["metadata"]["uid"]
    place = run_of(namespace, "a-train")["checkpointUri"]
    namespace.end_pod(namespace.run_pod("a-train"), 64, DIVERGED)
    namespace.wait_phase("a", "Failed")
    namespace.annotate("a", retry="1")
    eventually(
        "a new Job",
        lambda: (
            (namespace.get("jobs", "a-train") or created)["metadata"]["uid"] not in (first, created["metadata"]["uid"])
        ),
    )
    assert run_of(namespace, "a-train")["checkpointUri"] == place
    status = namespace.status("a")
    assert status["observedRetry"] == "1"
    # What stands in the way of the new pod may be told by now: no node is here.
    assert status.get("failure", {}).get("reason") != DIVERGED["failure"]["reason"]
    namespace.finish("a")
    status = namespace.wait_phase("a", "Succeeded")
    assert status["attempts"] == 2
    assert namespace.get("lorajobs", "a")["metadata"]["uid"] == created["metadata"]["uid"]  # type: ignore[index]


@pytest.mark.slow
def test_a_failed_preflight_is_done_again(namespace: Namespace) -> None:
    namespace.apply(lorajob("p"))
    words = {"failure": {"reason": "DatasetInvalid", "message": "line 17: no completion"}}
    namespace.end_pod(namespace.run_pod("p-preflight"), 64, words)
    namespace.wait_phase("p", "Failed")
    time.sleep(1)  # An event is named by the second of its transition.
    namespace.annotate("p", retry="")

    def told_twice() -> bool:
        told = namespace.event_reasons("p")
        # A look that comes late finds the pod that no node takes, and tells of that alone.
        return "Retried" in told and 2 in (told.count("PreflightStarting"), told.count("Unschedulable"))

    eventually("the second preflight is told as the first was", told_twice)
    namespace.pass_preflight("p")
    namespace.finish("p")
    namespace.wait_phase("p", "Succeeded")
    assert "Retried" in namespace.event_reasons("p")


def test_a_marked_job_is_never_made_again(api: Api, own_operator: Make) -> None:
    operator = own_operator().start()
    namespace = make_namespace(api)
    namespace.apply(lorajob("n", preflight="Skip"))
    namespace.finish("n")
    namespace.wait_phase("n", "Succeeded")
    uid = namespace.job("n-train")["metadata"]["uid"]
    operator.kill()
    operator.start()
    namespace.api.patch(namespace.path("lorajobs", "n"), {"metadata": {"labels": {"touched": "yes"}}})
    time.sleep(1)
    assert namespace.job("n-train")["metadata"]["uid"] == uid
    assert len(api.items(namespace.path("pods"))) == 1


@pytest.mark.slow
def test_an_input_is_written_down_and_outlives_its_lorajob(namespace: Namespace) -> None:
    created = namespace.apply(lorajob("one", preflight="Skip"))
    namespace.finish("one")
    namespace.wait_phase("one", "Succeeded")
    references = [{"loraJobRef": {"name": name}} for name in ("one", "two")]
    namespace.apply(adaptermerge("m", references))
    entry = eventually("the reference", lambda: namespace.status("m", "adaptermerges").get("inputReferences"))[0]
    assert entry["uid"] == created["metadata"]["uid"]
    assert entry["uri"] == RESULT["adapter"]["uri"]
    namespace.delete("lorajobs", "one")
    namespace.apply(lorajob("two", preflight="Skip"))
    namespace.finish("two")
    run = run_of(namespace, "m-merge")
    assert [adapter["uri"] for adapter in run["adapters"]] == [RESULT["adapter"]["uri"]] * 2
    assert run["secrets"]["adapter-0"]["name"] == "s3"


@pytest.mark.slow
def test_a_time_to_live_waits_for_who_waits(namespace: Namespace) -> None:
    # It names both before either is there, and writes down each as it becomes ready.
    namespace.apply(adaptermerge("m", [{"loraJobRef": {"name": name}} for name in ("a", "b")], suspend=True))
    namespace.apply(lorajob("a", preflight="Skip", ttlSecondsAfterFinished=0))
    namespace.finish("a")
    eventually("the reference", lambda: namespace.status("m", "adaptermerges").get("inputReferences"))
    eventually("a is gone", lambda: namespace.get("lorajobs", "a") is None)


@pytest.mark.slow
def test_another_try_takes_the_adapter_that_was_published_since(namespace: Namespace) -> None:
    """The hint of AdapterCorrupt is to publish again: what was written down of the first adapter must not stand."""
    _merge_what_is_corrupt(namespace, "the manifest was replaced")
    # The garbage collector takes its time, and the new Job waits for it.
    eventually("the old Job is gone", lambda: namespace.get("jobs", "src-train") is None)
    again = namespace.apply(lorajob("src", preflight="Skip"))
    namespace.finish("src", {"adapter": {**RESULT["adapter"], "manifestSha256": "ef" * 32}})
    namespace.wait_phase("src", "Succeeded")
    namespace.annotate("m", "adaptermerges", retry="1")
    namespace.run_pod("m-merge")
    assert run_of(namespace, "m-merge")["adapters"][0]["manifestSha256"] == "ef" * 32
    assert namespace.status("m", "adaptermerges")["inputReferences"][0]["uid"] == again["metadata"]["uid"]


@pytest.mark.slow
def test_another_try_does_not_wait_for_a_lorajob_that_is_gone(namespace: Namespace) -> None:
    _merge_what_is_corrupt(namespace, "a file is damaged")
    namespace.annotate("m", "adaptermerges", retry="1")
    namespace.run_pod("m-merge")
    digest = RESULT["adapter"]["manifestSha256"]
    assert run_of(namespace, "m-merge")["adapters"][0]["manifestSha256"] == digest


def test_a_change_after_the_end_is_seen_to_have_been_seen(namespace: Namespace) -> None:
    namespace.apply(lorajob("o", preflight="Skip"))
    namespace.finish("o")
    before = namespace.wait_phase("o", "Succeeded")
    namespace.patch_spec("o", ttlSecondsAfterFinished=86_400, stop="too late")
    after = eventually(
        "the generation is noted",
        lambda: (status := namespace.status("o"))["observedGeneration"] > before["observedGeneration"] and status,
    )
    noted = {"observedGeneration": after["observedGeneration"]}
    assert after == {**before, **noted, "conditions": [{**each, **noted} for each in before["conditions"]]}
    namespace.annotate("o", retry="1")
    eventually("another try is refused", lambda: namespace.event_reasons("o").count("RetryRefused") == 1)
    assert namespace.status("o") == {**after, "observedRetry": "1"}


def _merge_what_is_corrupt(namespace: Namespace, words: str) -> None:
    """Leave a merge `m` that failed over the adapter of LoRAJob `src`, which is deleted."""
    namespace.apply(lorajob("src", preflight="Skip"))
    namespace.finish("src")
    namespace.wait_phase("src", "Succeeded")
    namespace.apply(adaptermerge("m", [{"loraJobRef": {"name": "src"}}]))
    failure = {"failure": {"reason": "AdapterCorrupt", "message": words}}
    namespace.end_pod(namespace.run_pod("m-merge"), 64, failure)
    namespace.wait_phase("m", "Failed", "adaptermerges")
    namespace.delete("lorajobs", "src")
