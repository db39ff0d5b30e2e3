"""The command line against a real API server, in a namespace that no operator serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tunery.cli import run
from tunery.cluster import Cluster

from kit.operator.api import Api
from kit.operator.objects import Namespace
from kit.operator.stage import Stage, make_namespace
from tools.cluster.controlplane import ControlPlane


class Done(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def team(api: Api, stage: Stage) -> Iterator[Namespace]:
    """A namespace of the test; the test itself sets the status of its objects, unless it uses `served`."""
    stage.clear()
    namespace = make_namespace(api)
    yield namespace
    api.delete(f"/api/v1/namespaces/{namespace.name}")


@pytest.fixture
def served(team: Namespace, stage: Stage) -> Namespace:
    """The namespace `team`, served by a running operator."""
    stage.share()
    return team


@pytest.fixture
def tunery(team: Namespace, control_plane: ControlPlane, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run `tunery` with these arguments in the namespace `team`, its output in a pipe."""

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(["--kubeconfig", str(control_plane.kubeconfig), "-n", team.name, *arguments])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def put_status(team: Namespace) -> Callable[..., None]:
    """Set the fields of an object's status, by the status subresource."""

    def put(name: str, plural: str = "lorajobs", **status: Any) -> None:
        team.api.patch(f"{team.path(plural, name)}/status", {"status": status})

    return put


@pytest.fixture
def cluster(control_plane: ControlPlane, team: Namespace) -> Cluster:
    """The client's connection to that namespace."""
    return Cluster.load(str(control_plane.kubeconfig), None, team.name)
