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
from tunery_operator.planning.pod import PodExtras, TenantSecret, TenantVolume

CA_FILE: Final = "progress-ca.crt"
TOKEN_DIR: Final = "/var/run/tunery-progress"
TOKEN_FILE: Final = "token"
TOKEN_SECONDS: Final = 3600
TMP_SIZE: Final = "2Gi"

_CA_BUNDLE: Final = "ca-bundle"
"""The volume of trainer.caBundle."""
_SOCKET_SIZE: Final = "1Mi"
_TMP: Final = "/tmp"  # noqa: S108


class MountedVolume(NamedTuple):
    """One volume and the path it is mounted at."""

    volume: dict[str, Any]
    path: str
    read_only: bool = True


def build_volumes(plan: JobPlan) -> list[dict[str, Any]]:
    """Return the volumes of the pod."""
    return [mounted.volume for mounted in _job_mounts(plan)]


def build_volume_mounts(plan: JobPlan) -> list[dict[str, Any]]:
    """Return the mounts of the container."""
    return [build_volume_mount(mounted) for mounted in _job_mounts(plan)]


def build_volume_mount(mounted: MountedVolume) -> dict[str, Any]:
    """Return the volumeMount of a container."""
    mount = {"name": mounted.volume["name"], "mountPath": mounted.path}
    return {**mount, "readOnly": True} if mounted.read_only else mount


def _job_mounts(plan: JobPlan) -> Iterator[MountedVolume]:
    yield MountedVolume(_run_volume(plan), RUN_DIR)
    work = {"name": "work", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}
    yield MountedVolume(work, WORK_DIR, read_only=False)
    yield MountedVolume({"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}}, _TMP, read_only=False)
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": plan.pod.shm_size}}
    yield MountedVolume(shm, "/dev/shm", read_only=False)  # noqa: S108
    for secret in plan.secrets:
        yield secret_mount(secret)
    for mount in plan.volumes:
        yield tenant_volume_mount(mount)
    yield from ca_bundle_mounts(plan.pod)
    if plan.progress is not None:
        yield token_mount()


def _run_volume(plan: JobPlan) -> dict[str, Any]:
    """Return the downwardAPI volume with the run file and the progress endpoint's CA, from the pod's annotations."""
    files = {RUN_FILE: RUN_ANNOTATION} | ({CA_FILE: PROGRESS_CA_ANNOTATION} if plan.progress is not None else {})
    items = [
        {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{name}']"}} for path, name in files.items()
    ]
    return {"name": "run", "downwardAPI": {"items": items}}


def secret_mount(secret: TenantSecret) -> MountedVolume:
    """Return the mount of a Secret of the tenant."""
    # optional: the container starts without it, and reports the missing Secret.
    source: dict[str, Any] = {"secretName": secret.name, "optional": True}
    if secret.key is not None:
        source["items"] = [{"key": secret.key, "path": secret.key}]
    return MountedVolume({"name": f"secret-{secret.purpose}", "secret": source}, secret.path)


def tenant_volume_mount(mount: TenantVolume) -> MountedVolume:
    """Return the mount of a PersistentVolumeClaim or a ConfigMap of the tenant."""
    name = f"volume-{mount.purpose}"
    if mount.claim is not None:
        read_only = {"readOnly": True} if mount.read_only else {}
        volume = {"name": name, "persistentVolumeClaim": {"claimName": mount.claim, **read_only}}
    else:
        volume = {"name": name, "configMap": {"name": mount.config_map, "optional": True}}
    return MountedVolume(volume, mount.path, mount.read_only)


def ca_bundle_mounts(pod: PodExtras) -> Iterator[MountedVolume]:
    """Yield the mount of the platform's CA bundle, if it has one.

    Unlike the Secrets of a tenant it is not optional. Without the ConfigMap the pod waits, and the status shows
    MountFailed with its name. The pod starts as soon as the ConfigMap exists. Preflight, which has no GPU, waits first.
    """
    bundle = pod.ca_bundle
    if bundle.config_map:
        source = {"name": bundle.config_map, "items": [{"key": bundle.key, "path": bundle.key}]}
        yield MountedVolume({"name": f"volume-{_CA_BUNDLE}", "configMap": source}, f"{VOLUMES_DIR}/{_CA_BUNDLE}")


def ca_bundle_env(pod: PodExtras) -> dict[str, str]:
    """Return the variable with the path of the platform's CA bundle."""
    bundle = pod.ca_bundle
    return {CA_BUNDLE_ENV: f"{VOLUMES_DIR}/{_CA_BUNDLE}/{bundle.key}"} if bundle.config_map else {}


def token_mount() -> MountedVolume:
    """Return the mount of the token that authenticates reports."""
    token = {"audience": PROGRESS_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE}
    volume = {"name": "progress-token", "projected": {"sources": [{"serviceAccountToken": token}]}}
    return MountedVolume(volume, TOKEN_DIR)


def build_server_volumes(plan: ServerPlan) -> list[dict[str, Any]]:
    """Return the volumes of the pod, each once."""
    mounted = [*download_mounts(plan), *gateway_mounts(plan), *engine_mounts(plan)]
    return list({each.volume["name"]: each.volume for each in mounted}.values())


def download_mounts(plan: ServerPlan) -> Iterator[MountedVolume]:
    """Yield the mounts of the container that downloads the base model."""
    yield _config_mount(plan)
    yield _model_mount(plan, read_only=False)
    yield _work_mount(plan)
    yield _tmp_mount("gateway-tmp")
    # It mounts the API keys, too: it reports a missing Secret before the download.
    yield from (secret_mount(secret) for secret in plan.secrets if secret.purpose in (Purpose.MODEL, API_KEYS))
    yield from map(tenant_volume_mount, plan.volumes)
    yield from ca_bundle_mounts(plan.pod)


def gateway_mounts(plan: ServerPlan) -> Iterator[MountedVolume]:
    """Yield the mounts of the gateway."""
    yield _config_mount(plan)
    yield MountedVolume({"name": "desired", "configMap": {"name": plan.adapters_name, "optional": True}}, DESIRED_DIR)
    yield _model_mount(plan, read_only=True)
    yield _adapters_mount(plan, read_only=False)
    yield _socket_mount()
    yield _tmp_mount("gateway-tmp")
    yield from (secret_mount(secret) for secret in plan.secrets if secret.purpose != Purpose.MODEL)
    yield from map(tenant_volume_mount, plan.volumes)
    yield from ca_bundle_mounts(plan.pod)
    if plan.progress is not None:
        yield token_mount()


def engine_mounts(plan: ServerPlan) -> Iterator[MountedVolume]:
    """Yield the mounts of the engine: weights, its socket and work folders; it opens no connection."""
    yield _model_mount(plan, read_only=True)
    yield _adapters_mount(plan, read_only=True)
    yield _socket_mount()
    yield _work_mount(plan)
    yield _tmp_mount("tmp")
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": plan.pod.shm_size}}
    yield MountedVolume(shm, "/dev/shm", read_only=False)  # noqa: S108
    yield from map(tenant_volume_mount, plan.volumes)


def _config_mount(plan: ServerPlan) -> MountedVolume:
    return MountedVolume({"name": "run", "configMap": {"name": plan.config_name}}, SERVE_DIR)


def _model_mount(plan: ServerPlan, *, read_only: bool) -> MountedVolume:
    volume = {"name": "model", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}
    return MountedVolume(volume, MODEL_DIR, read_only)


def _adapters_mount(plan: ServerPlan, *, read_only: bool) -> MountedVolume:
    volume = {"name": "adapters", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}
    return MountedVolume(volume, ADAPTERS_DIR, read_only)


def _socket_mount() -> MountedVolume:
    """Return the mount of the folder of the engine's socket: neither other pods nor port-forward reach it."""
    volume = {"name": "socket", "emptyDir": {"medium": "Memory", "sizeLimit": _SOCKET_SIZE}}
    return MountedVolume(volume, SOCKET_DIR, read_only=False)


def _work_mount(plan: ServerPlan) -> MountedVolume:
    return MountedVolume({"name": "work", "emptyDir": {"sizeLimit": plan.resources.ephemeral_storage}}, WORK_DIR, False)


def _tmp_mount(name: str) -> MountedVolume:
    return MountedVolume({"name": name, "emptyDir": {"sizeLimit": TMP_SIZE}}, _TMP, read_only=False)
