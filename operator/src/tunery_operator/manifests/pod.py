"""Build the pod template of a Job: restricted Pod Security, no API token, requests equal limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from tunery_api.names import (
    MASTER_ENV,
    NODES_ENV,
    OWNER_UID_LABEL,
    PROGRESS_CA_ANNOTATION,
    PROGRESS_CA_ENV,
    PROGRESS_EVERY_ENV,
    PROGRESS_EVERY_SECONDS,
    PROGRESS_TOKEN_ENV,
    PROGRESS_URL_ENV,
    RUN_ANNOTATION,
    RUN_DIR,
    RUN_FILE,
    TERMINATION_PATH,
    WORK_DIR,
    container_name,
)
from tunery_operator.config import PodSecurity
from tunery_operator.manifests.metadata import labels
from tunery_operator.manifests.volumes import (
    CA_FILE,
    TOKEN_DIR,
    TOKEN_FILE,
    build_volume_mounts,
    build_volumes,
    ca_bundle_env,
)
from tunery_operator.planning.job import JobPlan, Progress
from tunery_operator.planning.pod import Image, Resources

ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": WORK_DIR,
    "HF_HOME": f"{WORK_DIR}/hf",
    "XDG_CACHE_HOME": f"{WORK_DIR}/cache",
    "TORCHINDUCTOR_CACHE_DIR": f"{WORK_DIR}/cache/inductor",
    "TRITON_CACHE_DIR": f"{WORK_DIR}/cache/triton",
    "MPLCONFIGDIR": f"{WORK_DIR}/cache/matplotlib",
    "PYTHONUNBUFFERED": "1",
}


def build_pod_template(plan: JobPlan) -> dict[str, Any]:
    """Return the template of the pods of a Job."""
    return {"metadata": _metadata(plan), "spec": {**_pod_spec(plan), **_scheduling(plan)}}


def _metadata(plan: JobPlan) -> dict[str, Any]:
    """Return the labels and annotations: what the operator and the pod itself need goes before all others.

    The run is an annotation: an object of its own could be missing, rejected or deleted (decision 32).
    """
    run = {RUN_ANNOTATION: json.dumps(plan.run.to_json_dict(), separators=(",", ":"), sort_keys=True)}
    if plan.progress is not None:
        run[PROGRESS_CA_ANNOTATION] = plan.progress.ca_pem
    own = {**labels(plan.owner, plan.task.value), OWNER_UID_LABEL: plan.owner.uid}
    return {"labels": {**plan.pod.labels, **own}, "annotations": {**plan.pod.annotations, **run}}


def _pod_spec(plan: JobPlan) -> dict[str, Any]:
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": plan.grace_seconds,
        "securityContext": pod_security(plan.pod.security),
        **({"subdomain": plan.service} if plan.nodes > 1 else {}),
        "containers": [_container(plan)],
        "volumes": build_volumes(plan),
        **pull_secrets(plan.image),
    }


def pod_security(ids: PodSecurity) -> dict[str, Any]:
    """Return the pod's security context; an id that is None is left for the cluster to choose."""
    chosen = {"runAsUser": ids.run_as_user, "runAsGroup": ids.run_as_group, "fsGroup": ids.fs_group}
    return {
        "runAsNonRoot": True,
        **{name: number for name, number in chosen.items() if number is not None},
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Return the security context of every container of ours."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pull_secrets(image: Image) -> dict[str, Any]:
    """Return the field of the pod that names the Secrets of the registry; nothing where there are none."""
    names = image.pull_secrets
    return {"imagePullSecrets": [{"name": name} for name in names]} if names else {}


def _container(plan: JobPlan) -> dict[str, Any]:
    return {
        "name": container_name(plan.owner.key.kind.singular),
        "image": plan.image.name,
        "imagePullPolicy": plan.image.pull_policy,
        "command": ["python", "-m", plan.program, plan.task.value, f"{RUN_DIR}/{RUN_FILE}"],
        "env": env_list(_environment(plan)),
        "resources": resource_requirements(plan.resources, plan.pod.resources),
        "terminationMessagePath": TERMINATION_PATH,
        "terminationMessagePolicy": "File",
        "securityContext": container_security(),
        "volumeMounts": build_volume_mounts(plan),
    }


def env_list(variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Return variables as a container lists them."""
    return [{"name": name, "value": value} for name, value in variables.items()]


def _environment(plan: JobPlan) -> dict[str, str]:
    """Return the variables: the platform may move a cache, but not where progress is reported to."""
    progress = {}
    if plan.progress is not None:
        progress = progress_env(plan.progress, RUN_DIR) | {PROGRESS_EVERY_ENV: str(PROGRESS_EVERY_SECONDS)}
    return {**ENVIRONMENT, **plan.pod.env, **ca_bundle_env(plan.pod), **progress, **_nodes_env(plan)}


def _nodes_env(plan: JobPlan) -> dict[str, str]:
    """Return by what a pod of several finds the first one; nothing where it works alone."""
    if plan.nodes == 1:
        return {}
    return {NODES_ENV: str(plan.nodes), MASTER_ENV: f"{plan.name}-0.{plan.service}"}


def progress_env(progress: Progress, ca_folder: str) -> dict[str, str]:
    """Return the variables that transformers' KubeflowCallback reads: a URL and two paths."""
    return {
        PROGRESS_URL_ENV: progress.url,
        PROGRESS_CA_ENV: f"{ca_folder}/{CA_FILE}",
        PROGRESS_TOKEN_ENV: f"{TOKEN_DIR}/{TOKEN_FILE}",
    }


def resource_requirements(resources: Resources, extended: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the resources of a container, with the platform's extended resources: requests equal limits."""
    requests = {
        **(extended or {}),
        "cpu": resources.cpu,
        "memory": resources.memory,
        "ephemeral-storage": resources.ephemeral_storage,
    }
    if resources.gpus:
        requests[resources.gpu_resource] = str(resources.gpus)
    return {"requests": requests, "limits": dict(requests)}


def _scheduling(plan: JobPlan) -> dict[str, Any]:
    """Return the fields of the pod that the manifest may set: an allow-list, named like the pod's own."""
    return plan.scheduling.to_json_dict()
