"""The chart installed as a platform team does it, in a namespace that enforces restricted Pod Security."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunery_api.kinds import Kind
from tunery_api.names import GROUP

from kit.accounts import kubeconfig_of
from kit.api_server import ApiServer
from kit.chart.rendering import CHART, NAMESPACE
from kit.kubectl import Kubectl
from tools.cluster.controlplane import ControlPlane

CRDS = tuple(f"{kind.plural}.{GROUP}" for kind in Kind)
TEAM = "team-a"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:tunery"


@contextmanager
def installation(folder: Path, *settings: str) -> Iterator[ApiServer]:
    """Run a control plane in `folder` with the chart and the namespace of a team; give kubectl as administrator."""
    with ControlPlane(folder).temporary() as plane:
        kubectl = kubectl_for(plane)
        _first_install(kubectl, *settings)
        yield kubectl


def helm_install(kubectl: Kubectl, *settings: str) -> None:
    """Install or upgrade the chart."""
    flags = [part for setting in settings for part in ("--set", setting)]
    kubectl.program("helm", "upgrade", "--install", "tunery", str(CHART), "-n", NAMESPACE, *flags)


def _first_install(kubectl: Kubectl, *settings: str) -> None:
    """Make the namespaces of the release and of a team, and install the chart."""
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name in (NAMESPACE, TEAM):
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforce}})
    helm_install(kubectl, *settings)
    kubectl.run("wait", "--for=condition=Established", *(f"crd/{name}" for name in CRDS), "--timeout=30s")


def can(api: ApiServer, who: str, verb: str, what: str, namespace: str = TEAM) -> bool:
    """Ask the API server whether `who` may; `what` is resource, resource.group or resource.group/subresource."""
    resource, _, subresource = what.partition("/")
    resource, _, group = resource.partition(".")
    attributes = {
        "verb": verb, "resource": resource, "group": group, "subresource": subresource, "namespace": namespace,
    }  # fmt: skip
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": who, "groups": ["system:authenticated"], "resourceAttributes": attributes},
    }
    return bool(api.create(review)["status"]["allowed"])


def kubeconfig_of_the_service_account(kubectl: Kubectl, folder: Path) -> Path:
    """Write a kubeconfig with the operator's own token."""
    return kubeconfig_of(kubectl, NAMESPACE, "tunery", folder)


def kubectl_for(plane: ControlPlane) -> ApiServer:
    """Return kubectl and helm against a control plane, as its administrator."""
    path = os.pathsep.join([str(plane.bin), os.environ["PATH"]])
    return ApiServer(os.environ | {"KUBECONFIG": str(plane.kubeconfig), "PATH": path})
