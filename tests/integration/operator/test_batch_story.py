"""A BatchInference from apply to its end, against a real API server; the tests play kubelets and pods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kit.operator.api import Json, eventually
from kit.operator.live_server import SERVERS
from kit.operator.objects import Namespace, adapterserver, batchinference
from kit.operator.poster import Poster
from kit.operator.process import OperatorProcess
from kit.operator.runs import run_of

BATCHES = "batchinferences"
COUNTS: Json = {
    "lines": 200,
    "answered": 99,
    "errors": 1,
    "promptTokens": 1000,
    "completionTokens": 2000,
    "answeredBy": [{"name": "bot", "manifestSha256": "ab" * 32, "lines": 99}],
}
ANSWERED: Json = {
    "output": {"uri": "s3://answers/b", "manifestSha256": "cd" * 32, "sizeBytes": 5},
    "answers": {**COUNTS, "answered": 199},
}

Serve = Callable[[], None]


@pytest.fixture
def serve(namespace: Namespace) -> Serve:
    """Brings the server `support` so far that it answers."""

    def serve() -> None:
        eventually("the namespace's ServiceAccount", lambda: namespace.get("serviceaccounts", "default"))
        if namespace.get(SERVERS, "support") is None:
            namespace.apply(adapterserver("support"))
        [pod] = eventually("its pod", lambda: namespace.api.items(namespace.path("pods")))
        namespace.serve_pod(pod["metadata"]["name"])
        eventually("it answers", lambda: namespace.condition("support", "Available", SERVERS).get("status") == "True")

    return serve


def test_a_batch_waits_for_its_server_then_asks(
    namespace: Namespace, operator: OperatorProcess, progress_tls: Path, serve: Serve
) -> None:
    made = namespace.apply(batchinference("b"))
    namespace.wait_phase("b", "Waiting", BATCHES)
    condition = namespace.condition("b", "InputsReady", BATCHES)
    assert (condition["reason"], condition["message"]) == ("InputMissing", "AdapterServer support does not exist yet")
    namespace.apply(adapterserver("support"))
    eventually(
        "it is told why",
        lambda: namespace.condition("b", "InputsReady", BATCHES)["message"] == "AdapterServer support is Starting",
    )
    assert namespace.get("jobs", "b-batch") is None
    serve()
    run = run_of(namespace, "b-batch")
    assert run["serverUrl"] == f"http://support-server.{namespace.name}.svc:8000/v1"
    parts = f"s3://answers/tunery-checkpoints/{namespace.name}/b-{made['metadata']['uid']}"
    assert run["checkpointUri"] == parts, "where the rule of the bucket for checkpoints holds"
    assert {purpose: secret["name"] for purpose, secret in run["secrets"].items()} == {"input": "data", "output": "s3"}

    pod = namespace.run_pod("b-batch")
    namespace.wait_running("b", BATCHES)
    poster = Poster(namespace, operator, progress_tls, pod)
    report = {"progressPercentage": 50, "step": 100, "totalSteps": 200, "phase": "Answering", "answers": COUNTS}
    assert poster.post(poster.token(), {"trainerStatus": {**report, "estimatedRemainingSeconds": 90}}) == 200
    status = namespace.wait_phase("b", "Answering", BATCHES)
    assert {name: status[name] for name in COUNTS} == COUNTS
    assert (status["progress"]["percentText"], status["progress"]["eta"]) == ("50%", "1m30s")

    # From here on the pod itself tells how the server does.
    namespace.delete(SERVERS, "support")
    namespace.end_pod(pod, message=ANSWERED)
    status = namespace.wait_phase("b", "Succeeded", BATCHES)
    assert status["output"] == ANSWERED["output"]
    assert (status["answered"], status["errors"], status["progress"]["percentText"]) == (199, 1, "100%")
    assert namespace.condition("b", "OutputUploaded", BATCHES)["status"] == "True"
    assert namespace.condition("b", "AdapterUploaded", BATCHES) == {}
    told = {"WaitingForInputs", "Answering", "OutputUploaded", "Succeeded"}
    eventually("events tell it, a moment after the status", lambda: told <= set(namespace.event_reasons("b")))


def test_a_misspelt_server_is_told_with_what_was_meant_until_one_of_that_name_answers(
    namespace: Namespace, operator: OperatorProcess, serve: Serve
) -> None:
    serve()
    namespace.apply(batchinference("b", serverRef={"name": "suport"}))
    status = namespace.wait_phase("b", "Waiting", BATCHES)
    text = "AdapterServer suport does not exist yet; did you mean support?"
    assert namespace.condition("b", "InputsReady", BATCHES)["message"] == text
    assert (status["failure"]["reason"], status["failure"]["message"]) == ("ServerUnavailable", text)
    assert [each["action"] for each in status["failure"]["remedies"]] == ["Retry", "Recreate"]
    assert "in a new BatchInference: name another AdapterServer" in status["failure"]["hint"]
    namespace.apply(adapterserver("suport"))
    eventually("it is there", lambda: "failure" not in (namespace.get(BATCHES, "b") or {})["status"])
    assert namespace.condition("b", "InputsReady", BATCHES)["message"].startswith("AdapterServer suport is ")


@pytest.mark.slow
def test_what_a_lost_pod_has_published_is_said_again_by_the_small_image(namespace: Namespace, serve: Serve) -> None:
    serve()
    namespace.apply(batchinference("b"))
    namespace.end_pod(namespace.run_pod("b-batch"), message="")
    eventually("the report Job", lambda: namespace.get("jobs", "b-report"))
    [container] = namespace.job("b-report")["spec"]["template"]["spec"]["containers"]
    assert container["command"][2:4] == ["tunery_server", "report"]
    [asks] = namespace.job("b-batch")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == asks["image"]
    assert set(run_of(namespace, "b-report")["secrets"]) == {"output"}
    namespace.end_pod(namespace.run_pod("b-report"), message=ANSWERED)
    assert namespace.wait_phase("b", "Succeeded", BATCHES)["answered"] == 199


@pytest.mark.slow
def test_a_batch_that_failed_is_tried_again_on_request(namespace: Namespace, serve: Serve) -> None:
    serve()
    namespace.apply(batchinference("b"))
    first = namespace.job("b-batch")["metadata"]["uid"]
    message = "3 of the first 10 lines ended in an error, spec.maxErrors is 0"
    said = {"failure": {"reason": "RequestsFailed", "message": message}, "answers": COUNTS}
    namespace.end_pod(namespace.run_pod("b-batch"), 64, said)
    status = namespace.wait_phase("b", "Failed", BATCHES)
    assert status["failure"]["reason"] == "RequestsFailed"
    assert "kubectl annotate batchinference b" in status["failure"]["hint"]
    assert (status["answered"], status["errors"]) == (99, 1)
    path = namespace.path(BATCHES, "b")
    namespace.api.patch(path, {"metadata": {"annotations": {"tunery.dev/retry": "1"}}})
    eventually(
        "another Job",
        lambda: (namespace.get("jobs", "b-batch") or {"metadata": {"uid": first}})["metadata"]["uid"] != first,
    )
    namespace.end_pod(namespace.run_pod("b-batch"), message=ANSWERED)
    assert namespace.wait_phase("b", "Succeeded", BATCHES)["attempts"] == 2


@pytest.mark.slow
def test_a_suspended_batch_has_no_pod_and_waits_for_a_server_that_has_gone_meanwhile(
    namespace: Namespace, serve: Serve
) -> None:
    serve()
    namespace.apply(batchinference("b"))
    pod = namespace.run_pod("b-batch", node="n1")
    namespace.wait_running("b", BATCHES)
    namespace.patch_spec("b", BATCHES, suspend=True)
    namespace.wait_phase("b", "Suspending", BATCHES)
    namespace.stop_pod(pod)
    namespace.wait_phase("b", "Suspended", BATCHES)
    namespace.patch_spec("b", BATCHES, suspend=False)
    namespace.end_pod(namespace.run_pod("b-batch"), message=ANSWERED)
    namespace.wait_phase("b", "Succeeded", BATCHES)
