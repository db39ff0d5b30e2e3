"""A running operator with exactly the rights that its code names, and a namespace for each test."""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tunery_operator.kube.rbac import OWN_NAMESPACE_PERMISSIONS, PERMISSIONS, Call

from kit.operator.api import Api, Json
from kit.operator.objects import Namespace
from kit.operator.players import Kubelets
from kit.operator.process import OperatorProcess
from kit.operator.sweeps import Trials
from tools.cluster.controlplane import ControlPlane

USER = "test-operator"
LEASE_NAMESPACE = "tunery-system"
"""Where replicas of the operator elect their leader."""

_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """The API server, as its administrator."""
    return Api(control_plane.kubeconfig)


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: ControlPlane, api: Api) -> Path:
    """A user that may do what PERMISSIONS say, in LEASE_NAMESPACE what its own permissions say, and nothing else."""
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": LEASE_NAMESPACE}})
    _grant(api, _RBAC, "Cluster", PERMISSIONS)
    _grant(api, f"{_RBAC}/namespaces/{LEASE_NAMESPACE}", "", OWN_NAMESPACE_PERMISSIONS)
    return control_plane.client_kubeconfig(USER, USER)


def _grant(api: Api, path: str, prefix: str, calls: Iterable[Call]) -> None:
    """Give the operator's user these rights, by a Role or (prefix `Cluster`) a ClusterRole."""
    group, kind, meta = "rbac.authorization.k8s.io", f"{prefix}Role", {"name": USER}
    api.call("POST", f"{path}/{kind.lower()}s", {"metadata": meta, "rules": rules(calls)})
    subjects = [{"kind": "User", "name": USER, "apiGroup": group}]
    binding = {"metadata": meta, "roleRef": {"kind": kind, "name": USER, "apiGroup": group}, "subjects": subjects}
    api.call("POST", f"{path}/{kind.lower()}bindings", binding)


def rules(calls: Iterable[Call] = PERMISSIONS) -> list[Json]:
    """Return rights as the rules of a Role."""
    verbs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for call in sorted(calls):
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


class Stage:
    """The operators that serve the API server of the session: the shared one, or those of a test, never both."""

    def __init__(self, kubeconfig: Path, tls: Path, folder: Path) -> None:
        self.kubeconfig = kubeconfig
        self._tls = tls
        self._folder = folder
        self._numbers = itertools.count(1)
        self.shared: OperatorProcess | None = None

    def share(self) -> OperatorProcess:
        """Return the shared operator, and start it where it does not run."""
        if self.shared is None:
            self.shared = OperatorProcess(self._folder / "shared", self.kubeconfig, self._tls)
        if self.shared.process is None:
            self.shared.start()
        return self.shared

    def make(self, kubeconfig: Path | None = None, **settings: str) -> OperatorProcess:
        """Return an operator of one test, not started yet."""
        folder = self._folder / f"own-{next(self._numbers)}"
        return OperatorProcess(folder, kubeconfig or self.kubeconfig, self._tls, settings)

    def clear(self) -> None:
        """Stop the shared operator: who needs it starts it again."""
        if self.shared is not None:
            assert self.shared.stop() == 0


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


@pytest.fixture
def operator(stage: Stage) -> OperatorProcess:
    """The operator that all tests share, unless they kill it."""
    return stage.share()


@pytest.fixture
def own_operator(stage: Stage) -> Iterator[Callable[..., OperatorProcess]]:
    """A maker of operators for this test alone, such as `own_operator(TUNERY_WORKERS="2")`; they are not started."""
    stage.clear()
    made: list[OperatorProcess] = []

    def make(kubeconfig: Path | None = None, **settings: str) -> OperatorProcess:
        made.append(stage.make(kubeconfig, **settings))
        return made[-1]

    yield make
    for process in made:
        process.kill()


def make_namespace(api: Api) -> Namespace:
    """Return a new namespace; it lives as long as the API server of the session."""
    name = f"test-{next(_numbers)}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return Namespace(api, name)


@pytest.fixture
def namespace(api: Api, operator: OperatorProcess) -> Namespace:
    """A namespace of this test, served by the running operator."""
    return make_namespace(api)


@pytest.fixture
def trials(api: Api, operator: OperatorProcess) -> Iterator[Trials]:
    """Nodes on which every trial ends well, unless the test says otherwise."""
    trials = Trials()
    players = Kubelets(api, trials.end)
    players.start()
    yield trials
    players.stop()
