"""The API server of the rules' tests."""

from __future__ import annotations

import pytest

from kit.api_server import ApiServer
from kit.kubectl import Kubectl
from kit.operator.api import Api
from tools.cluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def api_server(api_server: Kubectl, control_plane: ControlPlane) -> ApiServer:
    """kubectl, which applies and patches by calls."""
    return ApiServer(api_server.environment, Api(control_plane.kubeconfig))
