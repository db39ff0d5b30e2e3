"""The names of a server's children and of its containers, and the labels that find its pods."""

from __future__ import annotations

from typing import Final

from tunery_api.names import KIND_LABEL, OWNER_LABEL, label_value
from tunery_api.serving import GATEWAY_PORT
from tunery_operator.observed.metadata import Key, Owner

ROLE: Final = "serve"
"""What children and pods bear as their role."""
MODEL: Final = "model"
GATEWAY: Final = "gateway"
ENGINE: Final = "engine"
"""The containers, in the order in which they start."""


def server_name(owner: str) -> str:
    """Return the name of a server's Deployment and Service; an owner's name is short enough by a rule of the API."""
    return f"{owner}-server"


def adapters_name(owner: str) -> str:
    """Return the name of the ConfigMap that says what a server serves."""
    return f"{owner}-adapters"


def server_url(key: Key) -> str:
    """Return the base URL of a server's API, within the cluster."""
    return f"http://{server_name(key.name)}.{key.namespace}.svc:{GATEWAY_PORT}/v1"


def pod_selector(owner: Owner) -> dict[str, str]:
    """Return the labels by which the pods of a server are found."""
    return {KIND_LABEL: owner.key.kind.singular, OWNER_LABEL: label_value(owner.key.name)}
