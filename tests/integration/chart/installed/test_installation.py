"""What an installation with the chart's defaults says and allows. There is no node here."""

from __future__ import annotations

from typing import Any

import pytest

from kit.api_server import ApiServer
from kit.chart.installing import CRDS, OPERATOR, TEAM, can
from kit.chart.rendering import NAMESPACE
from kit.kubectl import wait_for


def test_the_notes_name_the_next_commands(installed: ApiServer) -> None:
    notes = installed.program("helm", "get", "notes", "tunery", "-n", NAMESPACE)
    assert "kubectl -n tunery-system rollout status deployment/tunery" in notes
    assert "kubectl create secret generic bucket-key" in notes
    assert "helm test tunery -n tunery-system" in notes
    assert "kubectl apply -f lorajob.yaml" in notes


def test_restricted_pod_security_admits_the_operator(installed: ApiServer) -> None:
    selector = "app.kubernetes.io/name=tunery,app.kubernetes.io/component=operator"
    pods = wait_for("both replicas", lambda: two(installed.list("pods", NAMESPACE, selector)), timeout=30)
    assert {pod["spec"]["serviceAccountName"] for pod in pods} == {"tunery"}


def two(pods: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    return pods if len(pods) == 2 else None


def test_explain_reads_well(installed: ApiServer) -> None:
    told = installed.run("explain", "lorajob.spec.lora.rank")
    assert "Rank of the decomposition" in told


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("get", "secrets"), ("list", "secrets"), ("watch", "secrets"), ("create", "secrets"),
        ("create", "pods/exec"), ("create", "pods"), ("delete", "pods"), ("get", "pods/log"),
        ("get", "leases.coordination.k8s.io"), ("list", "configmaps"), ("delete", "configmaps"), ("list", "services"),
        ("delete", "deployments.apps"), ("patch", "replicasets.apps"), ("delete", "adapterservers.tunery.dev"),
        ("get", "nodes"), ("list", "namespaces"), ("get", "serviceaccounts"), ("create", "serviceaccounts/token"),
        ("update", "lorajobs.tunery.dev"), ("create", "lorasweeps.tunery.dev"), ("patch", "lorasweeps.tunery.dev"),
        ("create", "adaptermerges.tunery.dev"), ("update", "clusterroles.rbac.authorization.k8s.io"), ("*", "*"),
    ],
)  # fmt: skip
def test_the_operator_may_not(installed: ApiServer, verb: str, what: str) -> None:
    assert not can(installed, OPERATOR, verb, what)


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("watch", "lorajobs.tunery.dev"), ("patch", "lorajobs.tunery.dev/status"), ("create", "jobs.batch"),
        ("delete", "jobs.batch"), ("watch", "pods"), ("list", "events"), ("create", "events"),
        ("create", "tokenreviews.authentication.k8s.io"), ("create", "lorajobs.tunery.dev"),
        ("patch", "lorajobs.tunery.dev"), ("patch", "lorasweeps.tunery.dev/status"),
        ("delete", "lorasweeps.tunery.dev"),
    ],
)  # fmt: skip
def test_the_operator_may(installed: ApiServer, verb: str, what: str) -> None:
    assert can(installed, OPERATOR, verb, what)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("view", ["get", "list", "watch"], ["create", "patch", "delete"]),
        ("edit", ["get", "create", "patch", "delete"], []),
        ("admin", ["get", "create", "patch", "delete"], []),
    ],
)
def test_roles_of_people_speak_for_our_kinds(
    installed: ApiServer, role: str, allowed: list[str], refused: list[str]
) -> None:
    user = f"{role}-user"
    wait_for(
        "the aggregation of roles", lambda: "tunery.dev" in installed.run("get", "clusterrole", role, "-o", "yaml"), 30
    )
    installed.run("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", TEAM)
    wait_for(f"{role}'s binding", lambda: can(installed, user, "get", "lorajobs.tunery.dev"), timeout=10)
    for kind in CRDS:
        assert [verb for verb in allowed if not can(installed, user, verb, kind)] == []
        assert [verb for verb in refused if can(installed, user, verb, kind)] == []
        assert not can(installed, user, "patch", f"{kind}/status")
        assert not can(installed, user, "get", kind, namespace="default")
