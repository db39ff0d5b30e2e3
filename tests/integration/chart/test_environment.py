"""The operator's environment: what the chart renders is what Settings reads."""

from __future__ import annotations

import pytest

from tunery_operator.settings import InvalidSettings, Settings, read_settings

from kit.chart.rendering import Helm, Rendered


def test_env_variables_are_the_fields_of_settings(rendered: Rendered) -> None:
    fields = {f"TUNERY_{name.upper()}" for name in Settings.model_fields}
    assert set(rendered.env()) == fields


def test_settings_read_what_is_rendered(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = helm.render(
        "gpuMemory.nvidia\\.com/gpu=80Gi",
        "gpuMemory.nvidia\\.com/gpu\\.product\\=Tesla-T4=16Gi",
        "defaultOutput.uri=s3://bucket/adapters",
        "defaultOutput.secretName=s3",
        "trainer.pullSecrets={registry,mirror}",
        "trainer.image.repository=registry.example.com/trainer",
        "trainer.image.tag=v2",
        "preflight.resources.memory=6Gi",
        "cache.claimName=tunery-cache",
        "cache.maxSize=500Gi",
        "operator.logging.level=DEBUG",
        "progress.port=9443",
    )
    for name, value in rendered.env().items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.trainer_image == "registry.example.com/trainer:v2"
    assert settings.trainer_pull_secrets == ["registry", "mirror"]
    assert settings.gpu_memory_bytes("nvidia.com/gpu", {}) == 80 * 2**30
    assert settings.gpu_memory_bytes("nvidia.com/gpu", {"nvidia.com/gpu.product": "Tesla-T4"}) == 16 * 2**30
    assert (settings.default_output_uri, settings.default_output_secret) == ("s3://bucket/adapters", "s3")
    assert settings.preflight_memory == "6Gi"
    assert (settings.cache_claim, settings.cache_max_size) == ("tunery-cache", "500Gi")
    assert settings.log_level == "DEBUG"
    assert settings.progress_url == "https://tunery.tunery-system.svc:9443"
    assert settings.progress_port == 9443


def read_settings_of(rendered: Rendered, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return what the operator makes of the environment that the chart gives it."""
    for name, value in rendered.env().items():
        monkeypatch.setenv(name, value)
    return read_settings()


def test_the_operator_reads_the_platforms_pod_template(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "trainer.podLabels": {"cost-center": "42"},
        "trainer.podAnnotations": {"sidecar.istio.io/inject": "false"},
        "trainer.env": {"HF_HUB_ETAG_TIMEOUT": "30"},
        "trainer.inheritLabels": ["team.example.com/"],
        "trainer.nodeSelector": {"pool": "ml"},
        "trainer.tolerations": [{"key": "ml", "operator": "Exists"}],
        "trainer.priorityClassName": "batch",
        "trainer.gpu.runtimeClassName": "nvidia",
        "trainer.securityContext": {"runAsUser": None, "fsGroup": None},
        "trainer.shmSize": "8Gi",
        "trainer.distributed": {
            "env": {"NCCL_SOCKET_IFNAME": "eth1"},
            "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
            "resources": {"rdma/hca_shared": "1", "hugepages-2Mi": "512Mi"},
        },
        "preflight.nodeSelector": {"pool": "cpu"},
        "preflight.queueName": "checks",
        "preflight.maxConcurrent": 1_000_000,
        "progress.writeSeconds": 2.5,
        "operator.workers": 4,
    }
    settings = read_settings_of(helm.render(values=values), monkeypatch)
    template = settings.pod_template
    assert (template.labels, template.annotations) == ({"cost-center": "42"}, {"sidecar.istio.io/inject": "false"})
    assert (template.env, template.shm_size) == ({"HF_HUB_ETAG_TIMEOUT": "30"}, "8Gi")
    assert (template.node_selector, template.priority_class_name) == ({"pool": "ml"}, "batch")
    assert [toleration.key for toleration in template.tolerations] == ["ml"]
    assert [toleration.key for toleration in template.gpu.tolerations] == ["nvidia.com/gpu"]
    assert (template.gpu.runtime_class_name, template.runtime_class_name) == ("nvidia", None)
    assert template.distributed.model_dump() == values["trainer.distributed"]
    ids = template.security
    assert (ids.run_as_user, ids.run_as_group, ids.fs_group) == (None, 65532, None)
    assert settings.inherit_label_prefixes == ["team.example.com/"]
    assert (settings.preflight_scheduling.node_selector, settings.preflight_queue) == ({"pool": "cpu"}, "checks")
    assert (settings.preflight_max_concurrent, settings.workers, settings.progress_write_seconds) == (1_000_000, 4, 2.5)


def test_a_list_or_a_map_that_is_null_is_empty(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one writes it to have none of the defaults."""
    placed = ("nodeSelector", "tolerations")
    parts = ("trainer", "trainer.gpu", "preflight")
    names = [f"{part}.{name}" for part in parts for name in placed]
    names += [f"trainer.{name}" for name in ("pullSecrets", "podLabels", "podAnnotations", "env", "inheritLabels")]
    names += [f"trainer.distributed.{name}" for name in ("env", "annotations", "resources")]
    names += ["gpuMemory", "watchNamespaces", "serving.engine.plugins", "imageRegistry"]
    names += [f"admissionPolicy.{name}" for name in ("deniedNamespaces", "extraRepositories", "extraEnv")]
    rendered = helm.render(values=dict.fromkeys(names))
    settings = read_settings_of(rendered, monkeypatch)
    assert settings.pod_template.gpu.tolerations == ()
    assert (settings.pod_template.env, settings.gpu_memory, settings.watch_namespaces) == ({}, {}, [])
    policies = rendered.of("ValidatingAdmissionPolicy")
    assert any("!(request.namespace in [])" in str(policy["spec"]) for policy in policies)
    assert "null" not in str([policy["spec"].get("matchConditions") for policy in policies])


@pytest.mark.slow
def test_the_operator_reads_what_the_platform_says_of_servers(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "serving.server.image.tag": "v2",
        "serving.server.resources.cpu": "250m",
        "serving.engine.image.repository": "mirror/engine",
        "serving.engine.image.tag": "v9",
        "serving.engine.allowImage": False,
        "serving.engine.plugins": ["tunery_cpu_fix"],
        "serving.networkPolicy": False,
    }
    serving = read_settings_of(helm.render(values=values), monkeypatch).serving
    assert (serving.server_image, serving.engine_image) == ("tunery-server:v2", "mirror/engine:v9")
    assert (serving.server_resources.cpu, serving.server_resources.memory) == ("250m", "512Mi")
    assert (serving.allow_image, serving.network_policy, serving.plugins) == (False, False, ("tunery_cpu_fix",))
    assert serving.run_as_user == 2000
    left_open = read_settings_of(helm.render("serving.engine.runAsUser=null"), monkeypatch).serving
    assert left_open.run_as_user is None


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        pytest.param({}, 30 * 86_400, id="30-days"),
        pytest.param({"defaultTtlSecondsAfterFinished": None}, None, id="never"),
    ],
)
def test_how_long_what_is_finished_stays(
    helm: Helm, monkeypatch: pytest.MonkeyPatch, values: dict[str, None], seconds: int | None
) -> None:
    assert read_settings_of(helm.render(values=values), monkeypatch).default_ttl_seconds == seconds


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        pytest.param(
            "TUNERY_POD_TEMPLATE",
            '{"gpu": {"tolerations": [{"operator": "Exist"}]}}',
            r"TUNERY_POD_TEMPLATE\.gpu\.tolerations\.0\.operator: Input should be 'Exists' or 'Equal'",
            id="toleration",
        ),
        pytest.param(
            "TUNERY_POD_TEMPLATE", '{"labels": {"tunery.dev/role": "x"}}', "is a label of Tunery's own", id="own-label"
        ),
        pytest.param("TUNERY_POD_TEMPLATE", "{", "pod_template.*line 1", id="no-json"),
        pytest.param("TUNERY_LEASE_NAMESPACE", "", "TUNERY_LEASE_NAME needs TUNERY_LEASE_NAMESPACE", id="half-a-lease"),
        pytest.param("TUNERY_WORKERS", "0", "TUNERY_WORKERS: ", id="no-workers"),
    ],
)
def test_wrong_settings_are_told_with_their_place(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    for name, given in (rendered.env() | {variable: value}).items():
        monkeypatch.setenv(name, given)
    with pytest.raises(InvalidSettings, match=complaint):
        read_settings()
