"""Plans and what is built from them: whole parts compared, and what no pod may ever have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunery_api.errors import InvalidSpec
from tunery_api.kinds import Kind
from tunery_api.runspec import CacheMount, DiskLimit
from tunery_api.validation import parse_adaptermerge, parse_lorajob
from tunery_operator.manifests.job import build_job
from tunery_operator.observed.metadata import Owner, parse_owner
from tunery_operator.planning.adaptermerge import plan_merge, unmergeable_methods
from tunery_operator.planning.adaptermerge import plan_report as plan_merge_report
from tunery_operator.planning.inputs import (
    AdapterInput,
    FailedInput,
    NoCheckpoint,
    ReadyInput,
    UnfinishedInput,
    checkpoint_input,
    lorajob_input,
    plain_input,
)
from tunery_operator.planning.job import JobPlan, Platform, Progress
from tunery_operator.planning.lorajob import ResolvedInputs, plan_preflight, plan_report, plan_train

from kit.operator.objects import adaptermerge, lorajob
from kit.operator.runs import files_in
from kit.operator.settings import settings

SETTINGS = settings(gpuMemory={"nvidia.com/gpu": "80Gi"})
PLATFORM = Platform(SETTINGS, Progress("https://tunery:8443", "PEM"))
DISK_FIELD = "spec.resources.ephemeralStorage"
META = {"namespace": "ns", "name": "x", "uid": "12345678-abcd", "generation": 1}
OWNER_REFERENCE = {
    "apiVersion": "tunery.dev/v1alpha1",
    "kind": "LoRAJob",
    "name": "x",
    "uid": "12345678-abcd",
    "controller": True,
    "blockOwnerDeletion": True,
}


def owner(labels: dict[str, str] | None = None) -> Owner:
    return parse_owner(Kind.LORAJOB, {"metadata": {**META, "labels": labels}})


def train(labels: dict[str, str] | None = None, **spec: Any) -> JobPlan:
    return plan_train(parse_lorajob(lorajob("x", **spec)), owner(labels), PLATFORM, ResolvedInputs(revision="0123abc"))


def train_on(template: dict[str, Any], **spec: Any) -> JobPlan:
    """Return the plan of a train Job with these values of trainer."""
    platform = Platform(settings(trainer=template), PLATFORM.progress)
    return plan_train(parse_lorajob(lorajob("x", **spec)), owner(), platform, ResolvedInputs())


def pod_of(plan: JobPlan) -> dict[str, Any]:
    spec: dict[str, Any] = build_job(plan)["spec"]["template"]["spec"]
    return spec


def test_the_train_job() -> None:
    plan = train({"kueue.x-k8s.io/queue-name": "q"}, retries=2, activeDeadlineSeconds=60)
    body = build_job(plan)
    assert body["metadata"] == {
        "name": "x-train",
        "namespace": "ns",
        "labels": {
            "app.kubernetes.io/managed-by": "tunery",
            "tunery.dev/kind": "lorajob",
            "tunery.dev/owner": "x",
            "tunery.dev/role": "train",
            "kueue.x-k8s.io/queue-name": "q",
        },
        "annotations": {"tunery.dev/settings": plan.settings, "tunery.dev/plan": plan.digest},
        "ownerReferences": [OWNER_REFERENCE],
    }
    template = body["spec"].pop("template")
    assert body["spec"] == {
        "suspend": False,
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 2,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [64]},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
    }
    own = ("app.kubernetes.io/managed-by", "tunery.dev/kind", "tunery.dev/owner", "tunery.dev/role")
    labels = {name: body["metadata"]["labels"][name] for name in own}
    assert template["metadata"]["labels"] == labels | {"tunery.dev/owner-uid": "12345678-abcd"}


def test_the_pod_meets_restricted_pod_security() -> None:
    pod = pod_of(train())
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "downwardAPI", "emptyDir", "secret", "projected", "persistentVolumeClaim"}


def test_labels_annotations_and_variables_of_the_platform_reach_the_pod() -> None:
    body = build_job(
        train_on(
            {
                "podLabels": {"cost-center": "42", "team.example.com/name": "ml"},
                "podAnnotations": {"karpenter.sh/do-not-disrupt": "true"},
                "env": {"HTTPS_PROXY": "http://proxy:3128", "HF_HOME": "/work/models"},
                "shmSize": "8Gi",
            }
        )
    )
    meta, pod = body["spec"]["template"]["metadata"], body["spec"]["template"]["spec"]
    assert {"cost-center": "42", "team.example.com/name": "ml", "tunery.dev/role": "train"}.items() <= meta[
        "labels"
    ].items()
    assert meta["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    variables = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    assert variables["HTTPS_PROXY"] == "http://proxy:3128"
    assert variables["HF_HOME"] == "/work/models"
    shm = next(v for v in pod["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    # The Job itself carries none of it: a queue or a policy reads the pods' own.
    assert "cost-center" not in body["metadata"]["labels"]


def test_where_progress_goes_to_is_not_the_platforms_to_change() -> None:
    pod = build_job(train_on({"env": {"KUBEFLOW_TRAINER_SERVER_URL": "https://elsewhere"}}))["spec"]["template"]["spec"]
    variables = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    assert variables["KUBEFLOW_TRAINER_SERVER_URL"] == "https://tunery:8443"


def test_chosen_prefixes_of_the_owners_labels_and_annotations_reach_the_pod() -> None:
    meta = META | {
        "labels": {"cost-center": "42", "app": "x", "tunery.dev/role": "preflight"},
        "annotations": {"team.example.com/owner": "ada", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
    }
    platform = Platform(settings(trainer={"inheritLabels": ["cost-", "team.example.com/", "tunery.dev/"]}))
    plan = plan_train(
        parse_lorajob(lorajob("x")), parse_owner(Kind.LORAJOB, {"metadata": meta}), platform, ResolvedInputs()
    )
    template = build_job(plan)["spec"]["template"]["metadata"]
    assert template["labels"]["cost-center"] == "42"
    assert template["labels"]["tunery.dev/role"] == "train"
    assert "app" not in template["labels"]
    assert template["annotations"].keys() == {"team.example.com/owner", "tunery.dev/run"}


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        pytest.param({}, {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532}, id="of-the-image"),
        pytest.param({"runAsUser": None, "runAsGroup": None, "fsGroup": None}, {}, id="of-the-cluster"),
        pytest.param({"runAsUser": 1000, "fsGroup": None}, {"runAsUser": 1000, "runAsGroup": 65532}, id="chosen"),
    ],
)
def test_the_ids_of_the_pod(security: dict[str, Any], expected: dict[str, int]) -> None:
    context = build_job(train_on({"securityContext": security}))["spec"]["template"]["spec"]["securityContext"]
    assert context == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
        **expected,
    }


def test_the_platform_places_pods_and_the_manifest_goes_before_it() -> None:
    template = {
        "nodeSelector": {"pool": "ml", "zone": "a"},
        "priorityClassName": "batch",
        "gpu": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}], "runtimeClassName": "nvidia"},
    }
    asked = {"nodeSelector": {"zone": "b"}, "tolerations": [{"key": "mine"}], "priorityClassName": "urgent"}
    pod = build_job(train_on(template, resources={"gpus": 1}, scheduling=asked))["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "ml", "zone": "b"}
    assert pod["tolerations"] == [{"key": "mine"}, {"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("urgent", "nvidia")
    on_cpu = build_job(train_on(template, resources={"gpus": 0}))["spec"]["template"]["spec"]
    assert on_cpu["priorityClassName"] == "batch"
    assert {"tolerations", "runtimeClassName"} & set(on_cpu) == set()


def test_the_platform_places_preflight() -> None:
    platform = Platform(settings(preflight={"nodeSelector": {"pool": "cpu"}, "priorityClassName": "low"}))
    asked = {"nodeSelector": {"gpu": "yes"}, "tolerations": [{"key": "mine"}], "runtimeClassName": "nvidia"}
    plan = plan_preflight(parse_lorajob(lorajob("x", scheduling=asked)), owner(), platform, ResolvedInputs())
    pod = pod_of(plan)
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"pool": "cpu"}, "low")
    assert pod["tolerations"] == [{"key": "mine"}]
    assert "runtimeClassName" not in pod


def test_secrets_are_files_and_never_variables() -> None:
    pod = pod_of(train())
    volume = next(v for v in pod["volumes"] if v["name"] == "secret-output")
    assert volume["secret"] == {"secretName": "s3", "optional": True}
    assert all("valueFrom" not in variable for variable in pod["containers"][0]["env"])
    assert "envFrom" not in pod["containers"][0]


def test_requests_equal_limits_and_name_the_gpu() -> None:
    resources = pod_of(train(resources={"gpus": 1, "memory": "8Gi"}))["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"] == {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "50Gi", "nvidia.com/gpu": "1"}


@pytest.mark.parametrize(
    ("needed", "asked", "disk"),
    [
        (None, {}, "50Gi"),
        (2**30, {}, "50Gi"),
        (50 * 2**30 + 1, {}, "51Gi"),
        (150 * 2**30, {}, "150Gi"),
        (150 * 2**30, {"ephemeralStorage": "50Gi"}, "50Gi"),
    ],
)
def test_the_disk_follows_what_preflight_counted(needed: int | None, asked: dict[str, str], disk: str) -> None:
    spec = parse_lorajob(lorajob("x", resources={"gpus": 1, **asked}))
    plan = plan_train(spec, owner(), PLATFORM, ResolvedInputs(disk_bytes=needed))
    assert pod_of(plan)["containers"][0]["resources"]["limits"]["ephemeral-storage"] == disk
    assert "ephemeralStorage" not in asked or plan.run.disk == DiskLimit(bytes=50 * 2**30, field=DISK_FIELD)


def test_preflight_knows_the_limit_of_its_own_disk() -> None:
    plan = plan_preflight(parse_lorajob(lorajob("x")), owner(), PLATFORM, ResolvedInputs(disk_bytes=2**40))
    field = "the platform's preflight.resources.ephemeralStorage"
    assert plan.run.disk == DiskLimit(bytes=20 * 2**30, field=field)


def test_claims_and_config_maps_are_mounted_read_only() -> None:
    plan = train(
        model={"uri": "pvc://models/llama"},
        dataset={"uri": "configmap://rows/d.jsonl", "evaluation": {"uri": "pvc://held-out/e.jsonl"}},
    )
    mounts = {m["mountPath"]: m for m in pod_of(plan)["containers"][0]["volumeMounts"]}
    for purpose in ("model", "dataset", "evaluation"):
        assert mounts[f"/mnt/tunery/{purpose}"]["readOnly"] is True
    assert plan.run.volumes == {
        "model": "/mnt/tunery/model",
        "dataset": "/mnt/tunery/dataset",
        "evaluation": "/mnt/tunery/evaluation",
    }


CACHED = Platform(settings(cache={"claimName": "shared", "maxSize": "500Gi"}))


@pytest.mark.parametrize(
    ("platform", "spec", "claim", "largest"),
    [
        (PLATFORM, {}, None, None),
        (PLATFORM, {"cache": {"claimName": "mine"}}, "mine", None),
        (CACHED, {}, "shared", 500 * 2**30),
        (CACHED, {"cache": {"claimName": "mine"}}, "mine", 500 * 2**30),
    ],
    ids=["none", "manifest", "platform", "manifest-first"],
)
def test_preflight_fills_the_cache_and_training_reads_it(
    platform: Platform, spec: dict[str, Any], claim: str | None, largest: int | None
) -> None:
    parsed = parse_lorajob(lorajob("x", **spec))
    for plan, read_only in (
        (plan_preflight(parsed, owner(), platform, ResolvedInputs()), False),
        (plan_train(parsed, owner(), platform, ResolvedInputs()), True),
    ):
        volumes = [v for v in pod_of(plan)["volumes"] if v["name"] == "volume-cache"]
        mounts = [m for m in pod_of(plan)["containers"][0]["volumeMounts"] if m["name"] == "volume-cache"]
        if claim is None:
            assert (volumes, mounts, plan.run.cache) == ([], [], None)
            continue
        only = {"readOnly": True} if read_only else {}
        assert volumes == [{"name": "volume-cache", "persistentVolumeClaim": {"claimName": claim, **only}}]
        assert mounts == [{"name": "volume-cache", "mountPath": "/mnt/tunery/cache", **only}]
        assert plan.run.cache == CacheMount(path="/mnt/tunery/cache", max_bytes=largest)
    report = plan_report(parsed, owner(), platform, ResolvedInputs())
    assert "volume-cache" not in {v["name"] for v in pod_of(report)["volumes"]}


def test_preflight_asks_for_no_gpu_and_no_queue() -> None:
    spec = parse_lorajob(lorajob("x", resources={"gpus": 1}, scheduling={"nodeSelector": {"gpu": "yes"}}))
    plan = plan_preflight(spec, owner({"kueue.x-k8s.io/queue-name": "q"}), PLATFORM, ResolvedInputs())
    pod = pod_of(plan)
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]
    assert "nodeSelector" not in pod
    assert "kueue.x-k8s.io/queue-name" not in build_job(plan)["metadata"]["labels"]
    assert pod["containers"][0]["command"] == ["python", "-m", "tunery_trainer", "preflight", "/etc/tunery/run.json"]
    # What it estimates is the GPU's memory all the same.
    assert plan.run.gpu_memory_bytes == 80 * 2**30


@pytest.mark.parametrize(
    ("preflight", "queue"), [({}, None), ({"queueName": "checks"}, "checks"), ({"queueFromOwner": True}, "team-a")]
)
def test_preflights_wait_in_the_queue_that_the_platform_says(preflight: dict[str, Any], queue: str | None) -> None:
    platform = PLATFORM._replace(settings=settings(preflight=preflight))
    whose = owner({"kueue.x-k8s.io/queue-name": "team-a"})
    job = build_job(plan_preflight(parse_lorajob(lorajob("x")), whose, platform, ResolvedInputs()))
    assert job["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") == queue


@pytest.mark.parametrize(
    ("selector", "gibibytes"),
    [
        pytest.param({}, 80, id="of the resource"),
        pytest.param({"nvidia.com/gpu.product": "A100-40"}, 40, id="told of the label"),
        pytest.param({"nvidia.com/gpu.product": "A100-40", "zone": "small"}, 20, id="the smallest of two labels"),
        pytest.param({"nvidia.com/gpu.memory": "16384", "zone": "small"}, 16, id="discovered"),
        pytest.param({"nvidia.com/gpu.product": "unheard-of", "nvidia.com/gpu.memory": "much"}, 80, id="nothing told"),
    ],
)
def test_the_memory_of_a_gpu_follows_from_the_nodes_that_are_selected(selector: dict[str, str], gibibytes: int) -> None:
    told = {"nvidia.com/gpu": "80Gi", "nvidia.com/gpu.product=A100-40": "40Gi", "zone=small": "20Gi"}
    platform = PLATFORM._replace(settings=settings(gpuMemory=told))
    spec = parse_lorajob(lorajob("x", resources={"gpus": 1}, scheduling={"nodeSelector": selector}))
    assert plan_train(spec, owner(), platform, ResolvedInputs()).run.gpu_memory_bytes == gibibytes * 2**30


def test_progress_is_reported_with_a_token_of_its_own() -> None:
    pod = pod_of(train())
    variables = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    assert variables["KUBEFLOW_TRAINER_SERVER_URL"] == "https://tunery:8443"
    token = next(v for v in pod["volumes"] if v["name"] == "progress-token")["projected"]["sources"][0]
    assert token["serviceAccountToken"]["audience"] == "tunery-progress"
    assert files_in(build_job(train()))["progress-ca.crt"] == "PEM"


def test_the_pod_finds_its_run_in_its_own_annotations() -> None:
    mount = next(m for m in pod_of(train())["containers"][0]["volumeMounts"] if m["name"] == "run")
    assert mount == {"name": "run", "mountPath": "/etc/tunery", "readOnly": True}
    run = json.loads(files_in(build_job(train()))["run.json"])
    assert run["modelRevision"] == "0123abc"
    assert run["checkpointUri"] == "s3://adapters/tunery-checkpoints/ns/x-12345678-abcd"


def test_without_an_output_the_platforms_is_used() -> None:
    platform = Platform(settings(defaultOutput={"uri": "s3://all/", "secretName": "shared"}))
    plan = plan_train(parse_lorajob(lorajob("x", output={})), owner(), platform, ResolvedInputs())
    assert plan.run.output_uri == "s3://all/ns/x/12345678-abcd"
    assert plan.run.secrets["output"].name == "shared"
    with pytest.raises(InvalidSpec, match=r"spec\.output\.uri: is required"):
        plan_train(parse_lorajob(lorajob("x", output={})), owner(), PLATFORM, ResolvedInputs())


def test_what_was_published_is_reported_again_on_cpu_from_the_same_run() -> None:
    spec = parse_lorajob(lorajob("x", resources={"gpus": 1}, model={"uri": "pvc://models/tiny"}))
    plan = plan_report(spec, owner({"kueue.x-k8s.io/queue-name": "q"}), PLATFORM, ResolvedInputs())
    body = build_job(plan)
    container = body["spec"]["template"]["spec"]["containers"][0]
    assert body["metadata"]["name"] == "x-report"
    assert body["metadata"]["labels"]["tunery.dev/role"] == "report"
    assert "kueue.x-k8s.io/queue-name" not in body["metadata"]["labels"]
    assert container["command"] == ["python", "-m", "tunery_trainer", "report", "/etc/tunery/run.json"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "4Gi", "ephemeral-storage": "20Gi"}
    assert (list(plan.run.secrets), plan.run.volumes) == (["output"], {}), "it opens nothing but the output"


def test_a_long_name_stays_within_limits() -> None:
    long = parse_owner(Kind.LORAJOB, {"metadata": {**META, "name": "n" * 200}})
    body = build_job(plan_train(parse_lorajob(lorajob("x")), long, PLATFORM, ResolvedInputs()))
    assert len(body["metadata"]["name"]) <= 63
    assert all(len(value) <= 63 for value in body["metadata"]["labels"].values())


def test_a_merge_opens_each_adapter_with_its_own_secret() -> None:
    done = {
        "metadata": {"uid": "u-1"},
        "spec": lorajob("one")["spec"],
        "status": {"phase": "Succeeded", "adapter": {"uri": "s3://a/one", "manifestSha256": "ab"}},
    }
    first = lorajob_input("one", done, None)
    assert isinstance(first, ReadyInput)
    spec = parse_adaptermerge(
        adaptermerge("m", [{"loraJobRef": {"name": "one"}}, {"uri": "s3://a/two", "secretRef": {"name": "other"}}])
    )
    merge_owner = parse_owner(Kind.ADAPTERMERGE, {"metadata": {**META, "name": "m"}})
    plan = plan_merge(spec, merge_owner, PLATFORM, [first, plain_input("s3://a/two")])
    assert plan.name == "m-merge"
    assert {purpose: secret.name for purpose, secret in plan.run.secrets.items()} == {
        "adapter-0": "s3",
        "adapter-1": "other",
    }
    assert [adapter.uri for adapter in plan.run.adapters] == ["s3://a/one", "s3://a/two"]


@pytest.mark.parametrize(
    ("method", "references", "fields", "how"),
    [
        pytest.param("PromptTuning", 1, {}, "cannot be merged", id="prompt-tuning"),
        pytest.param("PrefixTuning", 2, {}, "cannot be merged", id="prefix-tuning"),
        pytest.param("DoRA", 1, {}, "can only be merged alone, with into: Model", id="dora-into-adapter"),
        pytest.param("QDoRA", 2, {"into": "Model"}, "can only be merged alone, with into: Model", id="dora-of-two"),
        pytest.param("DoRA", 1, {"into": "Model"}, None, id="dora-alone"),
        pytest.param("IA3", 2, {}, None, id="ia3"),
        pytest.param("QLoRA", 2, {}, None, id="qlora"),
    ],
)
def test_a_merge_rejects_a_method_before_the_lorajob_has_ended(
    method: str, references: int, fields: dict[str, Any], how: str | None
) -> None:
    spec = parse_adaptermerge(adaptermerge("m", [{"loraJobRef": {"name": "y"}}] * references, **fields))
    body = {"spec": {}, "status": {"phase": "Training", "resolved": {"method": method}}}
    found = lorajob_input("y", body, None, unmergeable_methods(spec))
    if how is None:
        assert found == UnfinishedInput("y", "is Training")
    else:
        assert isinstance(found, FailedInput)
        assert (found.how, found.reason) == (f"has method {method}: its adapter {how}", "InvalidSpec")


def test_adapters_made_elsewhere_are_mounted_and_opened_as_models_are() -> None:
    """A claim is mounted to be read; the Secret of the output opens no hub, one of the adapter's own does."""
    uris = ["pvc://trained/one", "hf://me/two", "hf://me/three"]
    named = {"uri": uris[2], "secretRef": {"name": "hub"}, "sha256": "ab" * 32, "revision": "v1"}
    spec = parse_adaptermerge(adaptermerge("m", [{"uri": uris[0]}, {"uri": uris[1]}, named]))
    merge_owner = parse_owner(Kind.ADAPTERMERGE, {"metadata": {**META, "name": "m"}})
    plan = plan_merge(spec, merge_owner, PLATFORM, [plain_input(uri) for uri in uris])
    assert {name: secret.name for name, secret in plan.run.secrets.items() if name == "adapter-2"} == {
        "adapter-2": "hub"
    }
    assert "adapter-1" not in plan.run.secrets
    assert set(plan.run.volumes) == {"adapter-0"}
    volume = next(v for v in build_job(plan)["spec"]["template"]["spec"]["volumes"] if v["name"] == "volume-adapter-0")
    assert volume["persistentVolumeClaim"] == {"claimName": "trained", "readOnly": True}

    continued = parse_lorajob(lorajob("x", continueFrom={"uri": "pvc://trained/one"}))
    plan = plan_train(continued, owner(), PLATFORM, ResolvedInputs(plain_input("pvc://trained/one").adapter))
    assert set(plan.run.volumes) == {"continue-from"}


SAVED = {"checkpoint": {"uri": "s3://b/tunery-checkpoints/ns/x-u/step-000900", "step": 900}}
FOLDER = "s3://b/tunery-checkpoints/ns/x-u"
SOURCES: dict[str, tuple[dict[str, Any] | None, str | None, type[AdapterInput], str]] = {
    "none": (None, None, UnfinishedInput, "set resumeFrom.uri to its checkpoints"),
    "at work": ({"phase": "Training", **SAVED}, FOLDER, UnfinishedInput, "is Training"),
    "suspended": ({"phase": "Suspended", **SAVED}, FOLDER, UnfinishedInput, "is Suspended"),
    "failed": ({"phase": "Failed", **SAVED}, "s3://elsewhere", ReadyInput, FOLDER),
    "a trial's that were removed": (
        {"phase": "Stopped", "conditions": [{"type": "CheckpointSaved", "status": "False", "reason": "Removed"}]},
        FOLDER,
        NoCheckpoint,
        "was stopped, and its checkpoints were removed",
    ),
    "failed without a word": ({"phase": "Failed"}, FOLDER, ReadyInput, FOLDER),
    "failed without a place": ({"phase": "Failed"}, None, NoCheckpoint, "left no checkpoint"),
    "kept": ({"phase": "Succeeded", **SAVED}, FOLDER, ReadyInput, FOLDER),
    "succeeded": ({"phase": "Succeeded"}, FOLDER, NoCheckpoint, "continueFrom continues its adapter"),
}


@pytest.mark.parametrize(("status", "place", "kind", "says"), SOURCES.values(), ids=SOURCES.keys())
def test_what_a_lorajob_offers_to_resume_from(
    status: dict[str, Any] | None, place: str | None, kind: type[AdapterInput], says: str
) -> None:
    body = None if status is None else {"metadata": {"uid": "u"}, "status": status}
    found = checkpoint_input("x", body, place)
    assert isinstance(found, kind)
    assert says in str(found)


def test_checkpoints_are_opened_by_their_own_secret() -> None:
    source = {"uri": f"{FOLDER}/step-000900", "secretRef": {"name": "theirs"}}
    plan = plan_train(
        parse_lorajob(lorajob("x", resumeFrom=source)), owner(), PLATFORM, ResolvedInputs(resume=source["uri"])
    )
    assert plan.run.secrets["resume-from"].name == "theirs"
    assert plan.run.secrets["resume-from"].field == "spec.resumeFrom.secretRef"
    assert plan.run.resume_uri == source["uri"]
    assert plan.run.adapters == []


def test_a_merge_opens_what_it_is_measured_on() -> None:
    dataset = {"uri": "pvc://rows/test.jsonl", "secretRef": {"name": "data"}}
    model = {"uri": "s3://models/base", "secretRef": {"name": "base"}}
    spec = parse_adaptermerge(adaptermerge("m", [{"uri": "s3://a/one"}], model=model, evaluation={"dataset": dataset}))
    merge_owner = parse_owner(Kind.ADAPTERMERGE, {"metadata": {**META, "name": "m"}})
    plan = plan_merge(spec, merge_owner, PLATFORM, [plain_input("s3://a/one")])
    secrets = {purpose: (secret.name, secret.field) for purpose, secret in plan.run.secrets.items()}
    assert secrets["dataset"] == ("data", "spec.evaluation.dataset.secretRef")
    assert secrets["model"] == ("base", "spec.model.secretRef")
    assert list(plan.run.volumes) == ["dataset"]
    assert [mount.claim for mount in plan.volumes] == ["rows"]
    assert "dataset" not in plan_merge_report(spec, merge_owner, PLATFORM).run.secrets, (
        "a report opens the output alone"
    )


def test_the_digest_of_a_plan_follows_the_platform_and_not_the_run() -> None:
    own = train().digest
    assert own == train(training={"maxSteps": 7}).digest == train({"kueue.x-k8s.io/queue-name": "q"}).digest
    assert own == train_on({}).digest
    others = [
        train_on({"env": {"HTTPS_PROXY": "http://proxy:3128"}}),
        train_on({"podLabels": {"team": "ml"}}),
        train_on({"securityContext": {"runAsUser": None}}),
        train_on({"caBundle": {"configMap": "corporate"}}),
        train_on({"tolerations": [{"key": "pool", "operator": "Exists"}]}),
        train(resources={"gpus": 0, "memory": "2Gi"}),
    ]
    assert len({own, *(plan.digest for plan in others)}) == len(others) + 1
