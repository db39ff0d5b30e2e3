"""The volumes of a server's pod, and which of its containers sees which: no Secret is in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tunery_api.names import WORK_DIR
from tunery_api.runspec import Purpose
from tunery_api.serving import ADAPTERS_DIR, DESIRED_DIR, MODEL_DIR, SERVE_DIR, SOCKET_DIR
from tunery_operator.manifests.volumes import (
    TMP_SIZE,
    Mounted,
    authorities_mounted,
    secret_mounted,
    tenant_mounted,
    token_mounted,
)
from tunery_operator.planning.adapterserver import API_KEYS, ServerPlan

_SOCKET_SIZE: Final = "1Mi"
_TMP: Final = "/tmp"  # noqa: S108


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
