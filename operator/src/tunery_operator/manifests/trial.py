"""Build the LoRAJob of a trial, and the patches that stop or suspend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery_api.kinds import Kind
from tunery_api.names import (
    API_VERSION,
    KUEUE_LABELS,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    ORIGIN_ANNOTATION,
    SUSPENDED_BY_ANNOTATION,
    SWEEP_LABEL,
    SWEEP_OUTPUT_ANNOTATION,
    TOPOLOGY_ANNOTATIONS,
    TRIAL_LABEL,
    label_value,
)
from tunery_operator.manifests.metadata import owner_reference
from tunery_operator.planning.lorasweep import TrialPlan


def build_trial(plan: TrialPlan) -> dict[str, Any]:
    """Return the LoRAJob of a trial."""
    owner = plan.owner
    labels = {
        MANAGED_BY_LABEL: MANAGED_BY,
        SWEEP_LABEL: label_value(owner.key.name),
        TRIAL_LABEL: f"{plan.number:03d}",
        **{name: owner.labels[name] for name in KUEUE_LABELS if owner.labels.get(name)},
    }
    annotations = {name: owner.annotations[name] for name in TOPOLOGY_ANNOTATIONS if owner.annotations.get(name)}
    annotations[ORIGIN_ANNOTATION] = plan.origin
    if plan.result_to_check:
        annotations[SWEEP_OUTPUT_ANNOTATION] = plan.result_to_check
    return {
        "apiVersion": API_VERSION,
        "kind": Kind.LORAJOB.value,
        "metadata": {
            "name": plan.name,
            "namespace": owner.key.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": dict(plan.spec),
    }


def stop_change(why: str) -> dict[str, Any]:
    """Return the change that stops a trial."""
    return {"spec": {"stop": why}}


def suspend_change(suspend: bool) -> dict[str, Any]:
    """Return the change that suspends a trial with its sweep, or resumes it."""
    mark: Mapping[str, Any] = {SUSPENDED_BY_ANNOTATION: "sweep" if suspend else None}
    return {"metadata": {"annotations": mark}, "spec": {"suspend": suspend}}
