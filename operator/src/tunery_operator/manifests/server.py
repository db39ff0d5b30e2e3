"""Build the children of an AdapterServer: ConfigMaps, Deployment, pod template, Service, budget, network policy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from tunery_api.names import OWNER_UID_LABEL, PLAN_ANNOTATION, TERMINATION_PATH
from tunery_api.serving import (
    DESIRED_DIR,
    DESIRED_FILE,
    ENGINE_SOCKET,
    GATEWAY_PORT,
    MODEL_DIR,
    SERVE_DIR,
    SERVE_FILE,
    Desired,
)
from tunery_operator.manifests.metadata import labels, metadata
from tunery_operator.manifests.pod import (
    ENVIRONMENT,
    container_security,
    env_list,
    pod_security,
    progress_env,
    pull_secrets,
    resource_requirements,
)
from tunery_operator.manifests.volumes import (
    CA_FILE,
    MountedVolume,
    build_server_volumes,
    build_volume_mount,
    ca_bundle_env,
    download_mounts,
    engine_mounts,
    gateway_mounts,
)
from tunery_operator.planning.adapterserver import ENGINE, GATEWAY, MODEL, ROLE, ServerPlan, pod_selector
from tunery_operator.planning.pod import Image, Resources

GRACE_SECONDS: Final = 90
"""preStop, then the engine finishes its requests, then the gateway ends: it is a sidecar, and so the last."""
_UNLISTED_SECONDS: Final = 5
"""Seconds before SIGTERM: until endpoints no longer list a pod that is being deleted."""
_START: Final = (
    f'rm -f {ENGINE_SOCKET}; end() {{ told=1 how=TERM; if [ -z "$ends" ] && [ -r /proc/net/unix ]; then how=KILL; '
    "while read -r _ _ _ flags _ _ _ path; do "
    f'[ "$flags $path" != "00010000 {ENGINE_SOCKET}" ] || how=TERM; done < /proc/net/unix; fi; '
    "ends=1; kill -$how $vllm; }; "
    f'vllm serve {MODEL_DIR} "$@" & vllm=$!; trap end TERM INT; code=127; '
    "while wait $vllm; now=$?; [ $now = 127 ] || code=$now; [ $told ]; do told=; done; exit $code"
)
"""vLLM does not take the socket that an engine before it has left.

As the first process of a container it would heed no SIGTERM before it has a handler, and while it loads it waits for
its own processes as long as for requests: the pod would end with its grace period. So the shell stays the first. Until
the engine listens at the socket, there is no request to finish, and the shell kills it; later it sends SIGTERM. A trap
ends `wait` early, so the shell waits again; `wait` returns 127 for a process whose exit code it has returned before.
"""
_GATEWAY_HOME: Final = "/tmp"  # noqa: S108
PROGRESS_DEADLINE_SECONDS: Final = 3600
"""Kubernetes' own ten minutes are too short for a large model to be fetched and loaded."""
_REVISIONS: Final = 2


def build_server_pod(plan: ServerPlan) -> dict[str, Any]:
    """Return the template of the pods of a server."""
    own = {**labels(plan.owner, ROLE), OWNER_UID_LABEL: plan.owner.uid}
    meta: dict[str, Any] = {"labels": {**plan.pod.labels, **own}}
    if plan.pod.annotations:
        meta["annotations"] = dict(plan.pod.annotations)
    return {"metadata": meta, "spec": {**_pod_spec(plan), **plan.scheduling.to_json_dict()}}


def _pod_spec(plan: ServerPlan) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security(plan.pod.security),
        "initContainers": [_model(plan), _gateway(plan)],
        "containers": [_engine(plan)],
        "volumes": build_server_volumes(plan),
        **pull_secrets(plan.gateway),
    }


def _model(plan: ServerPlan) -> dict[str, Any]:
    """Return the container that downloads the base model; it ends before the engine starts, and uses its resources."""
    resources = Resources(plan.resources.cpu, plan.resources.memory, plan.resources.ephemeral_storage)
    return {
        **_container(MODEL, plan.gateway, resources, download_mounts(plan)),
        "command": _command("fetch-model"),
        "env": env_list({**ENVIRONMENT, **plan.pod.env, **ca_bundle_env(plan.pod)}),
    }


def _gateway(plan: ServerPlan) -> dict[str, Any]:
    progress = {} if plan.progress is None else progress_env(plan.progress, DESIRED_DIR)
    variables = {"HOME": _GATEWAY_HOME, "PYTHONUNBUFFERED": "1", **plan.pod.env}
    variables |= ca_bundle_env(plan.pod) | progress
    return {
        **_container(GATEWAY, plan.gateway, plan.gateway_resources, gateway_mounts(plan)),
        "command": _command("gateway"),
        "restartPolicy": "Always",
        "ports": [{"name": "http", "containerPort": GATEWAY_PORT, "protocol": "TCP"}],
        "env": env_list(variables),
        # The engine starts once the gateway answers.
        "startupProbe": {**_probe("/livez", 2), "failureThreshold": 30},
        # A node that is busy makes it slow, and killing it would make the node busier.
        "livenessProbe": {**_probe("/livez", 10), "timeoutSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {**_probe("/readyz", 2), "timeoutSeconds": 5, "failureThreshold": 1},
    }


def _engine(plan: ServerPlan) -> dict[str, Any]:
    variables = {**ENVIRONMENT, **plan.pod.env, **plan.environment}
    return {
        **_container(ENGINE, plan.engine, plan.resources, engine_mounts(plan)),
        "command": ["sh", "-c", _START, "vllm", *plan.arguments],
        "env": env_list(variables),
        # The gateway polls the engine over its socket. A large model may take half an hour to load.
        "startupProbe": {**_probe("/healthz/engine", 5), "timeoutSeconds": 5, "failureThreshold": 360},
        "livenessProbe": {**_probe("/healthz/engine", 10), "timeoutSeconds": 5, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": _UNLISTED_SECONDS}}},
        # It writes no termination message: the end of its log has the cause.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _command(task: str) -> list[str]:
    return ["python", "-m", "tunery_server", task, f"{SERVE_DIR}/{SERVE_FILE}"]


def _container(name: str, image: Image, resources: Resources, mounted: Iterable[MountedVolume]) -> dict[str, Any]:
    return {
        "name": name,
        "image": image.name,
        "imagePullPolicy": image.pull_policy,
        "resources": resource_requirements(resources),
        "terminationMessagePath": TERMINATION_PATH,
        "terminationMessagePolicy": "File",
        "securityContext": container_security(),
        "volumeMounts": [build_volume_mount(each) for each in mounted],
    }


def _probe(path: str, period: int) -> Mapping[str, Any]:
    return {"httpGet": {"path": path, "port": GATEWAY_PORT}, "periodSeconds": period}


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
    """Return the content of a ConfigMap; an empty Desired for None and for invalid JSON."""
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
            # A replica that is not ready never blocks a drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": pod_selector(plan.owner)},
        },
    }


def _network_policy(plan: ServerPlan) -> dict[str, Any]:
    """Return the policy that allows ingress to the gateway's port only, since engines open further ports."""
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
