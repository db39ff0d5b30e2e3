"""Build the metadata of a child: its labels and its owner reference."""

from __future__ import annotations

from typing import Any

from tunery_api.names import KIND_LABEL, MANAGED_BY, MANAGED_BY_LABEL, OWNER_LABEL, ROLE_LABEL, label_value
from tunery_operator.observed.metadata import Owner


def labels(owner: Owner, role: str) -> dict[str, str]:
    """Return the labels that a child and its pods carry."""
    return {
        MANAGED_BY_LABEL: MANAGED_BY,
        KIND_LABEL: owner.key.kind.singular,
        OWNER_LABEL: label_value(owner.key.name),
        ROLE_LABEL: role,
    }


def metadata(owner: Owner, name: str, role: str) -> dict[str, Any]:
    """Return the metadata of a child."""
    return {
        "name": name,
        "namespace": owner.key.namespace,
        "labels": labels(owner, role),
        "ownerReferences": [owner_reference(owner)],
    }


def owner_reference(owner: Owner) -> dict[str, Any]:
    """Return the reference by which deleting the owner deletes the child."""
    return {
        "apiVersion": owner.api_version,
        "kind": owner.key.kind.value,
        "name": owner.key.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
