"""The helm binary, the chart as it renders with its defaults, and an API server to install it on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tunery_operator.plan.job import Platform

from kit.api_server import ApiServer
from kit.chart.installing import first_install, kubectl_for
from kit.chart.policies import operator_of, platform_of
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
    return operator_of(installed, tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="module")
def platform(rendered: Rendered) -> Platform:
    """The platform as the chart's own environment makes it."""
    return platform_of(rendered)
