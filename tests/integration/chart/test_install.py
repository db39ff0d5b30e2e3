"""The chart on a real API server: installed, used by people, upgraded, uninstalled. There is no node here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.api_server import ApiServer
from kit.chart.installing import CRDS, OPERATOR, TEAM, can, helm_install
from kit.chart.rendering import CHART, NAMESPACE
from kit.chart.running import CERTIFICATE, make_certificate
from kit.kubectl import wait_for


def test_the_notes_name_the_next_commands(notes: str) -> None:
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


def data_of(kubectl: ApiServer, secret: str = CERTIFICATE) -> dict[str, str] | None:
    """Return what a Secret of the release's namespace holds; None where there is none."""
    found = kubectl.get("secret", secret, NAMESPACE)
    return None if found is None else found.get("data") or {}


@pytest.mark.slow
def test_an_upgrade_keeps_the_certificate(installed: ApiServer, tmp_path: Path) -> None:
    """By whatever way Helm has of it: `--force`, which is Flux's force: true, puts what is rendered in place of all."""
    assert "was made: there was none" in make_certificate(installed, tmp_path)
    before = data_of(installed)
    assert set(before or ()) == {"ca.crt", "tls.crt", "tls.key"}
    release = ("tunery", "-n", NAMESPACE, "--force")
    installed.program("helm", "upgrade", *release, str(CHART))
    assert data_of(installed) == before
    helm_install(installed, "operator.logging.level=DEBUG", "operator.image.tag=v2")
    assert data_of(installed) == before
    assert "is kept" in make_certificate(installed, tmp_path)
    deployment = installed.get("deployment", "tunery", NAMESPACE)
    assert deployment is not None
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "TUNERY_LOG_LEVEL", "value": "DEBUG"} in env
    installed.program("helm", "rollback", *release)
    assert data_of(installed) == before
    assert "is kept" in make_certificate(installed, tmp_path)


@pytest.mark.slow
def test_the_certificate_is_made_anew_as_operations_says(installed: ApiServer, tmp_path: Path) -> None:
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    commands = [
        shlex.split(command, comments=True)
        for command in re.findall(r"^kubectl .*(?:delete secret --ignore-not-found|delete job) .*$", page, re.M)
    ]
    before = data_of(installed)
    # One of a type that cannot be emptied; and that of an older chart, which is good, is not taken over.
    installed.run("delete", "secret", CERTIFICATE, "-n", NAMESPACE)
    meta = {"name": CERTIFICATE, "namespace": NAMESPACE}
    kind = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls"}
    installed.apply(kind | {"metadata": meta, "data": before})
    old_secret(installed, before or {}, {})
    for _, *arguments in commands:
        installed.run(*arguments)
    assert len(commands) == 2
    helm_install(installed)
    assert "was made" in make_certificate(installed, tmp_path)
    assert set(data_of(installed) or ()) == {"ca.crt", "tls.crt", "tls.key"}
    assert not set((data_of(installed) or {}).values()) & set((before or {}).values())


OWNED = {"meta.helm.sh/release-name": "tunery", "meta.helm.sh/release-namespace": NAMESPACE}
OLD = "tunery-progress-tls"


def old_secret(kubectl: ApiServer, data: dict[str, str], owned: dict[str, str]) -> None:
    """Make the Secret of charts up to 0.1.0, or, where no release owns it, one by hand of that name."""
    kubectl.run("delete", "secret", OLD, "-n", NAMESPACE, "--ignore-not-found")
    meta = {"name": OLD, "namespace": NAMESPACE, "annotations": owned}
    meta["labels"] = {"app.kubernetes.io/managed-by": "Helm"} if owned else {}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": meta, "data": data})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owned", "after"),
    [pytest.param(OWNED, False, id="the-releases"), pytest.param({}, True, id="made-by-hand")],
)
def test_the_certificate_of_an_older_chart_is_taken_over_and_its_secret_goes_then(
    installed: ApiServer, tmp_path: Path, owned: dict[str, str], after: bool
) -> None:
    """Helm would delete what is no longer rendered before the Job has read it; what is not Helm's it must not touch."""
    data = data_of(installed) or {}
    installed.run("delete", "secret", CERTIFICATE, "-n", NAMESPACE)
    old_secret(installed, data, owned)
    installed.program("helm", "upgrade", "tunery", str(CHART), "-n", NAMESPACE, "--force")
    assert data_of(installed, OLD) == data
    assert f"taken over from the Secret {OLD}" in make_certificate(installed, tmp_path)
    helm_install(installed)
    assert data_of(installed, OLD) == (data if after else None)
    assert data_of(installed) == data
    installed.run("delete", "secret", OLD, "-n", NAMESPACE, "--ignore-not-found")


@pytest.mark.slow
def test_an_uninstall_keeps_the_jobs_of_users_and_an_install_takes_them_back(
    installed: ApiServer, tmp_path: Path
) -> None:
    """Pods that run over both go on reporting: the certificate is kept, too."""
    certificate = data_of(installed)
    example = yaml.safe_load((CHART.parents[1] / "docs" / "examples" / "lora.yaml").read_text())
    installed.apply(example, namespace=TEAM)
    installed.program("helm", "uninstall", "tunery", "-n", NAMESPACE, "--wait")
    assert installed.get("deployment", "tunery", NAMESPACE) is None
    assert installed.get("clusterrole", "tunery") is None
    assert installed.get("lorajob", "lora", TEAM) is not None
    helm_install(installed)
    assert installed.get("lorajob", "lora", TEAM) is not None
    assert "is kept" in make_certificate(installed, tmp_path)
    assert data_of(installed) == certificate
    installed.run("delete", "lorajob", "lora", "-n", TEAM, "--timeout=20s")


@pytest.mark.slow
def test_crds_that_are_not_kept_go_with_the_release(installed: ApiServer) -> None:
    helm_install(installed, "crds.keep=false")
    installed.program("helm", "uninstall", "tunery", "-n", NAMESPACE, "--wait")
    wait_for("the CRDs to go", lambda: all(installed.get("crd", name) is None for name in CRDS), timeout=30)
    helm_install(installed)
