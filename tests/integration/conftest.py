"""The API server as a client, and the operators that serve it with exactly the permissions that their code names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunery_operator.client.permissions import OWN_NAMESPACE_PERMISSIONS, PERMISSIONS

from kit.operator.api import Api
from kit.operator.stage import LEASE_NAMESPACE, RBAC, USER, Stage, grant
from tools.cluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """The API server, as its administrator."""
    return Api(control_plane.kubeconfig)


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: ControlPlane, api: Api) -> Path:
    """A user that may do what PERMISSIONS say, in LEASE_NAMESPACE what its own permissions say, and nothing else."""
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": LEASE_NAMESPACE}})
    grant(api, RBAC, "Cluster", PERMISSIONS)
    grant(api, f"{RBAC}/namespaces/{LEASE_NAMESPACE}", "", OWN_NAMESPACE_PERMISSIONS)
    return control_plane.client_kubeconfig(USER, USER)


@pytest.fixture(scope="session")
def progress_tls(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the chart's Secret fills it."""
    folder = tmp_path_factory.mktemp("tls")
    pair = control_plane.authority.issue("progress", "progress", hosts=["127.0.0.1"])
    shutil.copy(pair.cert, folder / "tls.crt")
    shutil.copy(pair.key, folder / "tls.key")
    shutil.copy(control_plane.authority.pair.cert, folder / "ca.crt")
    return folder


@pytest.fixture(scope="session")
def stage(operator_kubeconfig: Path, progress_tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Who serves the API server; at the end the shared operator's log must be clean."""
    stage = Stage(operator_kubeconfig, progress_tls, tmp_path_factory.mktemp("operators"))
    yield stage
    if stage.shared is not None:
        stage.clear()
        stage.shared.assert_clean_log()
        log = stage.shared.log.read_text()
        assert f'User "{USER}" cannot' not in log, log
