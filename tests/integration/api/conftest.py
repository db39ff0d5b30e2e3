"""The API server of the rules' tests."""

from __future__ import annotations

import pytest

from kit.api_server import ApiServer
from kit.kubectl import Kubectl


@pytest.fixture(scope="session")
def api_server(api_server: Kubectl) -> ApiServer:
    """kubectl, whose methods are calls to the API server."""
    return ApiServer(api_server.environment)
