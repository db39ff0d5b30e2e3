"""The API server of the rules' tests."""

from __future__ import annotations

from collections.abc import Iterator

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


@pytest.fixture(scope="module")
def namespace(api_server: ApiServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for the objects of one file."""
    name = request.path.stem.replace("_", "-")
    api_server.run("create", "namespace", name)
    yield name
    api_server.delete("namespace", name, wait=False)
