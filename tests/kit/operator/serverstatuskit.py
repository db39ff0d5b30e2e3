"""Snapshots of servers, and what their status becomes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tunery_api.serverstatus import AdapterServerStatus
from tunery_api.serving import Desired
from tunery_operator.observed.deployment import DeploymentView, ServerPodView
from tunery_operator.planning.resolution import Resolution
from tunery_operator.status.server.compute import Outcome, compute_server_status
from tunery_operator.status.server.snapshot import ReplicaReport, ServerSnapshot

from kit.operator.servers import NOW, OWNER, deployment, heard, reported, server_pod, server_spec, wanted

LONG_AGO = NOW - timedelta(hours=1)


def resolution(*names: str, **rest: Any) -> Resolution:
    return Resolution(Desired(revision=1, adapters=[wanted(name) for name in names]), **rest)


def snapshot(
    *pods: ServerPodView,
    served: Resolution | None = None,
    reports: dict[str, ReplicaReport] | None = None,
    rollout: DeploymentView | None = None,
    **changes: Any,
) -> ServerSnapshot:
    fields: dict[str, Any] = {
        "spec": server_spec(),
        "replicas": max(1, len(pods)),
        "resolution": served if served is not None else resolution("bot"),
        "deployment": rollout or deployment(max(1, len(pods))),
        "pods": pods,
        "reports": {f"uid-{name}": item for name, item in (reports or {}).items()},
        "watching_since": LONG_AGO,
    }
    return ServerSnapshot(OWNER, **{**fields, **changes})


def compute(found: ServerSnapshot, before: dict[str, Any] | None = None, seconds: float = 0.0) -> Outcome:
    outcome = compute_server_status(found, before or {}, NOW + timedelta(seconds=seconds))
    AdapterServerStatus.model_validate(outcome.status)
    return outcome


def condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    return next((item for item in status["conditions"] if item["type"] == type_), {})


def events_of(outcome: Outcome) -> list[tuple[str, bool]]:
    return [(event.reason, event.warning) for event in outcome.events]


HEALTHY = snapshot(server_pod("a"), server_pod("b"), reports={"a": heard(reported("bot")), "b": heard(reported("bot"))})
