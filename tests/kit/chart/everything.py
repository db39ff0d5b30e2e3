"""Values of a platform that says all that it can of pods, and the pods that come of them."""

from __future__ import annotations

from typing import Any

from integration.chart.installed import test_admission as jobs
from integration.chart.installed import test_admission_servers as servers
from tunery_operator.manifests.job import build_job
from tunery_operator.planning.job import Platform

Json = dict[str, Any]
VALUES: Json = {
    "operator.podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "image.pullSecrets": ["registry"],
    "trainer.podLabels": {"cost-center": "42"},
    "trainer.podAnnotations": {"sidecar.istio.io/inject": "false"},
    "trainer.env": {"HTTPS_PROXY": "http://proxy:3128", "HF_HUB_ETAG_TIMEOUT": "30"},
    "trainer.caBundle": {"configMap": "corporate", "key": "ca.crt"},
    "trainer.inheritLabels": ["team.example.com/"],
    "trainer.nodeSelector": {"pool": "ml"},
    "trainer.tolerations": [{"key": "ml", "operator": "Exists"}],
    "trainer.priorityClassName": "batch",
    "trainer.runtimeClassName": "kata",
    "trainer.securityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "trainer.shmSize": "3Gi",
    "trainer.distributed": {"env": {"NCCL_SOCKET_IFNAME": "eth1"}, "resources": {"rdma/hca_shared": "1"}},
    "preflight.nodeSelector": {"pool": "cpu"},
    "preflight.tolerations": [{"key": "cpu", "operator": "Exists"}],
    "preflight.priorityClassName": "checks",
    "preflight.runtimeClassName": "runc",
    "serving.engine.runAsUser": None,
}
WORKS = ("train", "train-full", "train-nodes", "merge", "batch")
CHECKS = (
    "preflight",
    "preflight-full",
    "report",
    "publish",
    "batch-report",
    "publish-best",
    "sweep-report",
    "fetch",
    "batch-fetch",
)
SERVER = "server"


def pods(platform: Platform) -> dict[str, Json]:
    """Return the template of every kind of pod that the operator makes."""
    built = {name: build_job(plan) for name, plan in jobs.plans(platform).items()}
    built[SERVER] = servers.children(servers.plan(platform))["Deployment"]
    return {name: body["spec"]["template"] for name, body in built.items()}


def containers(spec: Json) -> dict[str, Json]:
    """Return all containers of a pod by name."""
    return {each["name"]: each for each in [*spec.get("initContainers", []), *spec["containers"]]}
