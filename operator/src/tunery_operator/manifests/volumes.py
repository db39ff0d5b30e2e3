"""Build the volumes and mounts of the pods of Jobs and of servers; the engine of a server mounts no Secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tunery_api.names import (
    CA_BUNDLE_ENV,
    PROGRESS_AUDIENCE,
    PROGRESS_CA_ANNOTATION,
    RUN_ANNOTATION,
    RUN_DIR,
    RUN_FILE,
    VOLUMES_DIR,
    WORK_DIR,
)
from tunery_api.runspec import Purpose
from tunery_api.serving import ADAPTERS_DIR, DESIRED_DIR, MODEL_DIR, SERVE_DIR, SOCKET_DIR
from tunery_operator.planning.adapterserver import API_KEYS, ServerPlan
from tunery_operator.planning.job import JobPlan
from tunery_operator.planning.pod import PodExtras, SecretMount, VolumeMount

CA_FILE: Final = "progress-ca.crt"
TOKEN_DIR: Final = "/var/run/tunery-progress"
TOKEN_FILE: Final = "token"
TOKEN_SECONDS: Final = 3600
TMP_SIZE: Final = "2Gi"

_CA_BUNDLE: Final = "ca-bundle"
"""The volume of trainer.caBundle."""
_SOCKET_SIZE: Final = "1Mi"
_TMP: Final = "/tmp"  # noqa: S108


class Mounted(NamedTuple):
    """One volume and the path it is mounted at."""

    volume: dict[str, Any]
    path: str
    read_only: bool = True


def build_volumes(plan: JobPlan) -> list[dict[str, Any]]:
    """Return the volumes of the pod."""
    return [mounted.volume for mounted in _mounted(plan)]


def build_volume_mounts(plan: JobPlan) -> list[dict[str, Any]]:
    """Return the mounts of the container."""
    return [build_mount(mounted) for mounted in _mounted(plan)]


def build_mount(mounted: Mounted) -> dict[str, Any]:
    """Return how a container sees a volume."""
    mount = {"name": mounted.volume["name"], "mountPath": mounted.path}
    return {**mount, "readOnly": True} if mounted.read_only else mount


def _mounted(plan: JobPlan) -> Iterator[Mounted]:
    yield Mounted(_run_volume(plan), RUN_DIR)
    work = {"name": "work", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}
    yield Mounted(work, WORK_DIR, read_only=False)
    yield Mounted({"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}}, "/tmp", read_only=False)  # noqa: S108
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": plan.pod.shm_size}}
    yield Mounted(shm, "/dev/shm", read_only=False)  # noqa: S108
    for secret in plan.secrets:
        yield secret_mounted(secret)
    for mount in plan.volumes:
        yield tenant_mounted(mount)
    yield from authorities_mounted(plan.pod)
    if plan.progress is not None:
        yield token_mounted()


def _run_volume(plan: JobPlan) -> dict[str, Any]:
    """Return the volume that shows what the pod's own annotations say of its run."""
    files = {RUN_FILE: RUN_ANNOTATION} | ({CA_FILE: PROGRESS_CA_ANNOTATION} if plan.progress is not None else {})
    items = [
        {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{name}']"}} for path, name in files.items()
    ]
    return {"name": "run", "downwardAPI": {"items": items}}


def secret_mounted(secret: SecretMount) -> Mounted:
    """Return a Secret of the tenant's, as files."""
    # optional: a pod that waits for a missing Secret waits forever and only an event says why.
    source: dict[str, Any] = {"secretName": secret.name, "optional": True}
    if secret.key is not None:
        source["items"] = [{"key": secret.key, "path": secret.key}]
    return Mounted({"name": f"secret-{secret.purpose}", "secret": source}, secret.path)


def tenant_mounted(mount: VolumeMount) -> Mounted:
    """Return a claim or a ConfigMap of the tenant's."""
    name = f"volume-{mount.purpose}"
    if mount.claim is not None:
        read_only = {"readOnly": True} if mount.read_only else {}
        volume = {"name": name, "persistentVolumeClaim": {"claimName": mount.claim, **read_only}}
    else:
        volume = {"name": name, "configMap": {"name": mount.config_map, "optional": True}}
    return Mounted(volume, mount.path, mount.read_only)


def authorities_mounted(pod: PodExtras) -> Iterator[Mounted]:
    """Yield the certificate authorities of the platform, where it names any.

    Not optional, as what a tenant names is: the pod waits, the status says MountFailed with the ConfigMap's name, and
    goes on by itself once it is there. The first to wait is preflight, which holds no GPU.
    """
    bundle = pod.ca_bundle
    if bundle.config_map:
        source = {"name": bundle.config_map, "items": [{"key": bundle.key, "path": bundle.key}]}
        yield Mounted({"name": f"volume-{_CA_BUNDLE}", "configMap": source}, f"{VOLUMES_DIR}/{_CA_BUNDLE}")


def authorities_env(pod: PodExtras) -> dict[str, str]:
    """Return the variable that tells a program of ours where those authorities are."""
    bundle = pod.ca_bundle
    return {CA_BUNDLE_ENV: f"{VOLUMES_DIR}/{_CA_BUNDLE}/{bundle.key}"} if bundle.config_map else {}


def token_mounted() -> Mounted:
    """Return the token that reports are signed with."""
    token = {"audience": PROGRESS_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE}
    volume = {"name": "progress-token", "projected": {"sources": [{"serviceAccountToken": token}]}}
    return Mounted(volume, TOKEN_DIR)


def build_server_volumes(plan: ServerPlan) -> list[dict[str, Any]]:
    """Return the volumes of the pod, each once."""
    mounted = [*of_model(plan), *of_gateway(plan), *of_engine(plan)]
    return list({each.volume["name"]: each.volume for each in mounted}.values())


def of_model(plan: ServerPlan) -> Iterator[Mounted]:
    """Yield what the container sees that brings the base model."""
    yield _serve(plan)
    yield _model(plan, read_only=False)
    yield _work(plan)
    yield _own_tmp("gateway-tmp")
    # It sees the API keys, too: that there are none is said before anything is brought.
    yield from (secret_mounted(secret) for secret in plan.secrets if secret.purpose in (Purpose.MODEL, API_KEYS))
    yield from map(tenant_mounted, plan.volumes)
    yield from authorities_mounted(plan.pod)


def of_gateway(plan: ServerPlan) -> Iterator[Mounted]:
    """Yield what the gateway sees."""
    yield _serve(plan)
    yield Mounted({"name": "desired", "configMap": {"name": plan.adapters_name, "optional": True}}, DESIRED_DIR)
    yield _model(plan, read_only=True)
    yield _adapters(plan, read_only=False)
    yield _socket()
    yield _own_tmp("gateway-tmp")
    yield from (secret_mounted(secret) for secret in plan.secrets if secret.purpose != Purpose.MODEL)
    yield from map(tenant_mounted, plan.volumes)
    yield from authorities_mounted(plan.pod)
    if plan.progress is not None:
        yield token_mounted()


def of_engine(plan: ServerPlan) -> Iterator[Mounted]:
    """Yield what the engine sees: weights, its socket and folders to work in; it opens no connection."""
    yield _model(plan, read_only=True)
    yield _adapters(plan, read_only=True)
    yield _socket()
    yield _work(plan)
    yield _own_tmp("tmp")
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": plan.pod.shm_size}}
    yield Mounted(shm, "/dev/shm", read_only=False)  # noqa: S108
    yield from map(tenant_mounted, plan.volumes)


def _serve(plan: ServerPlan) -> Mounted:
    return Mounted({"name": "run", "configMap": {"name": plan.config_name}}, SERVE_DIR)


def _model(plan: ServerPlan, *, read_only: bool) -> Mounted:
    volume = {"name": "model", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}
    return Mounted(volume, MODEL_DIR, read_only)


def _adapters(plan: ServerPlan, *, read_only: bool) -> Mounted:
    volume = {"name": "adapters", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}
    return Mounted(volume, ADAPTERS_DIR, read_only)


def _socket() -> Mounted:
    """Return the folder of the engine's socket: no other pod reaches it, nor does port-forward."""
    volume = {"name": "socket", "emptyDir": {"medium": "Memory", "sizeLimit": _SOCKET_SIZE}}
    return Mounted(volume, SOCKET_DIR, read_only=False)


def _work(plan: ServerPlan) -> Mounted:
    return Mounted({"name": "work", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}, WORK_DIR, False)


def _own_tmp(name: str) -> Mounted:
    return Mounted({"name": name, "emptyDir": {"sizeLimit": TMP_SIZE}}, _TMP, read_only=False)
