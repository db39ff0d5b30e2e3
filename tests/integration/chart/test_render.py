"""What the chart renders: the operator's pod, its certificate, its monitors, the CRDs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from tunery_api.fields import parse_quantity
from tunery_api.kinds import Kind
from tunery_operator import metrics
from tunery_operator.controllers.sampler_pool import MAX_PROCESSES

from kit.chart.rendering import CHART, NAMESPACE, VERSION, Helm, HelmError, Rendered

NAMES = ("operator", "trainer", "server")
PINNED = "mirror:5000/own@sha256:" + "a" * 64


def test_the_pod_complies_with_the_restricted_standard(rendered: Rendered) -> None:
    pod = rendered.pod()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"hostNetwork", "hostPID", "hostIPC"} & set(pod) == set()
    assert all(set(volume) - {"name"} <= {"secret", "emptyDir", "configMap"} for volume in pod["volumes"])
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.slow
def test_the_ids_can_be_left_to_openshift_and_variables_be_added(helm: Helm) -> None:
    context = "operator.podSecurityContext"
    pod = helm.render(
        f"{context}.runAsUser=null",
        f"{context}.runAsGroup=null",
        f"{context}.fsGroup=null",
        "operator.extraEnv[0].name=HTTPS_PROXY",
        "operator.extraEnv[0].value=http://proxy:3128",
    ).pod()
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in pod["containers"][0]["env"]


def test_a_service_account_of_ones_own(helm: Helm) -> None:
    rendered = helm.render("serviceAccount.create=false", "serviceAccount.name=mine")
    assert [account["metadata"]["name"] for account in rendered.of("ServiceAccount")] == ["tunery-certificate"]
    assert rendered.pod()["serviceAccountName"] == "mine"
    assert rendered.one("ClusterRoleBinding")["subjects"][0]["name"] == "mine"
    with pytest.raises(HelmError, match=r"serviceAccount\.name: is required"):
        helm.render("serviceAccount.create=false")


def test_two_replicas_that_no_node_and_no_drain_takes_down_together(rendered: Rendered) -> None:
    spec = rendered.one("Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    budget = rendered.one("PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, spec["selector"])
    (spread,) = rendered.pod()["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["labelSelector"]) == ("kubernetes.io/hostname", spec["selector"])


def test_a_dead_node_is_given_up_after_half_a_minute(helm: Helm) -> None:
    own = {"key": "infra", "operator": "Exists"}
    tolerations = helm.render(values={"operator.tolerations": [own]}).pod()["tolerations"]
    seconds = {t["key"]: t.get("tolerationSeconds") for t in tolerations}
    assert seconds == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30, "infra": None}


def test_probes_and_resources(rendered: Rendered) -> None:
    (container,) = rendered.pod()["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]


def test_the_memory_holds_the_samplers_of_sweeps(rendered: Rendered) -> None:
    """106 MiB with 1,000 running jobs, 61 MiB a sampler that reads 256 trials."""
    (container,) = rendered.pod()["containers"]
    assert parse_quantity(container["resources"]["requests"]["memory"]) >= (106 + MAX_PROCESSES * 61) * 2**20


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


def secret_of(rendered: Rendered) -> dict[str, Any]:
    """Return the volume with the certificate."""
    (volume,) = (each["secret"] for each in rendered.pod()["volumes"] if "secret" in each)
    return dict(volume)


def test_the_certificates_secret_is_not_rendered_and_one_account_may_make_it(rendered: Rendered) -> None:
    assert rendered.of("Secret") == []
    mounted = secret_of(rendered)
    name = mounted["secretName"]
    # A pod of the operator waits for each of them.
    assert {item["key"] for item in mounted["items"]} == {"ca.crt", "tls.crt", "tls.key"}
    pod = rendered.one("Job")["spec"]["template"]["spec"]
    accounts = {account["metadata"]["name"] for account in rendered.of("ServiceAccount")}
    assert accounts == {pod["serviceAccountName"], rendered.pod()["serviceAccountName"]}
    (container,) = pod["containers"]
    asked = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    assert (asked["secret"], asked["host"], asked["days"]) == (name, "tunery.tunery-system.svc", "3650")
    assert asked["namespace"] == NAMESPACE


def test_the_job_of_the_certificate_runs_as_the_operator_does(helm: Helm) -> None:
    values = {
        "image.pullSecrets": ["registry"],
        "operator.nodeSelector": {"pool": "infra"},
        "operator.tolerations": [{"key": "infra", "operator": "Exists"}],
        "operator.priorityClassName": "infra",
        "operator.podLabels": {"team": "ml"},
        "operator.podAnnotations": {"sidecar.istio.io/inject": "false"},
        "operator.extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "operator.podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "progress.certificate.jobLabels": {"kueue.x-k8s.io/queue-name": "infra"},
    }
    rendered = helm.render(values=values)
    assert rendered.one("Job")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "infra"
    template, own = rendered.one("Job")["spec"]["template"], rendered.pod()
    pod = template["spec"]
    for field in ("imagePullSecrets", "nodeSelector", "priorityClassName", "securityContext"):
        assert pod[field] == own[field]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["tolerations"] == values["operator.tolerations"]
    assert (template["metadata"]["labels"]["team"], template["metadata"]["annotations"]) == (
        "ml",
        values["operator.podAnnotations"],
    )
    (container,), (operators,) = pod["containers"], own["containers"]
    assert (container["image"], container["securityContext"]) == (operators["image"], operators["securityContext"])
    assert container["env"] == values["operator.extraEnv"]
    # It is no pod of the operator: no Service, budget or monitor may take it for one.
    selector = rendered.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= template["metadata"]["labels"].items()


@pytest.mark.slow
def test_another_image_is_another_job_and_no_name_is_too_long(helm: Helm) -> None:
    name = "n" * 50
    rendered = helm.render(f"fullnameOverride={name}")
    other = helm.render(f"fullnameOverride={name}", "image.tag=v2")
    assert rendered.one("Job")["metadata"]["name"] != other.one("Job")["metadata"]["name"]
    assert max(len(document["metadata"]["name"]) for document in rendered.documents) <= 63


def test_an_existing_certificate_is_mounted_and_none_is_made(helm: Helm) -> None:
    rendered = helm.render("progress.certificate.existingSecret=mine")
    assert rendered.of("Secret") == rendered.of("Job") == []
    assert secret_of(rendered)["secretName"] == "mine"
    assert len(rendered.of("ServiceAccount")) == 1


def test_cert_manager_issues_the_certificate(helm: Helm) -> None:
    prefix = "progress.certificate.certManager"
    rendered = helm.render(f"{prefix}.enabled=true", f"{prefix}.issuerRef.name=ca", f"{prefix}.issuerRef.kind=Issuer")
    certificate = rendered.one("Certificate")["spec"]
    assert rendered.of("Secret") == rendered.of("Job") == []
    assert certificate["dnsNames"] == ["tunery.tunery-system.svc"]
    assert certificate["issuerRef"] == {"name": "ca", "kind": "Issuer"}
    assert certificate["privateKey"] == {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"}
    assert certificate["secretName"] == secret_of(rendered)["secretName"]


@pytest.mark.parametrize("keep", [True, False])
def test_the_crds_are_the_generated_ones(helm: Helm, keep: bool) -> None:
    rendered = {
        crd["metadata"]["name"]: crd
        for crd in helm.render(f"crds.keep={str(keep).lower()}").of("CustomResourceDefinition")
    }
    sources = sorted((CHART.parents[1] / "crds").glob("*.yaml"))
    assert len(sources) == len(Kind)
    for path in sources:
        source = yaml.load(path.read_text(), yaml.CSafeLoader)
        crd = rendered[source["metadata"]["name"]]
        assert _with_floats(crd["spec"]) == _with_floats(source["spec"])
        policy = crd["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        assert policy == ("keep" if keep else None)


def _with_floats(value: Any) -> Any:
    """Return a tree whose numbers are floats, as they are to the API server: Helm writes 1e-99, a text to PyYAML."""
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    is_number = isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?\d+e[+-]\d+", value))
    return float(value) if is_number and not isinstance(value, bool) else value


def test_crds_can_be_left_out(helm: Helm) -> None:
    assert helm.render("crds.install=false").of("CustomResourceDefinition") == []


@pytest.mark.parametrize(
    ("settings", "images"),
    [
        pytest.param([], [f"tunery-{name}:{VERSION}" for name in NAMES], id="default"),
        pytest.param(
            ["image.registry=registry.example.com:5000/ml/", "image.tag=v9"],
            [f"registry.example.com:5000/ml/tunery-{name}:v9" for name in NAMES],
            id="registry-and-tag",
        ),
        pytest.param(
            ["image.tag=v9", f"operator.image={PINNED}", f"serving.server.image={PINNED}"],
            [PINNED, "tunery-trainer:v9", PINNED],
            id="overrides",
        ),
    ],
)
def test_image_references(helm: Helm, settings: list[str], images: list[str]) -> None:
    rendered = helm.render(*settings)
    (container,) = rendered.pod()["containers"]
    (certificate,) = rendered.one("Job")["spec"]["template"]["spec"]["containers"]
    read = rendered.settings()
    assert [container["image"], read.trainer.image, read.serving.server.image] == images
    assert certificate["image"] == images[0]
    policies = str(rendered.of("ValidatingAdmissionPolicy"))
    for image in images[1:]:
        assert f'["{image.partition("@")[0].removesuffix(":v9").removesuffix(f":{VERSION}")}"]' in policies


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        pytest.param("operator.imagee=v1", "imagee", id="typo"),
        pytest.param("replicas=2", "replicas", id="unknown"),
        pytest.param("operator.logging.level=LOUD", "level", id="enum"),
        pytest.param("image.tag=latest", "tag", id="latest"),
        pytest.param("defaultOutput.uri=http://bucket", "uri", id="scheme"),
        pytest.param("gpuMemory.nvidia\\.com/gpu=much", "gpu", id="quantity"),
        pytest.param("progress.certificate.certManager.enabled=true", "issuerRef", id="issuer-missing"),
        pytest.param("operator.replicas=0", "replicas", id="no-replica"),
        pytest.param("operator.extraEnv[0].name=POD_NAME", "extraEnv", id="variable-of-the-chart"),
        pytest.param("trainer.env.A-B=c", "A-B", id="variables-name"),
        pytest.param("trainer.securityContext.runAsUser=0", "runAsUser", id="root"),
        pytest.param("trainer.gpus.tolerations=", "gpus", id="typo-below-trainer"),
        pytest.param("serving.engine.image=vllm/vllm-openai", "'/serving/engine/image'", id="engine-without-a-version"),
        pytest.param("serving.engine.runAsUser=0", "runAsUser", id="root-engine"),
        pytest.param("watchNamespaces={a,a}", "watchNamespaces", id="twice"),
        pytest.param("admissionPolicy.validationActions={Refuse}", "validationActions", id="action"),
        pytest.param("tenantPolicy.outputPrefixes={s3://bucket}", "outputPrefixes", id="prefix-without-slash"),
        # What the operator would only refuse as it starts.
        pytest.param("trainer.gpu.tolerations[0].operator=Exist", "'/trainer/gpu/tolerations/0/operator'", id="exist"),
        pytest.param("preflight.tolerations[0].keys=gpu", "'/preflight/tolerations/0'.*'keys'", id="toleration"),
        pytest.param("trainer.podLabels.team=a b", "'/trainer/podLabels/team'", id="label-with-a-space"),
        pytest.param("trainer.podLabels.tunery\\.dev/role=x", "propertyName 'tunery.dev/role'", id="label-of-ours"),
        pytest.param("operator.workers=null", "'/operator': missing property 'workers'", id="null"),
        pytest.param("serving=null", "missing property 'serving'", id="a-section-of-comments"),
        pytest.param(
            "preflight.queueName=a,preflight.queueFromOwner=true",
            "'/preflight/queueName'",
            id="two-queues",
        ),
    ],
)
def test_the_schema_refuses_wrong_values(helm: Helm, setting: str, complaint: str) -> None:
    with pytest.raises(HelmError, match=complaint):
        helm.render(setting)


@pytest.mark.slow
def test_the_network_policy_lets_in_what_the_service_offers(helm: Helm) -> None:
    assert helm.render().of("NetworkPolicy") == []
    prometheus = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    rendered = helm.render("networkPolicy.enabled=true", values={"networkPolicy.metricsFrom": prometheus})
    policy, errands = (each["spec"] for each in rendered.of("NetworkPolicy"))
    labels = rendered.one("Job")["spec"]["template"]["metadata"]["labels"]
    assert errands["podSelector"]["matchLabels"].items() <= labels.items()
    (components,) = errands["podSelector"]["matchExpressions"]
    assert labels[components["key"]] in components["values"]
    assert (errands["egress"][:-1], "ingress" in errands) == (policy["egress"], False)
    assert errands["egress"][-1]["to"][0]["podSelector"] == policy["podSelector"]
    test = [{"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "tunery", components["key"]: "test"}}}]
    assert policy["podSelector"] == rendered.one("Deployment")["spec"]["selector"]
    sources = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert sources == {"progress": [{"namespaceSelector": {}}], "metrics": prometheus + test}
    assert set(sources) == {port["targetPort"] for port in rendered.one("Service")["spec"]["ports"]}
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 443, 6443]


@pytest.mark.slow
def test_prometheus_scrapes_every_replica(helm: Helm) -> None:
    rendered = helm.render("metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.labels.release=prom")
    monitor, service = rendered.one("ServiceMonitor"), rendered.one("Service")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    # What is of a tenant is labelled with the tenant's namespace.
    assert endpoint["honorLabels"] is True


@pytest.mark.slow
def test_alerts_speak_of_metrics_that_there_are(helm: Helm) -> None:
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    base = "https://docs.example.com/operations"
    rendered = helm.render("metrics.rules.enabled=true", f"metrics.rules.runbookUrl={base}")
    (group,) = rendered.one("PrometheusRule")["spec"]["groups"]
    known = names_of_metrics()
    for rule in group["rules"]:
        own = set(re.findall(r"tunery_[a-z_]+", rule["expr"]))
        assert own <= known, rule["alert"]
        assert own or re.search("(container|kube)_[a-z_]+{", rule["expr"]), rule["alert"]
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"] == f"{base}#{rule['alert'].lower()}"
        assert f"\n#### {rule['alert']}\n" in page
    assert len(group["rules"]) == page.count("\n#### Tunery")
    (plain,) = helm.render("metrics.rules.enabled=true").one("PrometheusRule")["spec"]["groups"]
    assert {key for rule in plain["rules"] for key in rule["annotations"]} == {"summary"}


def names_of_metrics() -> set[str]:
    """Return the names of the operator's metrics, as Prometheus sees them."""
    state = metrics.State(dict, dict, dict, float)
    families = [*REGISTRY.collect(), *metrics.StateCollector(state).collect()]
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_the_chart_says_which_kinds_it_brings() -> None:
    told = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert told["maintainers"]
    crds = yaml.safe_load(told["annotations"]["artifacthub.io/crds"])
    assert {(crd["kind"], crd["name"]) for crd in crds} == {(kind.value, f"{kind.plural}.tunery.dev") for kind in Kind}
    assert all(crd["description"] for crd in crds)


def test_lint_finds_nothing(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", "--kube-version", "1.34.0", str(CHART))
