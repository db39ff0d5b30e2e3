"""Names, labels and owner reference of a child."""

from __future__ import annotations

from typing import Any

from tunery_api.names import KIND_LABEL, MANAGED_BY, MANAGED_BY_LABEL, OWNER_LABEL, ROLE_LABEL, label_value
from tunery_operator.plan.types import JobPlan
from tunery_operator.views.owner import Owner


def labels(plan: JobPlan) -> dict[str, str]:
    """Return the labels that a Job and its pod carry."""
    key = plan.owner.key
    return {
        MANAGED_BY_LABEL: MANAGED_BY,
        KIND_LABEL: key.kind.value.lower(),
        OWNER_LABEL: label_value(key.name),
        ROLE_LABEL: plan.task.value,
    }


def metadata(plan: JobPlan) -> dict[str, Any]:
    """Return the metadata of the Job."""
    return {
        "name": plan.name,
        "namespace": plan.owner.key.namespace,
        "labels": labels(plan),
        "ownerReferences": [owner_reference(plan.owner)],
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
