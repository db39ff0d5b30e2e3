"""Servers as tables: specs, published results, pods and reports, without a cluster."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.kinds import Kind
from tunery_api.serving import DesiredAdapter, ReplicaState, ReportedAdapter
from tunery_api.validation import parse_adapterserver
from tunery_operator.observed.deployment import ContainerView, DeploymentView, ServerPodView
from tunery_operator.observed.metadata import Owner, parse_owner
from tunery_operator.observed.published_result import PublishedResult
from tunery_operator.status.server.snapshot import ReplicaReport

NOW = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
OWNER = parse_owner(
    Kind.ADAPTERSERVER, {"metadata": {"namespace": "ns", "name": "support", "uid": "server-uid", "generation": 4}}
)


def server_spec(**spec: Any) -> AdapterServerSpec:
    """Return the spec of a server of the model `tiny`."""
    return parse_adapterserver({"spec": {"model": {"uri": "s3://models/tiny"}, **spec}})


def owner(**changes: Any) -> Owner:
    """Return the owner, with other labels or annotations."""
    meta = {"namespace": "ns", "name": "support", "uid": "server-uid", "generation": 4, **changes}
    return parse_owner(Kind.ADAPTERSERVER, {"metadata": meta})


def published(name: str, kind: Kind = Kind.LORAJOB, **changes: Any) -> PublishedResult:
    """Return the published result of an object that has succeeded, with the label team: support."""
    fields: dict[str, Any] = {
        "uid": f"uid-{name}",
        "created": "2026-01-01",
        "labels": {"team": "support"},
        "phase": "Succeeded",
        "into": "Adapter" if kind is Kind.ADAPTERMERGE else None,
        "uri": f"s3://adapters/{name}",
        "manifest_sha256": digest(name),
        "served_name": "tiny",
        "rank": 16,
        "method": "LoRA",
        "size_bytes": 1000,
    }
    fields |= changes
    if kind is Kind.LORAJOB:
        fields["into"] = None
    return PublishedResult(kind, name, **fields)


def by_name(*found: PublishedResult) -> dict[tuple[Kind, str], PublishedResult]:
    """Return published results by kind and name, as the cache does."""
    return {(item.kind, item.name): item for item in found}


def digest(text: str) -> str:
    """Return a digest that stands for a content."""
    return hashlib.sha256(text.encode()).hexdigest()


def wanted(name: str, **changes: Any) -> DesiredAdapter:
    """Return an adapter that is to be served."""
    fields = {"uri": f"s3://adapters/{name}", "manifest_sha256": digest(name), "source": f"LoRAJob/{name}"}
    return DesiredAdapter(name=name, **{**fields, **changes})


def reported(name: str, state: str = "Served", **changes: Any) -> ReportedAdapter:
    """Return what a replica says of an adapter."""
    content = {"manifest_sha256": digest(name), "rank": 16, "size_bytes": 1000} if state == "Served" else {}
    return ReportedAdapter(name=name, state=state, **{**content, **changes})


def heard(*adapters: ReportedAdapter, seconds_ago: float = 1.0, **changes: Any) -> ReplicaReport:
    """Return a report."""
    fields: dict[str, Any] = {"revision": 1, "engine_ready": True, "engine_version": "0.32.0"}
    state = ReplicaState(adapters=list(adapters), **{**fields, **changes})
    return ReplicaReport(state, NOW - timedelta(seconds=seconds_ago))


def server_pod(name: str, **changes: Any) -> ServerPodView:
    """Return a pod that gets requests."""
    fields: dict[str, Any] = {
        "uid": f"uid-{name}",
        "namespace": "team",
        "version": "1",
        "replica_set": "support-server-abc",
        "replica_set_uid": "rs",
        "owner_uid": OWNER.uid,
        "created": "2026-01-02T11:00:00Z",
        "phase": "Running",
        "ready": True,
        "node": "n1",
        "containers": (
            ContainerView("model"),
            ContainerView("gateway", running=True),
            ContainerView("engine", running=True),
        ),
    }
    return ServerPodView(name, **{**fields, **changes})


def deployment(replicas: int = 1, **changes: Any) -> DeploymentView:
    """Return a Deployment whose rollout is over."""
    fields: dict[str, Any] = {
        "uid": "d",
        "version": "1",
        "owner_uid": OWNER.uid,
        "plan": "p",
        "wanted": replicas,
        "generation": 1,
        "observed_generation": 1,
        "replicas": replicas,
        "updated": replicas,
        "ready": replicas,
    }
    return DeploymentView("support-server", **{**fields, **changes})
