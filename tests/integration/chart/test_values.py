"""Values that values.schema.json refuses, with their place; and those that are taken and read."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from kit.chart.rendering import CHART, Helm, HelmError, Rendered

PLACES = ("trainer.tolerations", "trainer.gpu.tolerations", "preflight.tolerations", "operator.tolerations")
LONG = "a" * 64

TOLERATIONS_THAT_KUBERNETES_REFUSES: tuple[dict[str, Any], ...] = (
    {"key": "a b", "operator": "Exists"},
    {"key": f"example.com/{LONG}", "operator": "Exists"},
    {"key": "", "operator": "Equal", "value": "x"},
    {"effect": "NoSchedule"},
    {"key": "gpu", "operator": "Exists", "value": "x"},
    {"key": "gpu", "operator": "Exists", "tolerationSeconds": 3},
    {"key": "gpu", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 3},
)

WRONG: dict[str, Any] = {
    **{place: list(TOLERATIONS_THAT_KUBERNETES_REFUSES) for place in PLACES},
    "nameOverride": "Tunery",
    "fullnameOverride": "1.tunery",
    "operator.resources.limits": {"cpu": "2Gi", "memory": "512m", "ephemeral-storage": "64"},
    "operator.resources.requests": {"cpu": 500, "memory": 512},
    "trainer.inheritLabels": ["batch.kubernetes.io/", "job-name", "controller-uid", "kubectl.kubernetes.io/"],
    "image.registry": "https://registry.example.com",
    "operator.image": "registry:5000/team/operator",
    "trainer.image": "registry/Trainer:v1",
    "serving.server.image": "https://registry/server:v1",
    "serving.engine.image": "vllm/vllm-openai:latest",
    "trainer.shmSize": "1",
    "trainer.distributed.resources": {"rdma/hca_shared": "a few"},
    "serving.server.resources.memory": "512",
    "defaultOutput.uri": "s3://adapters/../x",
    "test.outputUri": "s3://adapters/{namespace}",
    "cache.maxSize": "500m",
    "serving.server.resources.cpu": "500",
    "preflight.resources": {"cpu": "4Gi", "memory": "4", "ephemeralStorage": "0Gi"},
    "gpuMemory.nvidia\\.com/gpu": "80",
    "trainer.env.PYTHONWARNINGS": "error",
    "progress.certificate.days": 0,
    "progress.certificate.certManager": {"enabled": True, "issuerRef": {"name": ""}},
    "admissionPolicy.validationActions": ["Deny", "Warn"],
    "admissionPolicy.extraRepositories": ["mirror.example.com/tunery:v1", "mirror.example.com/tunery/", "a/B"],
    "tenantPolicy.outputPrefixes": [
        "s3://adapters", "s3:///x/", "s3://adapters/../", "s3://adapters//x/", "s3://adapters/{Namespace}/",
    ],
}  # fmt: skip


JOBS_OWN = ("job-name", "controller-uid", "batch.kubernetes.io/job-completion-index", "tunery.dev/x")
VARIABLES = (
    *("A-B", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY"),
    *("X_PASSWORD", "TUNERY_SUPERVISED", "KUBEFLOW_TRAINER_SERVER_URL"),
)
PROGRAMS = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "LOCAL_RANK", "WORLD_SIZE"),
)
WRONG_NAMES: dict[str, tuple[str, ...]] = {
    "trainer.podLabels": (*JOBS_OWN, LONG),
    "trainer.nodeSelector": ("a/b/c",),
    "trainer.podAnnotations": ("example..com/a",),
    "trainer.env": VARIABLES,
    "trainer.distributed.env": VARIABLES,
    "trainer.distributed.resources": ("nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "x"),
    "operator.podLabels": ("app.kubernetes.io/name",),
    "operator.nodeSelector": (f"example.com/{LONG}",),
    "operator.resources.limits": ("a b",),
    "progress.certificate.jobLabels": ("tunery.dev/certificate-job", "job-name"),
    "metrics.rules.labels": ("a b",),
    "gpuMemory": ("gpu",),
}
"""Names within values: of labels, annotations, variables and resources."""


def unseen(values: dict[str, Any], text: str) -> set[str]:
    """Return the wrong values that the text does not report: of lists and resources each one."""
    found: set[str] = set()
    for name, value in values.items():
        place = "at '/" + re.sub(r"(?<!\\)\.", "/", name).replace("\\", "")
        if ".resources" in name and isinstance(value, dict):
            found |= {f"{place}/{key}'" for key in value}
        elif isinstance(value, list) and name != "admissionPolicy.validationActions":
            found |= {f"{place}/{index}" for index in range(len(value))}
        else:
            found.add(place)
    # A pointer escapes the slash of a name.
    return {each for each in found if each not in text.replace("~1", "/")}


def refused(helm: Helm, values: dict[str, Any]) -> str:
    with pytest.raises(HelmError) as error:
        helm.render(values=values)
    return str(error.value)


def test_what_would_fail_late_is_refused_at_once_each_with_its_place(helm: Helm) -> None:
    assert unseen(WRONG, refused(helm, WRONG)) == set()


def test_names_that_would_fail_late_are_refused_each_at_its_value(helm: Helm) -> None:
    text = refused(helm, {field: dict.fromkeys(names, "1") for field, names in WRONG_NAMES.items()})
    found: dict[str, set[str]] = {}
    field = ""
    for line in text.splitlines():
        for place in re.findall("at '/([^']+)'", line):
            field = place.replace("/", ".")
        for name in re.findall("invalid propertyName '([^']+)'", line):
            found.setdefault(field, set()).add(name)
    assert found == {field: set(names) for field, names in WRONG_NAMES.items()}


def test_variables_of_the_programs_are_refused(helm: Helm) -> None:
    fields = ("trainer.env", "trainer.distributed.env")
    values: dict[str, Any] = {field: dict.fromkeys(PROGRAMS, "1") for field in fields}
    text = refused(helm, values | {"operator.extraEnv": [{"name": name} for name in PROGRAMS[:3]]})
    places = [f"at '/{field.replace('.', '/')}/{name}'" for field in fields for name in PROGRAMS]
    places += [f"at '/operator/extraEnv/{index}/name'" for index in range(3)]
    assert [place for place in places if place not in text] == []


@pytest.mark.slow
def test_simulated_devices_are_a_number_that_the_trainer_takes(helm: Helm) -> None:
    for number in ("two", "2.5", "-1", "0x2", "17", "1000", " 2"):
        assert "'/trainer/env/TUNERY_SIMULATED_DEVICES'" in refused(
            helm, {"trainer.env": {"TUNERY_SIMULATED_DEVICES": number}}
        )
    for number in ("", "0", "1", "16"):
        helm.render(values={"trainer.env": {"TUNERY_SIMULATED_DEVICES": number}})


TAKEN = (
    "AWS_REGION",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "HF_TOKEN_PATH",
    "PYTHONWARNINGS",
)


def test_what_kubernetes_takes_is_taken_and_the_operator_reads_it(helm: Helm) -> None:
    tolerations: list[dict[str, Any]] = [
        {"key": "", "operator": "Exists"},
        {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
        {"key": "example.com/" + "a" * 63, "value": "x"},
        {"key": "gpu", "operator": "Exists", "value": ""},
    ]
    values: dict[str, Any] = {
        **dict.fromkeys(PLACES, tolerations),
        "image.registry": "[fd00::1]:5000/team",
        "operator.image": "registry.example.com:5000/team/a__b/operator:v1@sha256:" + "a" * 64,
        "serving.engine.image": "[fd00::1]:5000/vllm--openai:v1",
        "gpuMemory": {"nvidia.com/gpu": "40960Mi", "example.com/gpu": "1.5Gi", "other.com/gpu": "85899345920"},
        "defaultOutput.uri": "s3://My_Bucket/a..b/",
        "preflight.resources": {"cpu": "500m", "memory": "1Gi", "ephemeralStorage": "0.5Gi"},
        "operator.resources.requests": {"cpu": 1, "memory": 268435456, "example.com/thing": 1},
        "trainer.env": dict.fromkeys(TAKEN, "1"),
        "admissionPolicy.validationActions": ["Audit", "Deny"],
        "trainer.inheritLabels": ["job-names", "app.kubernetes.io/part-of"],
        "tenantPolicy.outputPrefixes": ["s3://adapters/{namespace}/", "s3://{namespace}-adapters/"],
    }
    rendered = helm.render(values=values)
    settings = rendered.settings()
    read = settings.trainer.tolerations
    assert [(each.key, each.toleration_seconds) for each in read[:2]] == [("", None), (None, 0)]
    assert read == settings.trainer.gpu.tolerations == settings.preflight.tolerations
    assert rendered.pod()["tolerations"][-4:] == tolerations
    assert settings.gpu_memory_bytes("nvidia.com/gpu", {}) == 40 * 2**30


def leaves(values: dict[str, Any], above: str = "") -> list[str]:
    """Return every value of the chart that is no section, by its name."""
    found: list[str] = []
    for key, value in values.items():
        name = f"{above}.{key}" if above else key
        section = isinstance(value, dict) and value and not name.endswith((".labels", "ecurityContext"))
        found += leaves(value, name) if section else [name]
    return found


EVERYTHING_ON = tuple(
    f"{part}.enabled=true"
    for part in ("metrics.serviceMonitor", "metrics.rules", "metrics.dashboard", "serving.podMonitor", "tenantPolicy")
)


def test_a_value_that_is_null_is_refused_or_is_empty_and_never_another_one(helm: Helm) -> None:
    """Helm takes a null for a value that is not there: a number would be 0, a template would end in a panic."""
    every = dict.fromkeys(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    text = refused(helm, every)
    needed = {
        name for name in every for above, _, last in [name.rpartition(".")]
        if any(f"at '/{above.replace('.', '/')}'" in line and f"'{last}'" in line for line in text.splitlines())
    }  # fmt: skip
    assert {
        "progress.certificate.days", "operator.replicas", "operator.unreachableSeconds", "test.seconds",
        "networkPolicy.apiServer.ports", "networkPolicy.enabled", "admissionPolicy.validationActions",
        "admissionPolicy.enabled", "trainer.caBundle.key",
    } <= needed  # fmt: skip
    others = {name: None for name in every if name not in needed}
    on = {"networkPolicy.enabled": True, "trainer.caBundle.configMap": "ca"}
    rendered = helm.render(*EVERYTHING_ON, values=others | on, tests=True)
    assert policy_variables(rendered) == {"[]"}
    assert rendered.settings().trainer.ca_bundle.config_map == "ca"
    assert "networkPolicy" in refused(helm, {"networkPolicy": {"enabled": True, "apiServer": None}})


def policy_variables(rendered: Rendered) -> set[str]:
    """Return what the policies make of extraEnv, which CEL looks into."""
    variables = [
        each for policy in rendered.of("ValidatingAdmissionPolicy") for each in policy["spec"].get("variables", [])
    ]
    return {each["expression"] for each in variables if each["name"] == "freeEnv"}
