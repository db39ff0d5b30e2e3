"""The policies of servers on a real API server: what the operator builds passes, what it does not is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_api.serving import Desired
from tunery_operator.manifests.server import build_desired, build_server
from tunery_operator.observed.metadata import Owner, parse_owner
from tunery_operator.planning.adapterserver import ServerPlan, plan_server
from tunery_operator.planning.job import Platform

from kit.api_server import ApiServer
from kit.chart.installing import TEAM
from kit.chart.policies import patch_refusal, platform_of, refusal
from kit.chart.rendering import Helm
from kit.operator.servers import server_spec, wanted

Json = dict[str, Any]
Twist = Callable[[Json], object]
UID = "12345678-0000-0000-0000-000000000000"
FULL: Json = {
    "model": {"uri": "pvc://models/llama"},
    "adapterSecretRef": {"name": "s3"},
    "access": {"apiKeysSecretRef": {"name": "keys"}},
    "scheduling": {"serviceAccountName": "mine", "priorityClassName": "batch", "nodeSelector": {"a": "b"}},
    "resources": {"gpus": 0},
    "engine": {"image": "mine:1", "args": ["--seed=1"]},
}
KINDS = ("ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "Desired")


def owner() -> Owner:
    return parse_owner(Kind.ADAPTERSERVER, {"metadata": {"namespace": TEAM, "name": "x", "uid": UID}})


def plan(platform: Platform, **spec: Any) -> ServerPlan:
    return plan_server(server_spec(**spec), owner(), platform)


def children(found: ServerPlan) -> dict[str, Json]:
    """Return all that is made for a server, by kind."""
    built = {child["kind"]: child for child in build_server(found) if child is not None}
    return built | {"Desired": build_desired(found, Desired(revision=1, adapters=[wanted("bot")]))}


@pytest.mark.parametrize("spec", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_operator_builds_passes(operator: ApiServer, platform: Platform, kind: str, spec: Json) -> None:
    assert refusal(operator, children(plan(platform, **spec))[kind]) is None


def pod(body: Json) -> Json:
    spec: Json = body["spec"]["template"]["spec"]
    return spec


def container(body: Json, name: str) -> Json:
    every: list[Json] = [*pod(body)["initContainers"], *pod(body)["containers"]]
    return next(each for each in every if each["name"] == name)


def volume(body: Json, name: str, **source: Any) -> None:
    (index,) = [index for index, found in enumerate(pod(body)["volumes"]) if found["name"] == name]
    pod(body)["volumes"][index] = {"name": name, **source}


def show_the_engine(body: Json, name: str, path: str) -> None:
    """Mount a volume of the gateway's in the engine, too."""
    container(body, "engine")["volumeMounts"].append({"name": name, "mountPath": path})


PARTS = "belongs to one AdapterServer"
THREE = "the containers model, gateway and engine"
IMAGE = "model and gateway run the platform's image"
PROGRAM = "its own program"
HOOKS = "no hook or probe"
VARIABLES = "model and gateway have the variables"
POD = "complies with the restricted"
MOUNTS = "folders of its own"
PLACES = "no Secret is in the engine"
TWISTS: list[tuple[str, Twist, str]] = [
    ("no-label", lambda d: d["metadata"]["labels"].pop("app.kubernetes.io/managed-by"), PARTS),
    ("another-role", lambda d: d["metadata"]["labels"].update({"tunery.dev/role": "train"}), PARTS),
    ("another-owner", lambda d: d["metadata"]["ownerReferences"][0].update(kind="LoRAJob"), PARTS),
    ("another-name", lambda d: d["metadata"].update(name="coredns"), PARTS),
    ("sidecar", lambda d: pod(d)["containers"].append({**container(d, "engine"), "name": "b"}), THREE),
    ("no-gateway", lambda d: pod(d)["initContainers"].pop(), THREE),
    ("gateway-image", lambda d: container(d, "gateway").update(image="busybox:1"), IMAGE),
    ("gateway-image-with-our-prefix", lambda d: container(d, "gateway").update(image="tunery-server-evil:1"), IMAGE),
    ("shell-as-gateway", lambda d: container(d, "gateway").update(command=["sh", "-c", "env"]), PROGRAM),
    ("another-engine", lambda d: container(d, "engine")["command"].__setitem__(2, "sleep 9"), PROGRAM),
    ("arguments", lambda d: container(d, "model").update(args=["--help"]), PROGRAM),
    ("hook", lambda d: container(d, "engine").update(lifecycle={"postStart": {"exec": {"command": ["sh"]}}}), HOOKS),
    ("probe", lambda d: container(d, "gateway").update(livenessProbe={"exec": {"command": ["sh"]}}), HOOKS),
    ("port", lambda d: container(d, "gateway")["ports"].append({"containerPort": 9000}), HOOKS),
    ("preload", lambda d: container(d, "gateway")["env"].append({"name": "LD_PRELOAD", "value": "/mnt/x"}), VARIABLES),
    ("secrets", lambda d: container(d, "engine").update(envFrom=[{"secretRef": {"name": "s"}}]), VARIABLES),
    ("api-token", lambda d: pod(d).update(automountServiceAccountToken=True), "nothing of its node's"),
    ("host-network", lambda d: pod(d).update(hostNetwork=True), "nothing of its node's"),
    ("root", lambda d: pod(d)["securityContext"].update(runAsUser=0, runAsNonRoot=False), POD),
    ("root-engine", lambda d: container(d, "engine")["securityContext"].update(runAsUser=0), POD),
    ("writable-root", lambda d: container(d, "gateway")["securityContext"].update(readOnlyRootFilesystem=False), POD),
    ("host-path", lambda d: volume(d, "work", hostPath={"path": "/"}), MOUNTS),
    ("writable-claim", lambda d: volume(d, "volume-model", persistentVolumeClaim={"claimName": "m"}), MOUNTS),
    ("foreign-config-map", lambda d: volume(d, "desired", configMap={"name": "kube-root-ca.crt"}), MOUNTS),
    ("token-for-the-api", lambda d: volume(d, "progress-token", projected={"sources": [
        {"serviceAccountToken": {"path": "token"}}]}), MOUNTS),
    ("secret-in-the-engine", lambda d: show_the_engine(d, "secret-adapters", "/var/run/secrets/tunery/a"), PLACES),
    ("token-in-the-engine", lambda d: show_the_engine(d, "progress-token", "/var/run/tunery-progress"), PLACES),
    ("over-program", lambda d: container(d, "gateway")["volumeMounts"][0].update(mountPath="/usr/local/lib"), PLACES),
    ("system-priority", lambda d: pod(d).update(priorityClassName="system-node-critical"), "priority classes"),
]  # fmt: skip


@pytest.mark.parametrize(("twist", "why"), [pytest.param(twist, why, id=name) for name, twist, why in TWISTS])
def test_a_twisted_deployment_is_refused(operator: ApiServer, platform: Platform, twist: Twist, why: str) -> None:
    body = copy.deepcopy(children(plan(platform, **FULL))["Deployment"])
    twist(body)
    told = refusal(operator, body)
    assert told is not None
    assert why in told


@pytest.mark.parametrize(
    ("kind", "twist", "why"),
    [
        pytest.param(
            "Service", lambda s: s["spec"].update(selector={"app": "bank"}), "its own AdapterServer", id="pods"
        ),
        pytest.param("Service", lambda s: s["spec"].update(type="NodePort"), "from within the cluster", id="open"),
        pytest.param("NetworkPolicy", lambda n: n["spec"].update(podSelector={}), "its own AdapterServer", id="all"),
        pytest.param("ConfigMap", lambda c: c["metadata"].pop("labels"), PARTS, id="config"),
        pytest.param("Desired", lambda c: c["metadata"].update(name="other-adapters"), PARTS, id="name"),
    ],
)
def test_what_speaks_of_others_is_refused(
    operator: ApiServer, platform: Platform, kind: str, twist: Twist, why: str
) -> None:
    body = copy.deepcopy(children(plan(platform))[kind])
    twist(body)
    assert why in (refusal(operator, body) or "")


def test_a_pod_of_a_server_is_taken_where_restricted_pod_security_is_enforced(
    installed: ApiServer, platform: Platform
) -> None:
    body = children(plan(platform, adapterSecretRef={"name": "s3"}))["Deployment"]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod(body)}
    whole["spec"] |= {"serviceAccountName": "default"}
    assert refusal(installed, whole) is None
    container(body, "engine")["securityContext"].pop("allowPrivilegeEscalation")
    assert "violates PodSecurity" in (refusal(installed, whole) or "")


def test_the_operator_changes_what_is_its_own_and_nothing_else(
    installed: ApiServer, operator: ApiServer, platform: Platform
) -> None:
    built = children(plan(platform))
    for kind in ("Desired", "Deployment"):
        body = copy.deepcopy(built[kind])
        body["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] = False
        # Their owner is not there, and the garbage collector may come before the last line.
        body["metadata"]["finalizers"] = ["example.com/kept"]
        installed.apply(body, namespace=TEAM)
    assert patch_refusal(operator, "configmap", "x-adapters", {"data": {"adapters.json": "{}"}}) is None
    assert patch_refusal(operator, "deployment", "x-server", {"spec": {"replicas": 3}}) is None
    stolen = patch_refusal(operator, "configmap", "x-adapters", {"metadata": {"labels": {"tunery.dev/owner": "y"}}})
    assert "never changes whose something is" in (stolen or "")
    installed.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs"}}, namespace=TEAM)
    ours = {
        "labels": built["Desired"]["metadata"]["labels"],
        "ownerReferences": built["Desired"]["metadata"]["ownerReferences"],
    }
    taken = patch_refusal(operator, "configmap", "theirs", {"metadata": ours, "data": {"a": "b"}})
    assert taken is not None
    assert "denied" in taken


def test_a_platform_that_allows_no_other_image_has_that_enforced(helm: Helm) -> None:
    rendered = helm.render("serving.engine.allowImage=false")
    policies = {item["metadata"]["name"]: item for item in rendered.of("ValidatingAdmissionPolicy")}
    messages = [rule["message"] for rule in policies["tunery-server-pods"]["spec"]["validations"]]
    assert any("serving.engine.allowImage allows no other" in message for message in messages)
    assert platform_of(rendered).settings.serving.engine.allow_image is False
