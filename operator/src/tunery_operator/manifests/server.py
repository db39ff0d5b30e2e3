"""All that is made for a server, from one plan."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from tunery_api.names import PLAN_ANNOTATION
from tunery_api.serving import DESIRED_FILE, GATEWAY_PORT, SERVE_FILE, Desired
from tunery_operator.manifests.metadata import metadata
from tunery_operator.manifests.server_pod import build_server_pod
from tunery_operator.manifests.volumes import CA_FILE
from tunery_operator.planning.adapterserver import ROLE, ServerPlan, pod_selector

PROGRESS_DEADLINE_SECONDS: Final = 3600
"""Kubernetes' own ten minutes are too short for a large model to be fetched and loaded."""
_REVISIONS: Final = 2


class ServerChildren(NamedTuple):
    """The children of a server, in the order in which they are made; what it serves comes by `build_desired`."""

    config: dict[str, Any]
    """The immutable ConfigMap with serve.json."""
    deployment: dict[str, Any]
    service: dict[str, Any]
    disruption_budget: dict[str, Any]
    network_policy: dict[str, Any] | None
    """None: the platform wants none."""


def build_server(plan: ServerPlan) -> ServerChildren:
    """Return the children of a plan."""
    return ServerChildren(
        _config(plan),
        _deployment(plan),
        _service(plan),
        _disruption_budget(plan),
        _network_policy(plan) if plan.network_policy else None,
    )


def build_desired(plan: ServerPlan, desired: Desired) -> dict[str, Any]:
    """Return the ConfigMap that the replicas read what they serve from, and whom they trust as they report.

    Neither makes new pods: the kubelet renews the files, and adapters also come with the answer to a report.
    """
    data = {DESIRED_FILE: _json(desired.model_dump(mode="json", by_alias=True, exclude_none=True))}
    if plan.progress is not None:
        data[CA_FILE] = plan.progress.ca_pem
    meta = metadata(plan.owner, plan.adapters_name, ROLE)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def read_desired(body: dict[str, Any] | None) -> Desired:
    """Return what a ConfigMap of the API server says; an empty Desired for None and for what nobody can read."""
    text = ((body or {}).get("data") or {}).get(DESIRED_FILE, "{}")
    try:
        return Desired.model_validate_json(text)
    except ValidationError:
        return Desired()


def _config(plan: ServerPlan) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(plan.owner, plan.config_name, ROLE),
        "immutable": True,
        "data": {SERVE_FILE: _json(plan.serve_json())},
    }


def _deployment(plan: ServerPlan) -> dict[str, Any]:
    meta = metadata(plan.owner, plan.name, ROLE)
    meta["labels"] |= plan.kueue_labels
    meta["annotations"] = {PLAN_ANNOTATION: plan.digest}
    rolling = {"maxSurge": plan.rollout.max_surge, "maxUnavailable": plan.rollout.max_unavailable}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": plan.replicas,
            "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
            "revisionHistoryLimit": _REVISIONS,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "selector": {"matchLabels": pod_selector(plan.owner)},
            "template": build_server_pod(plan),
        },
    }


def _service(plan: ServerPlan) -> dict[str, Any]:
    port = {"name": "http", "port": GATEWAY_PORT, "targetPort": "http", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(plan.owner, plan.name, ROLE),
        "spec": {"type": "ClusterIP", "selector": pod_selector(plan.owner), "ports": [port]},
    }


def _disruption_budget(plan: ServerPlan) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(plan.owner, plan.name, ROLE),
        # One at a time, also of one: a node must be drainable.
        "spec": {
            "maxUnavailable": 1,
            # A replica that is not ready serves nobody: it never holds a node back.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": pod_selector(plan.owner)},
        },
    }


def _network_policy(plan: ServerPlan) -> dict[str, Any]:
    """Return the policy that lets nobody in but by the gateway: engines open further ports by themselves."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(plan.owner, plan.name, ROLE),
        "spec": {
            "podSelector": {"matchLabels": pod_selector(plan.owner)},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": GATEWAY_PORT, "protocol": "TCP"}]}],
        },
    }


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
