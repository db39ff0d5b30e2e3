"""The Job that serves results: its plan, its manifest, and when an object is reconciled because of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.fetching import MAX_FETCH_SECONDS, FetchRequest
from tunery_api.kinds import JOB_KINDS, Kind
from tunery_operator.manifests.job import build_job
from tunery_operator.observed.metadata import parse_owner
from tunery_operator.planning.fetch import plan_fetch
from tunery_operator.planning.job import JobPlan, Platform, Progress
from tunery_operator.runtime.cache import Cache
from unit.operator.runtime.test_cache import NOON, ONE, owner

from kit.operator.api import Json
from kit.operator.objects import adaptermerge, batchinference, lorajob, lorasweep
from kit.operator.runs import files_in
from kit.operator.settings import settings

PLATFORM = Platform(settings(), Progress("https://tunery:8443", "PEM"))
REQUEST = FetchRequest("ab" * 32, datetime(2026, 12, 2, 13, tzinfo=UTC))
META = {"namespace": "ns", "name": "x", "uid": "12345678-abcd", "generation": 1}
SECRET: Json = {"output": {"uri": "s3://adapters/x", "secretRef": {"name": "s3"}}}
BODIES: dict[Kind, Json] = {
    Kind.LORAJOB: lorajob("x", dataset={"uri": "configmap://rows/d.jsonl", "secretRef": {"name": "data"}}),
    Kind.ADAPTERMERGE: adaptermerge("x", [{"uri": "s3://a/one", "secretRef": {"name": "other"}}], **SECRET),
    Kind.BATCHINFERENCE: batchinference("x", apiKeySecretRef={"name": "keys", "key": "nightly"}, **SECRET),
    Kind.LORASWEEP: lorasweep("x"),
}


def planned(body: Json, platform: Platform = PLATFORM, labels: dict[str, str] | None = None) -> JobPlan:
    whole = {**body, "metadata": {**META, "labels": labels}}
    return plan_fetch(whole, parse_owner(Kind(body["kind"]), whole), platform, REQUEST, 3599.2)


def pod_of(plan: JobPlan) -> Json:
    spec: Json = build_job(plan)["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_the_job_has_the_output_secret_alone_and_ends_with_the_request(kind: Kind) -> None:
    plan = planned(BODIES[kind], labels={"kueue.x-k8s.io/queue-name": "q"})
    body, pod = build_job(plan), pod_of(plan)
    spec, [container] = body["spec"], pod["containers"]
    assert body["metadata"]["name"] == "x-fetch"
    assert body["metadata"]["labels"]["tunery.dev/role"] == "fetch"
    assert "kueue.x-k8s.io/queue-name" not in body["metadata"]["labels"], "it takes no quota of training"
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (3600, MAX_FETCH_SECONDS)
    assert (spec["backoffLimit"], spec["suspend"], spec["completions"]) == (1, False, 1)
    assert container["command"] == ["python", "-m", "tunery_server", "fetch", "/etc/tunery/run.json"]
    assert container["image"] == "example/server:1"
    assert "ports" not in container
    assert container["resources"]["limits"] == {"cpu": "250m", "memory": "256Mi", "ephemeral-storage": "256Mi"}
    assert {each["name"] for each in pod["volumes"]} == {"run", "work", "tmp", "shm", "secret-output"}
    [secret] = [each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each]
    assert secret == "s3"
    assert not [each for each in container["env"] if "KUBEFLOW" in each["name"]], "it reports no progress"
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_the_run_names_what_is_served_and_no_token(kind: Kind) -> None:
    run = json.loads(files_in(build_job(planned(BODIES[kind])))["run.json"])
    uri = BODIES[kind]["spec"]["output"]["uri"]
    bucket = uri.removeprefix("s3://").partition("/")[0]
    assert (run["outputUri"], run["fetch"]) == (uri, {"tokenSha256": "ab" * 32})
    assert run["reportUri"] == f"s3://{bucket}/tunery-reports/ns/x-12345678-abcd"
    assert ("checkpointUri" in run) == (kind is Kind.BATCHINFERENCE), "the list of invalid lines is there"
    assert set(run["secrets"]) == {"output"}


@pytest.mark.parametrize("field", ["adapter", "output", "rejectedAdapter"])
def test_what_the_status_has_published_is_served_by_its_digest(field: str) -> None:
    published = {"uri": "s3://adapters/elsewhere", "manifestSha256": "cd" * 32, "sizeBytes": 5}
    plan = planned({**BODIES[Kind.LORAJOB], "status": {"phase": "Succeeded", field: published}})
    assert plan.run.fetch is not None
    assert (plan.run.fetch.result_uri, plan.run.fetch.manifest_sha256) == (
        published["uri"],
        published["manifestSha256"],
    )


def test_a_spec_that_is_invalid_today_still_has_results() -> None:
    body = lorajob("x", training={"learningRate": "none"}, scheduling={"serviceAccountName": "mine"})
    assert pod_of(planned(body))["serviceAccountName"] == "mine"


@pytest.mark.parametrize(
    ("body", "platform", "why"),
    [
        pytest.param(lorajob("x", output={"uri": "ftp://x"}), PLATFORM, "spec.uri", id="no-storage"),
        pytest.param(lorajob("x", output={}), PLATFORM, "spec.output.uri", id="no-output"),
        pytest.param(
            lorajob("x"), Platform(settings(serving={"server": {"image": ""}})), "serving.server.image", id="no-image"
        ),
    ],
)
def test_without_an_output_or_an_image_there_is_no_plan(body: Json, platform: Platform, why: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        planned(body, platform)
    assert why in str(caught.value)


def test_the_queue_of_preflights_is_its_queue() -> None:
    platform = Platform(settings(preflight={"queueName": "cpu"}))
    assert build_job(planned(lorajob("x"), platform))["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "cpu"


def test_a_job_of_another_request_has_another_mark() -> None:
    later = REQUEST._replace(expires=REQUEST.expires + timedelta(hours=1))
    marks = {
        build_job(plan_fetch(body, parse_owner(Kind.LORAJOB, body), PLATFORM, request, 60))["metadata"]["annotations"][
            "tunery.dev/settings"
        ]
        for body in [{**lorajob("x"), "metadata": META}]
        for request in (REQUEST, REQUEST._replace(token_sha256="cd" * 32), later)
    }
    assert len(marks) == 3


class TestCache:
    """Which objects are reconciled."""

    def annotated(self, version: int, value: str | None, **more: Any) -> Json:
        body = owner(version, "Succeeded", **more)
        body["metadata"]["annotations"] = {"tunery.dev/fetch": value} if value else {}
        return body

    def test_an_ended_object_is_reconciled_when_its_annotation_changes(self) -> None:
        cache = Cache(clock=lambda: NOON)
        cache.put_object(Kind.LORAJOB, self.annotated(1, None))
        for version, (value, keys) in enumerate(
            [("a", {ONE}), ("a", set()), ("b", {ONE}), (None, {ONE}), (None, set())]
        ):
            assert cache.put_object(Kind.LORAJOB, self.annotated(version + 2, value)) == keys, (version, value)
