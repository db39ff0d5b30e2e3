"""The batch Job: Kubernetes counts the attempts and starts the next one."""

from __future__ import annotations

from typing import Any

from tunery_api.names import PLAN_ANNOTATION, SETTINGS_ANNOTATION, container_name
from tunery_api.reasons import ExitCode
from tunery_operator.manifests.metadata import metadata
from tunery_operator.manifests.pod import build_pod_template
from tunery_operator.plan.types import JobPlan


def build_job(plan: JobPlan) -> dict[str, Any]:
    """Return the Job of a plan.

    It has no activeDeadlineSeconds: Kubernetes counts from the Job's last start, waiting for a node included, while
    spec.activeDeadlineSeconds means the seconds that pods ran, which the operator adds up itself.
    """
    meta = metadata(plan.owner, plan.name, plan.task.value)
    meta["labels"] |= plan.kueue_labels
    meta["annotations"] = {SETTINGS_ANNOTATION: plan.settings, PLAN_ANNOTATION: plan.digest}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "suspend": plan.suspend,
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": plan.retries,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules(container_name(plan.owner.key.kind.singular))},
            "template": build_pod_template(plan),
        },
    }


def _failure_rules(container: str) -> list[dict[str, Any]]:
    """Return the rules in order: what the user must mend ends the Job, a disruption is free, the rest counts."""
    user_error = {"containerName": container, "operator": "In", "values": [int(ExitCode.USER_ERROR)]}
    return [
        {"action": "FailJob", "onExitCodes": user_error},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
