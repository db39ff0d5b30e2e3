"""The API server of the rules' tests."""

from __future__ import annotations

import pytest

from kit.api_server import ApiServer
from kit.kubectl import Kubectl
from kit.operator.stage import Stage


@pytest.fixture(autouse=True, scope="module")
def no_operator(stage: Stage) -> None:
    """Stop the shared operator, which would reconcile the objects of these tests."""
    stage.clear()


@pytest.fixture(scope="session")
def api_server(api_server: Kubectl) -> ApiServer:
    """kubectl, whose methods are calls to the API server."""
    return ApiServer(api_server.environment)
