"""One installation of the chart with its defaults for all files of this folder, which do not change it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.api_server import ApiServer
from kit.chart.installing import installation
from kit.chart.policies import operator_of


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with installation(tmp_path_factory.mktemp("chart-controlplane"), "defaultOutput.secretName=bucket-key") as kubectl:
        yield kubectl


@pytest.fixture(scope="session")
def operator(installed: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> ApiServer:
    """kubectl with the operator's own token, once the policies are in force."""
    return operator_of(installed, tmp_path_factory.mktemp("operator"))
