"""Values that are refused before anything is made, with their place; and those that are taken and read."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from integration.chart.test_environment import read_settings_of

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
    "operator.resources.limits": {"memory": "512m"},
    "trainer.inheritLabels": ["batch.kubernetes.io/", "job-name", "controller-uid", "kubectl.kubernetes.io/"],
    "trainer.shmSize": "0",
    "trainer.distributed.resources": {"rdma/hca_shared": "a few"},
    "serving.server.resources.memory": "512m",
    "defaultOutput.uri": "s3://adapters/../x",
    "test.outputUri": "s3://adapters//x",
    "cache.maxSize": "500m",
    "serving.server.resources.cpu": "4Gi",
    "preflight.resources": {"cpu": "0", "memory": "4000m", "ephemeralStorage": "0Gi"},
    "progress.certificate.days": 0,
    "progress.certificate.certManager": {"enabled": True, "issuerRef": {"name": ""}},
    "admissionPolicy.validationActions": ["Deny", "Warn"],
    "tenantPolicy.outputPrefixes": ["s3://adapters", "s3:///x/", "s3://adapters/../", "s3://adapters//x/"],
}  # fmt: skip


JOBS_OWN = ("job-name", "controller-uid", *(f"batch.kubernetes.io/{each}" for each in ("job-name", "controller-uid")))
FURTHER: dict[str, tuple[Any, tuple[str, ...]]] = {
    "trainer.podLabels": (
        dict.fromkeys((*JOBS_OWN, "batch.kubernetes.io/job-completion-index", "tunery.dev/x"), "x") | {LONG: "x"},
        (
            *(f'trainer.podLabels: "{name}" is a label by which a Job finds its pods: leave' for name in JOBS_OWN),
            'trainer.podLabels: "batch.kubernetes.io/job-completion-index" is a label by which a Job finds its pods',
            'trainer.podLabels: "tunery.dev/x" is a label of Tunery\'s own: choose another name',
            f'trainer.podLabels: "{LONG}" is no name of a label or annotation',
        ),
    ),
    "trainer.nodeSelector": ({"a/b/c": "x"}, ('trainer.nodeSelector: "a/b/c" is no name of a label or annotation',)),
    "trainer.podAnnotations": ({"example..com/a": "x"}, ('trainer.podAnnotations: "example..com/a" is no name of a',)),
    "trainer.env": ({"A-B": "x"}, ('trainer.env: "A-B" is no name of a variable: letters, digits and _',)),
    "operator.podLabels": (
        {"app.kubernetes.io/name": "mine"}, ('operator.podLabels: "app.kubernetes.io/name" is a label of Tunery',),
    ),
    "operator.nodeSelector": ({f"example.com/{LONG}": "x"}, (f'operator.nodeSelector: "example.com/{LONG}" is no',)),
    "operator.resources.limits": (
        {"cpu": "2Gi", "memory": 512, "ephemeral-storage": "64", "a b": 1},
        (
            'operator.resources.limits.memory: 512 is 512 bytes, less than 64Mi: write the unit, such as 512Mi',
            'operator.resources.limits.cpu: "2Gi" is an amount of memory: write one of CPU, such as 4, 0.5 or 500m',
            'operator.resources.limits.ephemeral-storage: "64" is 64 bytes, less than 1Mi: write the unit, such as 64G',
            'operator.resources.limits: "a b" is no name of a resource',
        ),
    ),
    "progress.certificate.jobLabels": (
        {"tunery.dev/certificate-job": "x", "job-name": "x"},
        (
            'progress.certificate.jobLabels: "tunery.dev/certificate-job" is a label of Tunery\'s own',
            'progress.certificate.jobLabels: "job-name" is a label by which a Job finds its pods',
        ),
    ),
    "metrics.rules.labels": ({"a b": "x"}, ('metrics.rules.labels: "a b" is no name of a label or annotation',)),
    "gpuMemory": (
        {"gpu": "80Gi", "nvidia.com/gpu": "80", "b.com/gpu": "900Mi", "c.com/gpu": "900", "d.com/gpu": "0"},
        (
            'gpuMemory: "gpu" is no name of a resource, as nvidia.com/gpu, or of a label with its value',
            'gpuMemory: nvidia.com/gpu: "80" is 80 bytes, less than 1Gi: write the unit, such as 80Gi',
            'gpuMemory: b.com/gpu: "900Mi" is 943718400 bytes, less than 1Gi: write at least 1Gi',
            'gpuMemory: c.com/gpu: "900" is 900 bytes, less than 1Gi: write at least 1Gi',
            'gpuMemory: d.com/gpu: "0" is 0 bytes, less than 1Gi: write at least 1Gi',
        ),
    ),
    "preflight.resources": (
        {"cpu": "2000", "memory": "4", "ephemeralStorage": "20"},
        (
            'preflight.resources.cpu: "2000" are more CPUs than 256: write the unit, such as 2000m, or fewer',
            'preflight.resources.memory: "4" is 4 bytes, less than 64Mi: write the unit, such as 4Gi',
            'preflight.resources.ephemeralStorage: "20" is 20 bytes, less than 1Mi: write the unit, such as 20Gi',
        ),
    ),
    "serving.server.resources": (
        {"cpu": "500", "memory": "67108863", "ephemeralStorage": "1k"},
        (
            'serving.server.resources.cpu: "500" are more CPUs than 256: write the unit, such as 500m, or fewer',
            'serving.server.resources.memory: "67108863" is 67108863 bytes, less than 64Mi: write at least 64Mi',
            'serving.server.resources.ephemeralStorage: "1k" is 1000 bytes, less than 1Mi: write at least 1Mi',
        ),
    ),
    "trainer.shmSize": ("1", ('trainer.shmSize: "1" is 1 bytes, less than 1Mi: write the unit, such as 1Gi',)),
    "cache.maxSize": ("500", ('cache.maxSize: "500" is 500 bytes, less than 1Mi: write the unit, such as 500Mi',)),
    "admissionPolicy.extraRepositories": (
        ["mirror.example.com/tunery:v1", "mirror.example.com/tunery/", "https://mirror.example.com/x", "a/B"],
        (
            'admissionPolicy.extraRepositories[0]: "mirror.example.com/tunery:v1" has a tag: leave it out',
            'admissionPolicy.extraRepositories[1]: "mirror.example.com/tunery/" is no repository',
            'admissionPolicy.extraRepositories[2]: "https://mirror.example.com/x" has a scheme',
            'admissionPolicy.extraRepositories[3]: "a/B" is no repository: lower-case letters',
        ),
    ),
    "tenantPolicy.outputPrefixes": (
        ["s3://adapters/{namespace}/", "s3://adapters/{Namespace}/"],
        ('tenantPolicy.outputPrefixes[1]: "s3://adapters/{Namespace}/" has braces beside {namespace}, which alone',),
    ),
    "defaultOutput.uri": (
        "s3://adapters/{namespace}",
        ('defaultOutput.uri: "s3://adapters/{namespace}" has braces, and nothing is put in their place here',),
    ),
    "test.outputUri": ("s3://adapters/{namespace}", ('test.outputUri: "s3://adapters/{namespace}" has braces',)),
    "watchNamespaces": (
        ["team-a", "team-b"],
        ('test.namespace: "team-c" is none of watchNamespaces, and nobody would look at the job there',),
    ),
    "test.namespace": ("team-c", ()),
}  # fmt: skip
"""What no schema can say of a value, or says at another value's place."""


def unseen(values: dict[str, Any], text: str) -> set[str]:
    """Return of the wrong values those that are not told of: of a list and of resources each one."""
    found: set[str] = set()
    for name, value in values.items():
        place = f"at '/{name.replace('.', '/')}"
        if name == "preflight.resources":
            found |= {f"{place}/{key}'" for key in value}
        elif isinstance(value, list) and name != "admissionPolicy.validationActions":
            found |= {f"{place}/{index}" for index in range(len(value))}
        else:
            found.add(place)
    return {each for each in found if each not in text}


def told(helm: Helm, values: dict[str, Any]) -> str:
    with pytest.raises(HelmError) as refused:
        helm.render(values=values)
    return str(refused.value)


def test_what_would_fail_late_is_refused_at_once_each_with_its_place(helm: Helm) -> None:
    assert unseen(WRONG, told(helm, WRONG)) == set()


def test_what_a_schema_cannot_say_is_told_all_at_once_each_with_what_to_write(helm: Helm) -> None:
    lines = told(helm, {name: value for name, (value, _) in FURTHER.items()}).splitlines()
    missing = [each for _, said in FURTHER.values() for each in said if not any(each in line for line in lines)]
    assert missing == []


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        pytest.param(
            {"operator.image.repository": "registry:5000/team/operator:v1"},
            r'operator.image.repository: "registry:5000/team/operator:v1" has a tag: put it into operator.image.tag',
            id="tag",
        ),
        pytest.param(
            {"trainer.image.repository": "trainer@sha256:" + "a" * 64},
            "has a digest: put it into trainer.image.digest",
            id="digest",
        ),
        pytest.param(
            {"serving.server.image.repository": "https://registry/server"}, "has a scheme", id="scheme-of-a-repository"
        ),
        pytest.param({"serving.engine.image.repository": "vllm/OpenAI"}, "is no repository: lower-case", id="capitals"),
        pytest.param(
            {"imageRegistry": "https://registry"}, r'imageRegistry: "https://registry" has a scheme', id="scheme"
        ),
        *(
            pytest.param({"imageRegistry": registry}, f'imageRegistry: "{registry}" is no registry', id=registry)
            for registry in ("registry.example.com/Team", "/x", "host:tag/x", "registry.example.com//x", "x/y:1")
        ),
    ],
)
def test_what_belongs_elsewhere_is_told_where(helm: Helm, values: dict[str, Any], complaint: str) -> None:
    assert complaint in told(helm, values)


NEEDED = {
    **dict.fromkeys(("PATH", "PYTHONPATH", "PYTHONHOME"), "pods would not find them"),
    "HOME": "below /work alone",
    **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"), "that its node gives it"),
    **dict.fromkeys(("AWS_PROFILE", "AWS_DEFAULT_PROFILE"), "pods have no profiles: a Secret"),
    "PYTHONWARNINGS": "the first warning of a library would end each pod",
    **dict.fromkeys(
        ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "X_PASSWORD"),
        "put a credential into the Secret that a manifest's secretRef names",
    ),
    **dict.fromkeys(("LOCAL_RANK", "WORLD_SIZE"), "find each other without it"),
    **dict.fromkeys(("TUNERY_SUPERVISED", "KUBEFLOW_TRAINER_SERVER_URL"), "the operator sets what begins so"),
}


def test_variables_that_our_programs_need_are_refused_each_with_the_reason(helm: Helm) -> None:
    variables = {"HTTPS_PROXY": "p", **dict.fromkeys(NEEDED, "error")}
    complaint = told(helm, {"trainer.env": variables, "trainer.distributed": {"env": variables}})
    for where in ("trainer.env", "trainer.distributed.env"):
        said = [line for line in complaint.splitlines() if f"{where}: " in line and ": leave it out: " in line]
        lines = {line.split(": ")[1]: line for line in said}
        assert {name for name, why in NEEDED.items() if why not in lines.get(name, "")} == set()
        assert set(lines) == set(NEEDED)


@pytest.mark.slow
def test_simulated_devices_are_a_number_that_the_trainer_takes(helm: Helm) -> None:
    for number in ("two", "2.5", "-1", "0x2", "17", "1000", " 2"):
        complaint = told(helm, {"trainer.env": {"TUNERY_SIMULATED_DEVICES": number}})
        said = "trainer.env: TUNERY_SIMULATED_DEVICES: must be a whole number from 1 to 16, or 0 for none, is "
        assert f'{said}"{number}"' in complaint
    for number in ("", "0", "1", "16"):
        helm.render(values={"trainer.env": {"TUNERY_SIMULATED_DEVICES": number}})


def test_gpus_are_what_a_manifest_asks_for(helm: Helm) -> None:
    asked = {"rdma/hca_shared": "1", "nvidia.com/gpu": "2", "nvidia.com/mig-1g.5gb": "1"}
    complaint = told(helm, {"trainer.distributed": {"resources": asked}})
    for name in list(asked)[1:]:
        assert f"trainer.distributed.resources: {name}: leave it out: resources.gpus of a manifest" in complaint
    assert "rdma" not in complaint


@pytest.mark.parametrize("name", ["PATH", "PYTHONPATH", "PYTHONHOME"])
def test_the_operators_programs_are_found_too(helm: Helm, name: str) -> None:
    assert f"operator.extraEnv: {name}: leave it out" in told(
        helm, {"operator.extraEnv": [{"name": name, "value": "x"}]}
    )


TAKEN = (
    "AWS_REGION",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "HF_TOKEN_PATH",
    "PYTHONWARNINGS",
)


def test_what_kubernetes_takes_is_taken_and_the_operator_reads_it(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    tolerations: list[dict[str, Any]] = [
        {"key": "", "operator": "Exists"},
        {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
        {"key": "example.com/" + "a" * 63, "value": "x"},
        {"key": "gpu", "operator": "Exists", "value": ""},
    ]
    values: dict[str, Any] = {
        **dict.fromkeys(PLACES, tolerations),
        "operator.image.repository": "registry.example.com:5000/team/a__b/operator",
        "serving.engine.image.repository": "[fd00::1]:5000/vllm--openai",
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
    settings = read_settings_of(rendered, monkeypatch)
    read = settings.pod_template.tolerations
    assert [(each.key, each.toleration_seconds) for each in read[:2]] == [("", None), (None, 0)]
    assert read == settings.pod_template.gpu.tolerations == settings.preflight_scheduling.tolerations
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


def test_a_value_that_is_null_is_refused_or_is_empty_and_never_another_one(
    helm: Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helm takes a null for a value that is not there: a number would be 0, a template would end in a panic."""
    every = dict.fromkeys(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    text = told(helm, every)
    needed = {
        name for name in every for above, _, last in [name.rpartition(".")]
        if any(f"at '/{above.replace('.', '/')}'" in line and f"'{last}'" in line for line in text.splitlines())
    }  # fmt: skip
    assert {
        "progress.certificate.days", "operator.replicas", "operator.unreachableSeconds", "test.seconds",
        "networkPolicy.apiServer.ports", "networkPolicy.enabled", "admissionPolicy.validationActions",
        "admissionPolicy.enabled", "trainer.caBundle.key",
    } <= needed  # fmt: skip
    needed |= {"serving.engine.image.tag"}
    others = {name: None for name in every if name not in needed}
    on = {"networkPolicy.enabled": True, "trainer.caBundle.configMap": "ca"}
    rendered = helm.render(*EVERYTHING_ON, values=others | on, tests=True)
    assert policy_variables(rendered) == {"[]"}
    read_settings_of(rendered, monkeypatch)
    assert "networkPolicy" in told(helm, {"networkPolicy": {"enabled": True, "apiServer": None}})


def policy_variables(rendered: Rendered) -> set[str]:
    """Return what the policies make of extraEnv, which CEL looks into."""
    variables = [
        each for policy in rendered.of("ValidatingAdmissionPolicy") for each in policy["spec"].get("variables", [])
    ]
    return {each["expression"] for each in variables if each["name"] == "freeEnv"}
