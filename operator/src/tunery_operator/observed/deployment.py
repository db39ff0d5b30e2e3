"""What the operator keeps of a server's Deployment: what it was built from, and how far its rollout is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunery_api.names import PLAN_ANNOTATION
from tunery_api.serving import NO_KEYS
from tunery_operator.observed.job import controller_of
from tunery_operator.observed.server_pod import api_keys_of


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One Deployment."""

    name: str
    uid: str
    version: str
    owner_uid: str
    plan: str | None
    """Digest of the plan that it was built from."""
    wanted: int
    """spec.replicas."""
    generation: int
    observed_generation: int
    replicas: int
    """Pods that there are, of old and new templates."""
    updated: int
    """Those of the newest template."""
    ready: int
    stalled: str | None = None
    """Why its rollout does not get on, in the Deployment controller's words."""
    failure: str | None = None
    """Why pods of it cannot be made, in the API server's words."""
    api_keys: str = NO_KEYS
    """The Secret whose API keys pods of the newest template ask for."""

    @property
    def settled(self) -> bool:
        """Tell whether no rollout is under way: all pods are of the newest template, and as many as are wanted."""
        seen = self.observed_generation >= self.generation
        return seen and self.updated == self.replicas == self.wanted


def parse_deployment(body: Mapping[str, Any]) -> DeploymentView:
    """Return the view of a Deployment of the API server."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    progressing, failure = conditions.get("Progressing") or {}, conditions.get("ReplicaFailure") or {}
    wanted = spec.get("replicas")
    return DeploymentView(
        name=meta["name"],
        uid=meta["uid"],
        version=meta.get("resourceVersion", ""),
        owner_uid=controller_of(body).get("uid", ""),
        plan=(meta.get("annotations") or {}).get(PLAN_ANNOTATION),
        wanted=1 if wanted is None else int(wanted),
        generation=int(meta.get("generation") or 0),
        observed_generation=int(status.get("observedGeneration") or 0),
        replicas=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        stalled=_message(progressing) if progressing.get("status") == "False" else None,
        failure=_message(failure) if failure.get("status") == "True" else None,
        api_keys=api_keys_of((spec.get("template") or {}).get("spec") or {}),
    )


def _message(condition: Mapping[str, Any]) -> str:
    return condition.get("message") or condition.get("reason") or "the cluster says no more"
