"""All that is made for a server."""

from __future__ import annotations

from typing import Any, NamedTuple

from tunery_api.serving import Desired
from tunery_operator.plan.adapterserver import ServerPlan


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
    raise NotImplementedError


def build_desired(plan: ServerPlan, desired: Desired) -> dict[str, Any]:
    """Return the ConfigMap that the replicas read what they serve from, and whom they trust as they report."""
    raise NotImplementedError


def read_desired(body: dict[str, Any] | None) -> Desired:
    """Return what a ConfigMap of the API server says; an empty Desired for None and for what nobody can read."""
    raise NotImplementedError
