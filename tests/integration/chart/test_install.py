"""The chart on a real API server: upgrades, a new certificate, uninstalling. There is no node."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit import kubectl_yaml
from kit.api_server import ApiServer
from kit.chart.installing import CRDS, TEAM, helm_install, installation
from kit.chart.rendering import CHART, NAMESPACE
from kit.chart.running import CERTIFICATE, make_certificate
from kit.kubectl import wait_for


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An installation of this file's own, which its tests upgrade and uninstall."""
    with installation(tmp_path_factory.mktemp("chart-controlplane"), "defaultOutput.secretName=bucket-key") as kubectl:
        yield kubectl


def data_of(kubectl: ApiServer, kind: str = "secret", name: str = CERTIFICATE) -> dict[str, str] | None:
    """Return what a Secret or ConfigMap of the release's namespace holds; None where there is none."""
    found = kubectl.get(kind, name, NAMESPACE)
    return None if found is None else found.get("data") or {}


@pytest.mark.slow
def test_an_upgrade_keeps_the_certificate(installed: ApiServer, tmp_path: Path) -> None:
    """By whatever way Helm has of it: `--force`, which is Flux's force: true, puts what is rendered in place of all."""
    assert "was created: there was none" in make_certificate(installed, tmp_path)
    before = data_of(installed)
    assert set(before or ()) == {"ca.crt", "tls.crt", "tls.key"}
    release = ("tunery", "-n", NAMESPACE, "--force")
    installed.program("helm", "upgrade", *release, str(CHART))
    assert data_of(installed) == before
    helm_install(installed, "operator.logging.level=DEBUG", "image.tag=v2")
    assert data_of(installed) == before
    assert "is still valid" in make_certificate(installed, tmp_path)
    assert "level: DEBUG" in (data_of(installed, "configmap", "tunery-config") or {})["config.yaml"]
    installed.program("helm", "rollback", *release)
    assert data_of(installed) == before
    assert "is still valid" in make_certificate(installed, tmp_path)


@pytest.mark.slow
def test_the_certificate_is_made_anew_as_operations_says(installed: ApiServer, tmp_path: Path) -> None:
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    commands = [
        shlex.split(command, comments=True)
        for command in re.findall(r"^kubectl .*(?:delete secret --ignore-not-found|delete job) .*$", page, re.M)
    ]
    before = data_of(installed)
    # One of a type that cannot be emptied.
    installed.run("delete", "secret", CERTIFICATE, "-n", NAMESPACE)
    meta = {"name": CERTIFICATE, "namespace": NAMESPACE}
    kind = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls"}
    installed.apply(kind | {"metadata": meta, "data": before})
    for _, *arguments in commands:
        installed.run(*arguments)
    assert len(commands) == 2
    helm_install(installed)
    assert "was made" in make_certificate(installed, tmp_path)
    assert set(data_of(installed) or ()) == {"ca.crt", "tls.crt", "tls.key"}
    assert not set((data_of(installed) or {}).values()) & set((before or {}).values())


@pytest.mark.slow
def test_an_uninstall_keeps_the_jobs_of_users_and_an_install_takes_them_back(
    installed: ApiServer, tmp_path: Path
) -> None:
    """Pods that run over both go on reporting: the certificate is kept, too."""
    certificate = data_of(installed)
    example = kubectl_yaml.load((CHART.parents[1] / "docs" / "examples" / "lora.yaml").read_text())
    installed.apply(example, namespace=TEAM)
    installed.program("helm", "uninstall", "tunery", "-n", NAMESPACE, "--wait")
    assert installed.get("deployment", "tunery", NAMESPACE) is None
    assert installed.get("clusterrole", "tunery") is None
    assert installed.get("lorajob", "lora", TEAM) is not None
    helm_install(installed)
    assert installed.get("lorajob", "lora", TEAM) is not None
    assert "is still valid" in make_certificate(installed, tmp_path)
    assert data_of(installed) == certificate
    installed.run("delete", "lorajob", "lora", "-n", TEAM, "--timeout=20s")


@pytest.mark.slow
def test_crds_that_are_not_kept_go_with_the_release(installed: ApiServer) -> None:
    helm_install(installed, "crds.keep=false")
    installed.program("helm", "uninstall", "tunery", "-n", NAMESPACE, "--wait")
    wait_for("the CRDs to go", lambda: all(installed.get("crd", name) is None for name in CRDS), timeout=30)
    helm_install(installed)
