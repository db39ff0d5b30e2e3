"""What the chart renders: the operator's settings, its rights, its pod, its certificate."""

from __future__ import annotations

import base64
import re
import shlex
from typing import Any

import pytest
import yaml
from cryptography import x509

from tunery_operator.kube.rbac import PERMISSIONS
from tunery_operator.settings import Settings

from .rendering import CHART, NAMESPACE, Helm, HelmError, Rendered


def test_env_variables_are_the_fields_of_settings(rendered: Rendered) -> None:
    fields = {f"TUNERY_{name.upper()}" for name in Settings.model_fields}
    assert set(rendered.env()) == fields


def test_settings_read_what_is_rendered(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = helm.render(
        "gpuMemory.nvidia\\.com/gpu=80Gi",
        "defaultOutput.uri=s3://bucket/adapters",
        "defaultOutput.secretName=s3",
        "trainer.pullSecrets={registry,mirror}",
        "trainer.image.repository=registry.example.com/trainer",
        "trainer.image.tag=v2",
        "preflight.resources.memory=6Gi",
        "operator.logging.level=DEBUG",
        "progress.port=9443",
    )
    for name, value in rendered.env().items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.trainer_image == "registry.example.com/trainer:v2"
    assert settings.trainer_pull_secrets == ["registry", "mirror"]
    assert settings.gpu_memory_bytes("nvidia.com/gpu") == 80 * 2**30
    assert (settings.default_output_uri, settings.default_output_secret) == ("s3://bucket/adapters", "s3")
    assert settings.preflight_memory == "6Gi"
    assert settings.log_level == "DEBUG"
    assert settings.progress_url == "https://tunery.tunery-system.svc:9443"
    assert settings.progress_port == 9443


def test_the_role_of_the_operator_is_what_its_code_uses(rendered: Rendered) -> None:
    (role,) = [role for role in rendered.of("ClusterRole") if role["metadata"]["name"] == "tunery"]
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {(call.group, call.rbac_resource, call.verb) for call in PERMISSIONS}
    assert rendered.of("Role") == []


def test_the_pod_complies_with_the_restricted_standard(rendered: Rendered) -> None:
    pod = rendered.pod()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"hostNetwork", "hostPID", "hostIPC"} & set(pod) == set()
    assert all(set(volume) - {"name"} <= {"secret", "emptyDir"} for volume in pod["volumes"])
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_one_operator_at_a_time_with_probes_and_resources(rendered: Rendered) -> None:
    spec = rendered.one("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (container,) = rendered.pod()["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


def test_the_selector_selects_the_pod_and_the_service_reaches_its_ports(rendered: Rendered) -> None:
    deployment = rendered.one("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    service = rendered.one("Service")["spec"]
    for selector in (deployment["selector"]["matchLabels"], service["selector"]):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in rendered.pod()["containers"][0]["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports


def test_nothing_of_the_chart_is_taken_for_a_child_of_the_operator(rendered: Rendered) -> None:
    for document in rendered.documents:
        assert document["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") == "Helm", document["kind"]


def test_the_certificate_is_the_services_and_its_ca_vouches_for_it(rendered: Rendered) -> None:
    secret = rendered.one("Secret")
    ca, certificate = (
        x509.load_pem_x509_certificate(base64.b64decode(secret["data"][key])) for key in ("ca.crt", "tls.crt")
    )
    certificate.verify_directly_issued_by(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["tunery.tunery-system.svc"]
    assert rendered.pod()["volumes"][0]["secret"]["secretName"] == secret["metadata"]["name"]


def test_an_existing_certificate_is_mounted_and_none_is_made(helm: Helm) -> None:
    rendered = helm.render("progress.certificate.existingSecret=mine")
    assert rendered.of("Secret") == []
    assert rendered.pod()["volumes"][0]["secret"]["secretName"] == "mine"


def test_cert_manager_issues_the_certificate(helm: Helm) -> None:
    prefix = "progress.certificate.certManager"
    rendered = helm.render(f"{prefix}.enabled=true", f"{prefix}.issuerRef.name=ca", f"{prefix}.issuerRef.kind=Issuer")
    certificate = rendered.one("Certificate")["spec"]
    assert rendered.of("Secret") == []
    assert certificate["dnsNames"] == ["tunery.tunery-system.svc"]
    assert certificate["issuerRef"] == {"name": "ca", "kind": "Issuer"}
    assert certificate["secretName"] == rendered.pod()["volumes"][0]["secret"]["secretName"]


@pytest.mark.parametrize("keep", [True, False])
def test_the_crds_are_the_generated_ones(helm: Helm, keep: bool) -> None:
    rendered = {
        crd["metadata"]["name"]: crd
        for crd in helm.render(f"crds.keep={str(keep).lower()}").of("CustomResourceDefinition")
    }
    sources = sorted((CHART.parents[1] / "crds").glob("*.yaml"))
    assert len(sources) == 2
    for path in sources:
        source = yaml.safe_load(path.read_text())
        crd = rendered[source["metadata"]["name"]]
        assert crd["spec"] == source["spec"]
        policy = crd["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        assert policy == ("keep" if keep else None)


def test_crds_can_be_left_out(helm: Helm) -> None:
    assert helm.render("crds.install=false").of("CustomResourceDefinition") == []


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        pytest.param([], "tunery-operator:0.1.0", id="default"),
        pytest.param(
            ["imageRegistry=registry.example.com/ml/"], "registry.example.com/ml/tunery-operator:0.1.0", id="registry"
        ),
        pytest.param(["operator.image.tag=v9"], "tunery-operator:v9", id="tag"),
        pytest.param(
            ["operator.image.tag=v9", "operator.image.digest=sha256:" + "a" * 64],
            "tunery-operator@sha256:" + "a" * 64,
            id="digest-wins",
        ),
    ],
)
def test_image_references(helm: Helm, settings: list[str], image: str) -> None:
    assert helm.render(*settings).pod()["containers"][0]["image"] == image


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        pytest.param("operator.imagee.tag=v1", "imagee", id="typo"),
        pytest.param("replicas=2", "replicas", id="unknown"),
        pytest.param("operator.logging.level=LOUD", "level", id="enum"),
        pytest.param("operator.image.tag=latest", "tag", id="latest"),
        pytest.param("defaultOutput.uri=http://bucket", "uri", id="scheme"),
        pytest.param("gpuMemory.nvidia\\.com/gpu=much", "gpu", id="quantity"),
        pytest.param("progress.certificate.certManager.enabled=true", "issuerRef", id="issuer-missing"),
    ],
)
def test_the_schema_refuses_wrong_values(helm: Helm, setting: str, complaint: str) -> None:
    with pytest.raises(HelmError, match=complaint):
        helm.render(setting)


def test_roles_for_people_aggregate_and_leave_status_to_the_operator(rendered: Rendered) -> None:
    roles = {role["metadata"]["name"]: role for role in rendered.of("ClusterRole")}
    view, edit = roles["tunery-view"], roles["tunery-edit"]
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key for key in view["metadata"]["labels"] if key.startswith(prefix)} == {
        f"{prefix}{who}" for who in ("view", "edit", "admin")
    }
    assert {key for key in edit["metadata"]["labels"] if key.startswith(prefix)} == {
        f"{prefix}{who}" for who in ("edit", "admin")
    }
    assert verbs(view) == {"get", "list", "watch"}
    assert {resource for rule in edit["rules"] for resource in rule["resources"]} == {"lorajobs", "adaptermerges"}


def verbs(role: dict[str, Any]) -> set[str]:
    return {verb for rule in role["rules"] for verb in rule["verbs"]}


def test_roles_for_people_can_be_left_out(helm: Helm) -> None:
    names = [role["metadata"]["name"] for role in helm.render("rbac.aggregateRoles=false").of("ClusterRole")]
    assert names == ["tunery"]


@pytest.mark.parametrize("page", ["docs/install.md", "README.md"])
def test_the_documented_command_renders(helm: Helm, page: str) -> None:
    text = (CHART.parents[1] / page).read_text().replace("\\\n", " ").replace("…", "v1")
    (command,) = re.findall(r"^helm install tunery charts/tunery (.*)$", text, re.MULTILINE)
    flags = [flag for flag in shlex.split(command) if flag != "--wait"]
    rendered = Rendered.parse(helm.run("template", "tunery", str(CHART), "--kube-version", "1.34.0", *flags))
    assert rendered.env()["TUNERY_TRAINER_IMAGE"] != "tunery-trainer:0.1.0"
    assert rendered.one("Deployment")["metadata"]["namespace"] == NAMESPACE


def test_lint_finds_nothing(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", "--kube-version", "1.34.0", str(CHART))
