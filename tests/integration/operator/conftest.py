"""A running operator, and a namespace for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.configuration import Configuration
from kubernetes.config import load_kube_config

from tunery_operator.client.client import KubeClient
from tunery_operator.client.connection import Connection

from kit.operator.api import Api
from kit.operator.objects import Namespace
from kit.operator.players import Kubelets
from kit.operator.process import OperatorProcess
from kit.operator.stage import Stage, make_namespace
from kit.operator.sweeps import Trials
from tools.cluster.controlplane import ControlPlane


@pytest.fixture
def client(control_plane: ControlPlane) -> Iterator[KubeClient]:
    """The operator's client of the API server, for tests without an operator."""
    configuration = Configuration()
    load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
    with KubeClient(Connection(configuration)) as client:
        yield client


@pytest.fixture
def operator(stage: Stage) -> OperatorProcess:
    """The operator that all tests share, unless they kill it."""
    return stage.share()


@pytest.fixture
def own_operator(stage: Stage) -> Iterator[Callable[..., OperatorProcess]]:
    """A maker of operators for this test alone, not started yet: `own_operator(preflight={"maxConcurrent": 2})`."""
    stage.clear()
    made: list[OperatorProcess] = []

    def make(kubeconfig: Path | None = None, **settings: Any) -> OperatorProcess:
        made.append(stage.make(kubeconfig, **settings))
        return made[-1]

    yield make
    for process in made:
        process.kill()


@pytest.fixture
def namespace(api: Api, operator: OperatorProcess) -> Iterator[Namespace]:
    """A namespace of this test, served by the running operator; its objects do not burden later tests."""
    namespace = make_namespace(api)
    yield namespace
    api.delete(f"/api/v1/namespaces/{namespace.name}")


@pytest.fixture
def trials(api: Api, operator: OperatorProcess) -> Iterator[Trials]:
    """Nodes on which every trial ends well, unless the test says otherwise."""
    trials = Trials()
    players = Kubelets(api, trials.end)
    players.start()
    yield trials
    players.stop()
