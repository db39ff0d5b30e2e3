"""What a platform says of pods, value by value, stands on every kind of pod that it is meant for."""

from __future__ import annotations

import pytest

from kit.chart import everything
from kit.chart.everything import CHECKS, SERVER, VALUES, WORKS, Json, containers
from kit.chart.policies import platform_of
from kit.chart.rendering import Helm, Rendered


@pytest.fixture(scope="module")
def pods(helm: Helm) -> dict[str, Json]:
    return everything.pods(platform_of(helm.render(values=VALUES)))


@pytest.fixture(scope="module")
def pods_of_trainer(helm: Helm) -> dict[str, Json]:
    """The pods of a platform that says of trainer all that it can, and nothing of preflight."""
    values = {name: value for name, value in VALUES.items() if not name.startswith("preflight.")}
    return everything.pods(platform_of(helm.render(values=values)))


KINDS = [*WORKS, *CHECKS, SERVER]
PROXIED = ".svc,.cluster.local,localhost,127.0.0.1"
MOUNTED = "/mnt/tunery/ca-bundle"


def test_the_table_has_every_kind_of_pod(pods: dict[str, Json]) -> None:
    assert set(pods) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_variables_authorities_and_pull_secrets_are_on_every_pod(pods: dict[str, Json], kind: str) -> None:
    meta, spec = pods[kind]["metadata"], pods[kind]["spec"]
    assert meta["labels"]["cost-center"] == "42"
    assert meta["annotations"]["sidecar.istio.io/inject"] == "false"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    (volume,) = (each["configMap"] for each in spec["volumes"] if each["name"] == "volume-ca-bundle")
    assert volume == {"name": "corporate", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    for name, container in containers(spec).items():
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert (variables["HTTPS_PROXY"], variables["NO_PROXY"]) == ("http://proxy:3128", PROXIED)
        assert variables["HF_HUB_ETAG_TIMEOUT"] == "30"
        mounts = {each["mountPath"] for each in container["volumeMounts"] if each["name"] == "volume-ca-bundle"}
        # The engine opens no connection: it has no Secret, no token, and nobody to trust.
        trusts = set() if name == "engine" else {MOUNTED}
        assert mounts == trusts
        assert variables.get("TUNERY_CA_BUNDLE") == (f"{MOUNTED}/ca.crt" if trusts else None)


@pytest.mark.parametrize("kind", KINDS)
def test_no_pod_has_an_id_of_its_own_where_openshift_gives_them(pods: dict[str, Json], kind: str) -> None:
    spec = pods[kind]["spec"]
    ids = {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"}
    assert not ids & set(spec["securityContext"])
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in containers(spec).values():
        assert not ids & set(container["securityContext"])


@pytest.mark.parametrize("kind", [*WORKS, SERVER])
def test_what_works_runs_where_trainer_says(pods: dict[str, Json], kind: str) -> None:
    spec = pods[kind]["spec"]
    assert spec["nodeSelector"]["pool"] == "ml"
    assert {"key": "ml", "operator": "Exists"} in spec["tolerations"]
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("batch", "kata")
    (shm,) = (each["emptyDir"]["sizeLimit"] for each in spec["volumes"] if each["name"] == "shm")
    assert shm == ("11Gi" if kind == "train-nodes" else "3Gi")


@pytest.mark.parametrize("kind", CHECKS)
def test_what_checks_runs_where_preflight_says(pods: dict[str, Json], kind: str) -> None:
    spec = pods[kind]["spec"]
    assert spec["nodeSelector"] == {"pool": "cpu"}
    assert {"key": "cpu", "operator": "Exists"} in spec["tolerations"]
    assert {"key": "ml", "operator": "Exists"} not in spec["tolerations"]
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("checks", "runc")


@pytest.mark.parametrize("kind", CHECKS)
def test_what_checks_takes_nothing_of_where_trainer_says(pods_of_trainer: dict[str, Json], kind: str) -> None:
    spec = pods_of_trainer[kind]["spec"]
    assert not {"nodeSelector", "priorityClassName", "runtimeClassName"} & set(spec)
    assert {"key": "ml", "operator": "Exists"} not in spec.get("tolerations", [])


def test_the_operator_and_its_certificate_have_no_ids_either(helm: Helm) -> None:
    rendered = helm.render(values=VALUES)
    for pod in (rendered.pod(), rendered.one("Job")["spec"]["template"]["spec"]):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize(
    ("env", "told"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"NO_PROXY": "a.example.com"}, {"NO_PROXY": "a.example.com"}, id="no-proxy-without-a-proxy"),
        pytest.param({"http_proxy": "p"}, {"http_proxy": "p", "NO_PROXY": PROXIED}, id="lower-case"),
        pytest.param(
            {"HTTPS_PROXY": "p", "NO_PROXY": "10.0.0.0/8, .svc", "no_proxy": ""},
            {
                "HTTPS_PROXY": "p",
                "NO_PROXY": "10.0.0.0/8,.svc,.cluster.local,localhost,127.0.0.1",
                "no_proxy": PROXIED,
            },
            id="both-are-completed",
        ),
        pytest.param({"ALL_PROXY": "p", "NO_PROXY": "*"}, {"ALL_PROXY": "p", "NO_PROXY": "*"}, id="all"),
    ],
)
def test_what_is_in_the_cluster_is_not_reached_through_the_proxy(helm: Helm, env: Json, told: Json) -> None:
    assert platform_of(helm.render(values={"trainer.env": env})).settings.trainer.env == told


def test_where_no_authorities_are_named_nothing_is_mounted(rendered: Rendered) -> None:
    for template in everything.pods(platform_of(rendered)).values():
        assert "volume-ca-bundle" not in {each["name"] for each in template["spec"]["volumes"]}
        for container in containers(template["spec"]).values():
            assert "TUNERY_CA_BUNDLE" not in {each["name"] for each in container["env"]}
