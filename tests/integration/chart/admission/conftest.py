"""One installation of the chart with its defaults for all files of this folder: they change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.api_server import ApiServer
from kit.chart.installing import first_install, kubectl_for
from kit.chart.policies import operator_of
from tools.cluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ControlPlane(tmp_path_factory.mktemp("chart-controlplane")).temporary() as plane:
        kubectl = kubectl_for(plane)
        first_install(kubectl, "defaultOutput.secretName=bucket-key")
        yield kubectl


@pytest.fixture(scope="session")
def operator(installed: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> ApiServer:
    """kubectl with the operator's own token, once the policies are in force."""
    return operator_of(installed, tmp_path_factory.mktemp("operator"))
