"""A BatchInference in tables: its plans and what is built of them, what it waits for, what its pod says."""

from __future__ import annotations

from typing import Any

import pytest

from tunery_api.batchinference import BatchInferenceStatus
from tunery_api.errors import InvalidSpec
from tunery_api.kinds import ADAPTER_KINDS, JOB_KINDS, Kind
from tunery_api.runspec import AnswersReport, TrainerStatus
from tunery_api.status import Phase
from tunery_api.validation import parse_batchinference
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.manifests.job import build_job
from tunery_operator.observed.metadata import Key, Owner, parse_owner
from tunery_operator.observed.pod import PodView
from tunery_operator.planning.batchinference import plan_batch, plan_report
from tunery_operator.planning.inputs import ReadyServer, UnfinishedInput
from tunery_operator.planning.job import JobPlan, Platform, Progress
from tunery_operator.runtime.cache import Cache
from tunery_operator.status.compute import compute_status

from kit.operator.cached import delete_object
from kit.operator.objects import batchinference
from kit.operator.settings import settings
from kit.operator.statuskit import condition, ended, job, message_of, running, snapshot

Json = dict[str, Any]
SETTINGS = settings(image={"pullPolicy": "Always", "pullSecrets": ["registry"]})
PLATFORM = Platform(SETTINGS, Progress("https://tunery:8443", "PEM"))


def owner(labels: dict[str, str] | None = None) -> Owner:
    meta = {"namespace": "ns", "name": "b", "uid": "u-1", "generation": 1, "labels": labels}
    return parse_owner(Kind.BATCHINFERENCE, {"metadata": meta})


def planned(labels: dict[str, str] | None = None, platform: Platform = PLATFORM, **spec: Any) -> JobPlan:
    return plan_batch(parse_batchinference(batchinference("b", **spec)), owner(labels), platform)


def pod_of(plan: JobPlan) -> Json:
    spec: Json = build_job(plan)["spec"]["template"]["spec"]
    return spec


def test_the_job_runs_the_small_images_program_with_what_the_spec_asks_for() -> None:
    plan = planned({"kueue.x-k8s.io/queue-name": "q"}, retries=2, resources={"memory": "2Gi"})
    body, pod = build_job(plan), pod_of(plan)
    assert (body["metadata"]["name"], body["spec"]["backoffLimit"]) == ("b-batch", 2)
    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    [container] = pod["containers"]
    assert container["name"] == body["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == "batch"
    assert container["command"] == ["python", "-m", "tunery_server", "batch", "/etc/tunery/run.json"]
    assert (container["image"], container["imagePullPolicy"]) == ("example/server:1", "Always")
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi", "ephemeral-storage": "10Gi"}
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["automountServiceAccountToken"] is False


def test_the_run_says_whom_to_ask_and_where_parts_are_kept() -> None:
    run = planned(apiKeySecretRef={"name": "keys", "key": "nightly"}).run
    assert run.server_url == "http://support-server.ns.svc:8000/v1"
    assert run.output_uri == "s3://answers/b"
    assert run.checkpoint_uri == "s3://answers/tunery-checkpoints/ns/b-u-1"
    assert run.image == "example/server:1"
    assert {purpose: (secret.name, secret.field) for purpose, secret in run.secrets.items()} == {
        "output": ("s3", "spec.output.secretRef"),
        "input": ("data", "spec.input.secretRef"),
        "api-key": ("keys", "spec.apiKeySecretRef"),
    }


def test_of_the_servers_api_keys_only_its_own_is_mounted() -> None:
    volumes = pod_of(planned(apiKeySecretRef={"name": "keys", "key": "nightly"}))["volumes"]
    own = {"secretName": "keys", "optional": True, "items": [{"key": "nightly", "path": "nightly"}]}
    assert {"name": "secret-api-key", "secret": own} in volumes
    assert {"name": "secret-output", "secret": {"secretName": "s3", "optional": True}} in volumes


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("pvc://rows/in.jsonl", {"persistentVolumeClaim": {"claimName": "rows", "readOnly": True}}),
        ("configmap://rows/in.jsonl", {"configMap": {"name": "rows", "optional": True}}),
    ],
)
def test_an_input_on_a_volume_is_mounted_read_only(uri: str, source: Json) -> None:
    plan = planned(input={"uri": uri})
    assert {"name": "volume-input", **source} in pod_of(plan)["volumes"]
    assert plan.run.volumes == {"input": "/mnt/tunery/input"}


def test_the_report_opens_the_output_and_nothing_else_with_the_platforms_resources() -> None:
    spec = parse_batchinference(batchinference("b", apiKeySecretRef={"name": "keys", "key": "k"}))
    plan = plan_report(spec, owner(), PLATFORM)
    [container] = pod_of(plan)["containers"]
    assert container["command"][2:4] == ["tunery_server", "report"]
    assert (plan.name, container["image"], set(plan.run.secrets)) == ("b-report", "example/server:1", {"output"})
    assert container["resources"]["limits"]["memory"] == SETTINGS.preflight.resources.memory
    assert plan.run.batch_inference == spec


def test_a_platform_that_serves_nothing_says_so() -> None:
    platform = Platform(settings(serving={"server": {"image": ""}}))
    with pytest.raises(InvalidSpec, match=r"serving\.server\.image is empty"):
        planned(platform=platform)


@pytest.mark.parametrize("resources", [None, {"memory": "2Gi"}])
def test_it_has_no_gpu_whatever_its_manifest_says_of_resources(resources: Json | None) -> None:
    body = batchinference("b", **({"resources": resources} if resources else {}))
    assert ManagedObject(owner(), body).resources == (0, "")
    job = {"spec": {"resources": {"memory": "2Gi"}}}
    other = parse_owner(Kind.LORAJOB, {"metadata": {"namespace": "ns", "name": "j", "uid": "u"}})
    assert ManagedObject(other, job).resources[0] == 1, "of other kinds the default of a block is the block's own"


def test_it_runs_a_job_and_offers_no_adapter() -> None:
    assert Kind.BATCHINFERENCE in JOB_KINDS
    assert set(ADAPTER_KINDS) == {Kind.LORAJOB, Kind.ADAPTERMERGE, Kind.LORASWEEP}


# What it waits for


def server(phase: str, available: str, version: int) -> Json:
    conditions = [{"type": "Available", "status": available}]
    meta = {"namespace": "ns", "name": "support", "uid": "s", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}, "status": {"phase": phase, "conditions": conditions}}


def test_it_is_woken_as_soon_as_its_server_answers_whatever_the_servers_phase() -> None:
    cache, batch, asked = Cache(), Key(Kind.BATCHINFERENCE, "ns", "b"), Key(Kind.ADAPTERSERVER, "ns", "support")
    meta = {"namespace": "ns", "name": "b", "uid": "u-1", "resourceVersion": "1"}
    cache.put_object(Kind.BATCHINFERENCE, {"metadata": meta, "spec": {"serverRef": {"name": "support"}}})
    enqueued = [
        batch in cache.put_object(Kind.ADAPTERSERVER, server(phase, available, number))
        for number, (phase, available) in enumerate(
            [
                ("Starting", "False"),
                ("Invalid", "False"),
                ("Invalid", "False"),
                ("Invalid", "True"),
                ("Invalid", "True"),
            ],
            start=2,
        )
    ]
    assert enqueued == [True, True, False, True, False]
    assert batch in delete_object(cache, asked)


# What its pod says

COUNTED = AnswersReport(
    lines=200,
    answered=99,
    errors=1,
    prompt_tokens=10,
    completion_tokens=20,
    answered_by=[{"name": "bot", "lines": 99}],  # type: ignore[list-item]
)
OUTPUT = {"uri": "s3://answers/b", "manifestSha256": "cd" * 32, "sizeBytes": 5}


def status_for(*pods: PodView, **changes: Any) -> Json:
    status = compute_status(snapshot(*pods, kind=Kind.BATCHINFERENCE, owner=owner(), **changes))
    BatchInferenceStatus.model_validate(status)
    return status


@pytest.mark.parametrize(
    ("inputs", "phase", "message", "hint"),
    [
        (
            UnfinishedInput("support", "does not exist yet", exists=False, kind=Kind.ADAPTERSERVER),
            "Waiting",
            "support does",
            "Create that AdapterServer",
        ),
        (
            UnfinishedInput("support", "is Stopped", kind=Kind.ADAPTERSERVER),
            "Waiting",
            "AdapterServer support is Stopped",
            "kubectl scale adapterserver support -n ns --replicas=1",
        ),
        (
            UnfinishedInput("support", "is Invalid", kind=Kind.ADAPTERSERVER),
            "Waiting",
            "AdapterServer support is Invalid",
            "kubectl describe adapterserver support -n ns",
        ),
        (UnfinishedInput("support", "is Starting", kind=Kind.ADAPTERSERVER), "Waiting", "support is Starting", ""),
        (ReadyServer("support"), "Pending", "", ""),
    ],
)
def test_a_server_is_waited_for(inputs: UnfinishedInput | ReadyServer, phase: str, message: str, hint: str) -> None:
    status = status_for(main=None, inputs=(inputs,))
    found = next(item for item in status["conditions"] if item["type"] == "InputsReady")
    assert status["phase"] == phase
    assert message in found.get("message", "")
    assert found["status"] == str(isinstance(inputs, ReadyServer))
    failure = status.get("failure") or {"hint": ""}
    assert failure.get("reason") == ("ServerUnavailable" if hint else None)
    assert hint in failure["hint"]


@pytest.mark.parametrize(
    ("said", "phase", "reason"),
    [
        (Phase.STARTING, "Starting", "PodStarted"),
        (Phase.ANSWERING, "Answering", "Answering"),
        (None, "Starting", "PodStarted"),
        (Phase.UPLOADING, "Uploading", "Uploading"),
        (Phase.SUCCEEDED, "Uploading", "Uploading"),
    ],
)
def test_the_phase_is_what_the_pod_says_it_does(said: Phase | None, phase: str, reason: str) -> None:
    status = status_for(running(), progress=TrainerStatus(phase=said))
    assert (status["phase"], condition(status, "Running")) == (phase, ("True", reason))


def test_what_the_pod_does_beside_its_phase_is_told_in_its_own_words() -> None:
    report = TrainerStatus(phase=Phase.STARTING, doing="waits up to 10 seconds for the server")
    status = status_for(running(), progress=report)
    assert status["phase"] == "Starting"
    assert message_of(status, "Running").endswith("on node gpu-1 waits up to 10 seconds for the server")


def test_reports_become_counts_and_progress() -> None:
    status = status_for(running(), progress=TrainerStatus(phase=Phase.ANSWERING, answers=COUNTED))
    assert (status["lines"], status["answered"], status["errors"]) == (200, 99, 1)
    assert (status["promptTokens"], status["completionTokens"]) == (10, 20)
    assert status["answeredBy"] == [{"name": "bot", "lines": 99}]
    assert status["progress"] == {"percent": 50, "percentText": "50%", "step": 100, "totalSteps": 200}
    later = status_for(running(), status=status, progress=TrainerStatus(phase=Phase.STARTING))
    assert later["answered"] == 99, "a pod that begins anew has not counted yet"
    assert "metrics" not in later


def test_another_kinds_words_do_not_get_into_its_status() -> None:
    report = TrainerStatus.model_validate(
        {
            "metrics": [{"name": "loss", "value": "1"}],
            "checkpoint": {"uri": "s3://a/step-1", "step": 1},
            "evaluations": [{"step": 1, "loss": "1"}],
        }
    )
    status = status_for(running(), progress=report)
    assert not {"metrics", "checkpoint", "evaluations"} & status.keys()
    assert condition(status, "CheckpointSaved") is None


def test_published_answers_are_its_result() -> None:
    done = ended(says={"output": OUTPUT, "answers": COUNTED.model_dump(mode="json", by_alias=True, exclude_none=True)})
    status = status_for(done, train=job(complete=True))
    assert (status["phase"], status["output"]) == ("Succeeded", OUTPUT)
    assert condition(status, "OutputUploaded") == ("True", "OutputUploaded")
    assert condition(status, "AdapterUploaded") is None


def test_a_pod_that_published_an_adapter_has_not_done_what_was_asked_for() -> None:
    adapter = {"uri": "s3://adapters/x", "manifestSha256": "ab" * 32, "sizeBytes": 1}
    status = status_for(ended(says={"adapter": adapter}), train=job(complete=True))
    assert condition(status, "Running") == ("False", "ResultLookup")


@pytest.mark.parametrize(
    ("reason", "code", "phase"),
    [("RequestsFailed", 64, "Failed"), ("InputInvalid", 64, "Failed"), ("ServerAccessDenied", 64, "Failed")],
)
def test_what_was_reached_is_told_beside_the_failure(reason: str, code: int, phase: str) -> None:
    words = {
        "failure": {"reason": reason, "message": "line 7"},
        "answers": {"lines": 200, "answered": 150, "errors": 3},
    }
    status = status_for(ended(code=code, says=words), train=job(failed_reason="PodFailurePolicy"))
    assert (status["phase"], status["failure"]["reason"], status["answered"]) == (phase, reason, 150)
    assert "kubectl annotate batchinference b" in status["failure"]["hint"]


def test_which_attempt_failed_is_told_and_not_that_it_was_the_last_as_it_can_be_tried_again() -> None:
    words = {"failure": {"reason": "InputInvalid", "message": "line 7"}}
    failed = job(failed_reason="PodFailurePolicy")
    status = status_for(ended(code=64, says=words), train=failed, status={"attempts": 2})
    assert status["failure"]["message"] == f"line 7 (attempt {status['attempts']})"
