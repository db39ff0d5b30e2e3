"""The helm binary, the chart as it renders with its defaults, and an API server to install it on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tunery_operator.plan.job import Platform

from kit.api_server import ApiServer
from kit.chart.installing import first_install, kubeconfig_of_the_service_account, kubectl_for
from kit.chart.policies import platform_of, refusal
from kit.chart.rendering import Helm, Rendered
from kit.kubectl import wait_for
from kit.operator.objects import lorajob
from tools.cluster import binaries
from tools.cluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def helm() -> Helm:
    return Helm(str(binaries.helm() / "helm"))


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Rendered:
    return helm.render()


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """kubectl and helm against a control plane of this module's own: what the chart installs is cluster-wide."""
    with ControlPlane(tmp_path_factory.mktemp("chart-controlplane")).temporary() as plane:
        yield kubectl_for(plane)


@pytest.fixture(scope="module")
def notes(kubectl: ApiServer) -> str:
    """Install the chart; return what Helm printed for people."""
    return first_install(kubectl, "defaultOutput.secretName=bucket-key")


@pytest.fixture(scope="module")
def installed(kubectl: ApiServer, notes: str) -> ApiServer:
    assert notes
    return kubectl


@pytest.fixture(scope="module")
def operator(installed: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> ApiServer:
    """kubectl with the operator's own token, once the policies are in force."""
    path = kubeconfig_of_the_service_account(installed, tmp_path_factory.mktemp("operator"))
    api = installed.using(path)
    # What the operator has the right to create, so that only a policy can refuse it.
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "foreign"}, "spec": {"template": pod}}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "foreign"}}
    foreign_job = lorajob("foreign")
    for foreign in (job, config, foreign_job):
        wait_for("the policies", lambda body=foreign: refusal(api, body) is not None, timeout=60)
    return api


@pytest.fixture(scope="module")
def platform(rendered: Rendered) -> Platform:
    """The platform as the chart's own environment makes it."""
    return platform_of(rendered)
