"""Kueue on a cluster, installed with its own chart, and queues for one namespace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kit.kubectl import Kubectl

NAMESPACE = "kueue-system"
RELEASE = "kueue"
API = "kueue.x-k8s.io/v1beta2"
FLAVOR = "tunery-tests"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
PLENTY = "100Gi"


def install(kubectl: Kubectl, chart: Path, image: str) -> None:
    """Install Kueue and return when its webhook answers, and its own API, without which no namespace could go."""
    manager = "controllerManager.manager"
    repository, _, tag = image.rpartition(":")
    flags = ["--set-string", f"{manager}.image.repository={repository},{manager}.image.tag={tag}"]
    # It works as well with less than the half core that it asks for; the node has two.
    flags += ["--set", f"{manager}.resources.requests.cpu=50m"]
    kubectl.program(
        *("helm", "upgrade", "--install", RELEASE, str(chart), "-n", NAMESPACE, "--create-namespace"),
        *("--wait", "--timeout", "180s"),
        *flags,
        timeout=240,
    )
    for version in ("v1beta1", "v1beta2"):
        name = f"apiservice/{version}.visibility.kueue.x-k8s.io"
        kubectl.run("wait", "--for=condition=Available", name, "--timeout=90s")
    kubectl.apply(object_("ResourceFlavor", FLAVOR, {}))


def uninstall(kubectl: Kubectl) -> None:
    """Remove Kueue, its definitions and every queue."""
    for kind in ("workloads", "localqueues", "clusterqueues", "resourceflavors", "workloadpriorityclasses"):
        # While the controller runs: it takes its own finalizers off.
        kubectl.run("delete", f"{kind}.kueue.x-k8s.io", "--all", "--all-namespaces", "--timeout=60s")
    kubectl.program("helm", "uninstall", RELEASE, "-n", NAMESPACE, "--wait", "--timeout", "60s")
    kubectl.delete("namespace", NAMESPACE, wait=False)


def object_(kind: str, name: str, spec: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
    """Return an object of Kueue."""
    where = {"namespace": namespace} if namespace else {}
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, **where}, "spec": spec}


def queue(namespace: str, name: str, cpu: str) -> list[dict[str, Any]]:
    """Return a LocalQueue, and a ClusterQueue of its own with a quota of `cpu`; higher priorities preempt lower ones.

    The ClusterQueue is named `<namespace>-<name>` and covers all that a Tunery pod asks for.
    """
    amounts = {"cpu": cpu, "memory": PLENTY, "ephemeral-storage": PLENTY, "nvidia.com/gpu": "2"}
    resources = [{"name": resource, "nominalQuota": amount} for resource, amount in amounts.items()]
    cluster_queue = f"{namespace}-{name}"
    group = {"coveredResources": list(amounts), "flavors": [{"name": FLAVOR, "resources": resources}]}
    spec = {
        "namespaceSelector": {},
        "resourceGroups": [group],
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }
    return [
        object_("ClusterQueue", cluster_queue, spec),
        object_("LocalQueue", name, {"clusterQueue": cluster_queue}, namespace),
    ]


def priority_class(name: str, value: int) -> dict[str, Any]:
    """Return a WorkloadPriorityClass."""
    return {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
