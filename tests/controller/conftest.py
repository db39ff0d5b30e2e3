"""A running operator with exactly the rights that its code names, and a namespace for each test."""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.api import Api, Json
from controller.objects import Namespace
from controller.process import OperatorProcess
from tunery_operator.kube.rbac import PERMISSIONS

from cluster.controlplane import ControlPlane

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """The API server, as its administrator."""
    return Api(control_plane.kubeconfig)


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: ControlPlane, api: Api) -> Path:
    """A user that may do what PERMISSIONS say, and nothing else."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    meta = {"name": "test-operator"}
    api.call("POST", f"{rbac}/clusterroles", {"metadata": meta, "rules": rules()})
    subject = {"kind": "User", "name": "test-operator", "apiGroup": "rbac.authorization.k8s.io"}
    role = {"kind": "ClusterRole", "name": "test-operator", "apiGroup": "rbac.authorization.k8s.io"}
    api.call("POST", f"{rbac}/clusterrolebindings", {"metadata": meta, "roleRef": role, "subjects": [subject]})
    return control_plane.client_kubeconfig("test-operator", "test-operator")


def rules() -> list[Json]:
    """Return PERMISSIONS as the rules of a ClusterRole."""
    verbs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for call in sorted(PERMISSIONS):
        verbs[call.group, call.rbac_resource].append(call.verb)
    return [{"apiGroups": [g], "resources": [r], "verbs": v} for (g, r), v in verbs.items()]


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
def operator(
    operator_kubeconfig: Path, progress_tls: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """The operator that all tests share, unless they kill it."""
    process = OperatorProcess(tmp_path_factory.mktemp("operator"), operator_kubeconfig, progress_tls)
    process.start()
    yield process
    assert process.stop() == 0
    log = process.log.read_text()
    assert "a defect of the operator" not in log, log
    assert "forbidden" not in log.lower(), log


def make_namespace(api: Api) -> Namespace:
    """Return a new namespace; it lives as long as the API server of the session."""
    name = f"test-{next(_numbers)}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return Namespace(api, name)


@pytest.fixture
def namespace(api: Api, operator: OperatorProcess) -> Namespace:
    """A namespace of this test, served by the running operator."""
    return make_namespace(api)
