"""The operator's config.yaml: what the chart renders is what Settings reads, by the same names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunery_operator.config import InvalidSettings, Settings, read_settings

from kit.chart.rendering import Helm, Rendered

Json = dict[str, Any]


def names(values: Json, above: str = "") -> set[str]:
    """Return the names of all values, as `trainer.shmSize`."""
    found: set[str] = set()
    for name, value in values.items():
        found |= {f"{above}{name}"} | (names(value, f"{above}{name}.") if isinstance(value, dict) else set())
    return found


def test_the_chart_renders_every_field_of_settings_and_its_default(rendered: Rendered) -> None:
    config = rendered.config()
    read = rendered.settings().model_dump(by_alias=True, mode="json")
    assert names(config) == names(read)
    derived: Json = {
        **{name: config[name] for name in ("lease", "progress", "defaultTtlSecondsAfterFinished")},
        "trainer": {name: config["trainer"][name] for name in ("image", "gpu")},
        "serving": {name: {"image": config["serving"][name]["image"]} for name in ("server", "engine")},
    }
    assert Settings.model_validate(derived).model_dump(by_alias=True, mode="json") == read
    assert {**config["progress"], **read["progress"]} == Settings.model_validate(
        {"trainer": {"image": "i"}, "progress": {n: config["progress"][n] for n in ("url", "tlsDir", "tlsSecret")}}
    ).progress.model_dump(by_alias=True, mode="json")


def test_the_pod_mounts_the_file_that_it_reads_and_another_file_is_another_pod(helm: Helm, rendered: Rendered) -> None:
    (container,) = rendered.pod()["containers"]
    (volume,) = (each for each in rendered.pod()["volumes"] if each["name"] == "config")
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "config")
    assert container["args"] == [f"--config={mount['mountPath']}/config.yaml"]
    assert mount["readOnly"] is True
    assert volume["configMap"]["name"] in {each["metadata"]["name"] for each in rendered.of("ConfigMap")}
    tls = rendered.settings().progress.tls_dir
    assert str(tls) in {each["mountPath"] for each in container["volumeMounts"]}
    assert [entry["name"] for entry in container["env"]] == ["POD_NAME"]

    def checksum(found: Rendered) -> str:
        return str(found.one("Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    own = {"operator.podAnnotations": {"team": "ml"}}
    assert checksum(helm.render(values=own)) == checksum(rendered) != checksum(helm.render("operator.workers=4"))


def test_settings_read_what_is_rendered(helm: Helm) -> None:
    values: Json = {
        "image": {"registry": "registry.example.com", "tag": "v2", "pullPolicy": "Always", "pullSecrets": ["a", "b"]},
        "gpuMemory": {"nvidia.com/gpu": "80Gi", "nvidia.com/gpu.product=Tesla-T4": "16Gi"},
        "defaultOutput": {"uri": "s3://bucket/adapters/", "secretName": "s3"},
        "cache": {"claimName": "tunery-cache", "maxSize": "500Gi"},
        "operator": {"logging": {"level": "DEBUG"}, "workers": 4},
        "progress": {"port": 9443, "writeSeconds": 2.5},
        "trainer": {
            "podLabels": {"cost-center": "42"},
            "env": {"A": "yes", "B": "0x10", "C": "1e3", "D": "2026-01-01", "E": "12:30", "F": "null"},
            "nodeSelector": {"pool": "ml"},
            "tolerations": [{"key": "ml", "operator": "Exists"}],
            "gpu": {"runtimeClassName": "nvidia"},
            "securityContext": {"runAsUser": None, "fsGroup": None},
            "distributed": {
                "env": {"NCCL_SOCKET_IFNAME": "eth1"},
                "resources": {"rdma/hca_shared": "1", "hugepages-2Mi": "512Mi"},
            },
        },
        "preflight": {"queueName": "checks", "maxConcurrent": 1_000_000},
        "serving": {
            "server": {"resources": {"cpu": "250m"}},
            "engine": {"image": "mirror/engine:v9", "runAsUser": None, "plugins": ["tunery_cpu_fix"]},
            "networkPolicy": False,
        },
    }
    settings = helm.render(values=values).settings()
    assert (settings.image.pull_policy, settings.image.pull_secrets) == ("Always", ("a", "b"))
    assert settings.gpu_memory_bytes("nvidia.com/gpu", {}) == 80 * 2**30
    assert settings.gpu_memory_bytes("nvidia.com/gpu", {"nvidia.com/gpu.product": "Tesla-T4"}) == 16 * 2**30
    assert (settings.default_output.uri, settings.default_output.secret_name) == ("s3://bucket/adapters", "s3")
    assert (settings.cache.claim_name, settings.cache.max_size) == ("tunery-cache", "500Gi")
    assert (settings.operator.logging.level, settings.operator.workers) == ("DEBUG", 4)
    progress = settings.progress
    assert (progress.url, progress.port) == ("https://tunery.tunery-system.svc:9443", 9443)
    assert progress.write_seconds == 2.5
    trainer = settings.trainer
    assert (trainer.image, trainer.pod_labels) == ("registry.example.com/tunery-trainer:v2", {"cost-center": "42"})
    assert trainer.env == values["trainer"]["env"]
    assert (trainer.node_selector, [each.key for each in trainer.tolerations]) == ({"pool": "ml"}, ["ml"])
    assert (trainer.gpu.runtime_class_name, trainer.runtime_class_name) == ("nvidia", None)
    assert [each.key for each in trainer.gpu.tolerations] == ["nvidia.com/gpu"]
    ids = trainer.security_context
    assert (ids.run_as_user, ids.run_as_group, ids.fs_group) == (None, 65532, None)
    assert trainer.distributed.model_dump(exclude={"annotations"}) == values["trainer"]["distributed"]
    assert (settings.preflight.queue_name, settings.preflight.max_concurrent) == ("checks", 1_000_000)
    server, engine = settings.serving.server, settings.serving.engine
    assert (server.image, engine.image) == ("registry.example.com/tunery-server:v2", "mirror/engine:v9")
    assert (server.resources.cpu, server.resources.memory) == ("250m", "512Mi")
    assert (engine.run_as_user, engine.plugins, settings.serving.network_policy) == (None, ("tunery_cpu_fix",), False)


def test_a_list_or_a_map_that_is_null_is_empty(helm: Helm) -> None:
    """As one writes it to have none of the defaults."""
    placed = ("nodeSelector", "tolerations")
    parts = ("trainer", "trainer.gpu", "preflight")
    nulls = [f"{part}.{name}" for part in parts for name in placed]
    nulls += [f"trainer.{name}" for name in ("podLabels", "podAnnotations", "env", "inheritLabels")]
    nulls += [f"trainer.distributed.{name}" for name in ("env", "annotations", "resources")]
    nulls += ["gpuMemory", "watchNamespaces", "serving.engine.plugins", "image.registry", "image.pullSecrets"]
    nulls += [f"admissionPolicy.{name}" for name in ("deniedNamespaces", "extraRepositories", "extraEnv")]
    rendered = helm.render(values=dict.fromkeys(nulls))
    settings = rendered.settings()
    assert settings.trainer.gpu.tolerations == ()
    assert (settings.trainer.env, settings.gpu_memory, settings.watch_namespaces) == ({}, {}, ())
    policies = rendered.of("ValidatingAdmissionPolicy")
    assert any("!(request.namespace in [])" in str(policy["spec"]) for policy in policies)
    assert "null" not in str([policy["spec"].get("matchConditions") for policy in policies])


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        pytest.param({}, 30 * 86_400, id="30-days"),
        pytest.param({"defaultTtlSecondsAfterFinished": None}, None, id="never"),
    ],
)
def test_how_long_what_is_finished_stays(helm: Helm, values: Json, seconds: int | None) -> None:
    assert helm.render(values=values).settings().default_ttl_seconds_after_finished == seconds


WRONG: list[tuple[str, Json, str]] = [
    (
        "toleration",
        {"trainer": {"gpu": {"tolerations": [{"operator": "Exist"}]}}},
        "trainer.gpu.tolerations.0.operator: Input should be 'Exists' or 'Equal'",
    ),
    (
        "own-label",
        {"trainer": {"podLabels": {"tunery.dev/role": "x"}}},
        "trainer.podLabels.tunery.dev/role.[key]: is a ",
    ),
    (
        "two-queues",
        {"preflight": {"queueName": "q", "queueFromOwner": True}},
        "preflight: queueName and queueFromOwner",
    ),
    ("one-port", {"metrics": {"port": 8443}}, "progress.port and metrics.port: both are 8443, and must differ"),
    ("no-workers", {"operator": {"workers": 0}}, "operator.workers: Input should be greater than"),
    ("no-image", {"trainer": {"image": ""}}, "trainer.image: String should have at least 1 character"),
    ("unknown", {"serving": {"server": {"imagee": "x"}}}, "serving.server.imagee: Extra inputs are not permitted"),
    ("quantity", {"preflight": {"resources": {"memory": "much"}}}, "preflight.resources.memory: "),
]


@pytest.mark.parametrize(("wrong", "complaint"), [pytest.param(*rest, id=name) for name, *rest in WRONG])
def test_wrong_settings_name_the_charts_value(tmp_path: Path, rendered: Rendered, wrong: Json, complaint: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(merged(rendered.config(), wrong)))
    with pytest.raises(InvalidSettings) as error:
        read_settings(file)
    assert complaint in str(error.value)


def merged(below: Json, above: Json) -> Json:
    """Return values with others laid over them."""
    return below | {
        name: merged(below[name], value) if isinstance(value, dict) and name in below else value
        for name, value in above.items()
    }


@pytest.mark.parametrize("text", [None, "trainer: [", "- a list"], ids=["no-file", "no-yaml", "no-map"])
def test_a_file_that_cannot_be_read_is_an_error_too(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidSettings):
        read_settings(file)


def test_the_operator_ends_at_once_with_all_errors(tmp_path: Path, rendered: Rendered) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(merged(rendered.config(), WRONG[0][1] | {"operator": {"workers": 0}})))
    command = [sys.executable, "-m", "tunery_operator", f"--config={file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    first, *errors = done.stderr.splitlines()
    assert (done.returncode, first) == (2, f"Invalid settings in {file}:")
    assert sorted(line.partition(":")[0] for line in errors) == [
        "operator.workers",
        "trainer.gpu.tolerations.0.operator",
    ]
