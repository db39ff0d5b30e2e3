"""The Job that serves results, on a real API server: it follows the annotation, and changes nothing of its object."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tunery_api.fetching import FetchRequest, token_digest

from kit.operator.api import Api, Json, eventually
from kit.operator.objects import RESULT, Namespace, adaptermerge, lorajob
from kit.operator.process import OperatorProcess
from kit.operator.runs import run_of
from kit.operator.stage import make_namespace

Make = Callable[..., OperatorProcess]


def request(token: str = "one", seconds: float = 3600) -> str:
    """Return a value of the annotation."""
    return str(FetchRequest(token_digest(token), datetime.now(UTC) + timedelta(seconds=seconds)))


def fetch_job(namespace: Namespace, name: str) -> Json | None:
    return namespace.get("jobs", f"{name}-fetch")


def wait_gone(namespace: Namespace, name: str) -> None:
    eventually(f"{name}-fetch is deleted", lambda: fetch_job(namespace, name) is None)


def finished(namespace: Namespace, name: str) -> Json:
    """Return the status of a LoRAJob that has succeeded."""
    namespace.apply(lorajob(name, preflight="Skip"))
    namespace.finish(name)
    return namespace.wait_phase(name, "Succeeded")


def warnings(namespace: Namespace, name: str, reason: str) -> list[str]:
    events = namespace.api.items(f"/api/v1/namespaces/{namespace.name}/events")
    return [e["message"] for e in events if e["reason"] == reason and e["involvedObject"]["name"] == name]


def test_a_finished_object_is_served_while_it_is_annotated(namespace: Namespace) -> None:
    before = finished(namespace, "a")
    other = finished(namespace, "b")
    namespace.annotate("a", fetch=request("one"))
    first = namespace.job("a-fetch")
    run = run_of(namespace, "a-fetch")
    assert run["fetch"]["tokenSha256"] == token_digest("one")
    assert run["fetch"]["manifestSha256"] == before["adapter"]["manifestSha256"]
    assert list(run["secrets"]) == ["output"]
    assert 3500 < first["spec"]["activeDeadlineSeconds"] <= 3600
    [reference] = first["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["name"], reference["controller"]) == ("LoRAJob", "a", True)
    pod = namespace.run_pod("a-fetch")

    namespace.annotate("a", fetch=request("two"))
    uid = first["metadata"]["uid"]
    second = eventually(
        "another Job for another token",
        lambda: (job := fetch_job(namespace, "a")) and job["metadata"]["uid"] != uid and job,
    )
    assert run_of(namespace, "a-fetch")["fetch"]["tokenSha256"] == token_digest("two")
    eventually("the first pod is deleted", lambda: _is_ending(namespace, pod))

    namespace.annotate("a", fetch=None)
    wait_gone(namespace, "a")
    assert second is not None
    assert namespace.status("a") == before, "neither its status nor its attempts"
    assert namespace.status("b") == other
    assert fetch_job(namespace, "b") is None
    assert "FetchFailed" not in namespace.event_reasons("a")


def _is_ending(namespace: Namespace, pod: str) -> bool:
    found = namespace.get("pods", pod)
    return found is None or "deletionTimestamp" in found["metadata"]


def test_a_job_that_trains_goes_on_whatever_becomes_of_the_fetch_job(namespace: Namespace) -> None:
    namespace.apply(lorajob("t", preflight="Skip", suspend=True))
    namespace.wait_phase("t", "Suspended")
    namespace.annotate("t", fetch=request())
    uid = namespace.job("t-fetch")["metadata"]["uid"]
    namespace.patch_spec("t", suspend=False)
    namespace.run_pod("t-train")
    before = namespace.wait_running("t")
    namespace.end_pod(namespace.run_pod("t-fetch"), 1)
    namespace.end_pod(namespace.run_pod("t-fetch"), 1)
    eventually("it has failed", lambda: _failed(fetch_job(namespace, "t")))
    time.sleep(1)
    assert namespace.status("t") == before
    found = fetch_job(namespace, "t")
    assert found is not None
    assert found["metadata"]["uid"] == uid, "an ended one is not made again for the same request"
    namespace.end_pod(namespace.pods("t-train")[0]["metadata"]["name"], message=RESULT)
    namespace.wait_phase("t", "Succeeded")
    assert namespace.status("t")["attempts"] == 1
    assert fetch_job(namespace, "t") is not None, "it is still requested"
    namespace.annotate("t", fetch=None)
    wait_gone(namespace, "t")


def _failed(job: Json | None) -> bool:
    conditions = (job or {}).get("status", {}).get("conditions") or []
    return any(each["type"] == "Failed" and each["status"] == "True" for each in conditions)


def test_a_retry_leaves_the_fetch_job_alone(namespace: Namespace) -> None:
    namespace.apply(lorajob("r", preflight="Skip", retries=0))
    namespace.end_pod(namespace.run_pod("r-train"), 64, {"failure": {"reason": "LossDiverged", "message": "nan"}})
    namespace.wait_phase("r", "Failed")
    namespace.annotate("r", fetch=request())
    uid = namespace.job("r-fetch")["metadata"]["uid"]
    namespace.annotate("r", retry="1")
    eventually("it is retried", lambda: namespace.status("r").get("observedRetry") == "1")
    namespace.finish("r")
    namespace.wait_phase("r", "Succeeded")
    assert namespace.job("r-fetch")["metadata"]["uid"] == uid


def test_it_ends_when_the_request_expires(namespace: Namespace) -> None:
    finished(namespace, "e")
    namespace.annotate("e", fetch=request(seconds=4))
    assert 0 < namespace.job("e-fetch")["spec"]["activeDeadlineSeconds"] <= 4
    wait_gone(namespace, "e")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param("please", "isn't <SHA-256", id="malformed"),
        pytest.param(request(seconds=-60), "expired", id="expired"),
        pytest.param(request(seconds=25 * 3600), "more than 24 hours", id="too-far"),
    ],
)
def test_an_annotation_that_is_not_valid_is_ignored_with_a_warning(namespace: Namespace, value: str, why: str) -> None:
    before = finished(namespace, "i")
    namespace.annotate("i", fetch=value)
    [told] = eventually("the warning", lambda: warnings(namespace, "i", "FetchIgnored"))
    assert why in told
    assert fetch_job(namespace, "i") is None
    assert namespace.status("i") == before


def test_another_kind_and_a_deleted_object(namespace: Namespace) -> None:
    namespace.apply(adaptermerge("m", [{"uri": "s3://a/one"}, {"uri": "s3://a/two"}]))
    namespace.annotate("m", plural="adaptermerges", fetch=request())
    namespace.job("m-fetch")
    namespace.delete("adaptermerges", "m")
    wait_gone(namespace, "m")


def test_a_name_that_is_taken_is_reported_and_the_other_job_is_left_alone(namespace: Namespace) -> None:
    finished(namespace, "n")
    namespace.apply(adaptermerge("n", [{"uri": "s3://a/one"}, {"uri": "s3://a/two"}]))
    namespace.annotate("n", plural="adaptermerges", fetch=request("merge"))
    uid = namespace.job("n-fetch")["metadata"]["uid"]
    namespace.annotate("n", fetch=request("job"))
    [told] = eventually("the warning", lambda: warnings(namespace, "n", "FetchFailed"))
    assert "n-fetch exists and does not belong to this object" in told
    assert namespace.job("n-fetch")["metadata"]["uid"] == uid


@pytest.mark.slow
def test_a_new_leader_serves_what_was_requested_meanwhile(api: Api, own_operator: Make) -> None:
    operator = own_operator().start()
    namespace = make_namespace(api)
    for name in ("kept", "left"):
        finished(namespace, name)
    namespace.annotate("left", fetch=request())
    namespace.job("left-fetch")
    operator.kill()
    namespace.annotate("kept", fetch=request())
    namespace.annotate("left", fetch=None)
    operator.start()
    namespace.job("kept-fetch")
    wait_gone(namespace, "left")
