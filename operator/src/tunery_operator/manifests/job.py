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

    A Job that does the object's work has no activeDeadlineSeconds: Kubernetes counts from the Job's last start, waiting
    for a node included, while spec.activeDeadlineSeconds means the seconds that pods ran, which the operator adds up
    itself.
    """
    meta = metadata(plan.owner, plan.name, plan.task.value)
    meta["labels"] |= plan.kueue_labels
    meta["annotations"] = {SETTINGS_ANNOTATION: plan.settings, PLAN_ANNOTATION: plan.digest}
    container = container_name(plan.owner.key.kind.singular)
    fields, rules = _multi_node(plan, container) if plan.nodes > 1 else ({}, [])
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "suspend": plan.suspend,
            "parallelism": plan.nodes,
            "completions": plan.nodes,
            "backoffLimit": plan.retries,
            **fields,
            **_lifetime(plan),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [*_failure_rules(container), *rules]},
            "template": build_pod_template(plan),
        },
    }


def _lifetime(plan: JobPlan) -> dict[str, int]:
    """Return the fields that end a Job and delete it later, as far as the plan sets them."""
    fields = {"activeDeadlineSeconds": plan.deadline_seconds, "ttlSecondsAfterFinished": plan.ttl_seconds}
    return {name: seconds for name, seconds in fields.items() if seconds is not None}


def _multi_node(plan: JobPlan, container: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the further fields of the Job of several nodes, and the rule for a pod that ended as it lost a peer.

    If one pod ends, all end. With backoffLimitPerIndex each pod is replaced after ten seconds; with backoffLimit alone
    the Job controller would count all of them for its backoff. If all fail at once, as when storage does not answer,
    each index counts one failure; the operator counts the failed attempts. The Job is complete when the first pod has
    published. Meanwhile controllers/jobs.py raises maxFailedIndexes, and backoffLimit is too high to end the Job.
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
