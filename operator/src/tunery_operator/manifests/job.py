"""Build the batch Job of a plan, and the Service of a Job of several pods."""

from __future__ import annotations

from typing import Any

from tunery_api.names import (
    KIND_LABEL,
    NODES_PORTS,
    OWNER_UID_LABEL,
    PLAN_ANNOTATION,
    ROLE_LABEL,
    SETTINGS_ANNOTATION,
    container_name,
)
from tunery_api.reasons import ExitCode
from tunery_operator.manifests.metadata import metadata
from tunery_operator.manifests.pod import build_pod_template
from tunery_operator.planning.job import JobPlan


def build_job(plan: JobPlan) -> dict[str, Any]:
    """Return the Job of a plan.

    It has no activeDeadlineSeconds: Kubernetes counts from the Job's last start, waiting for a node included, while
    spec.activeDeadlineSeconds means the seconds that pods ran, which the operator adds up itself.
    """
    meta = metadata(plan.owner, plan.name, plan.task.value)
    meta["labels"] |= plan.kueue_labels
    meta["annotations"] = {SETTINGS_ANNOTATION: plan.settings, PLAN_ANNOTATION: plan.digest}
    container = container_name(plan.owner.key.kind.singular)
    several, rules = _several(plan, container) if plan.nodes > 1 else ({}, [])
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "suspend": plan.suspend,
            "parallelism": plan.nodes,
            "completions": plan.nodes,
            "backoffLimit": plan.retries,
            **several,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [*_failure_rules(container), *rules]},
            "template": build_pod_template(plan),
        },
    }


def _several(plan: JobPlan, container: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what the Job of pods that work together says beside, and the rule of a pod that another one has left.

    All of them end as one does. backoffLimitPerIndex has each come back after ten seconds: with backoffLimit alone the
    Job controller waits for as long as for so many failures in a row. Where they fail by themselves and together, as
    where storage does not answer any of them, each one counts there: no pod may fail more often than the Job, and how
    often that has failed the operator counts. The first pod publishes, and the Job is complete with it: while it does,
    maxFailedIndexes is raised (reconcile.children), and backoffLimit is too high to end the Job.
    """
    fields = {
        "completionMode": "Indexed",
        "backoffLimit": (plan.retries + 1) * plan.nodes,
        "backoffLimitPerIndex": plan.retries,
        "maxFailedIndexes": 0,
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
    }
    peer_lost = {"containerName": container, "operator": "In", "values": [int(ExitCode.PEER_LOST)]}
    return fields, [{"action": "Ignore", "onExitCodes": peer_lost}]


def _failure_rules(container: str) -> list[dict[str, Any]]:
    """Return the rules in order: a user error ends the Job, a disruption does not count, any other failure counts."""
    user_error = {"containerName": container, "operator": "In", "values": [int(ExitCode.USER_ERROR)]}
    return [
        {"action": "FailJob", "onExitCodes": user_error},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def build_service(plan: JobPlan) -> dict[str, Any]:
    """Return the Service by which the pods of a Job find the first of them, before it is ready, too."""
    role = plan.task.value
    own = {KIND_LABEL: plan.owner.key.kind.singular, OWNER_UID_LABEL: plan.owner.uid, ROLE_LABEL: role}
    names = ("collectives", "channel")
    ports = [{"name": name, "port": port, "protocol": "TCP"} for name, port in zip(names, NODES_PORTS, strict=True)]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(plan.owner, plan.service, role),
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": own, "ports": ports},
    }
