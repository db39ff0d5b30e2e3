"""The operators that serve the API server of a test session, their permissions, and namespaces for tests."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunery_operator.client.permissions import PERMISSIONS, Call

from kit.fork_server import operator_server
from kit.operator.api import Api, Json
from kit.operator.objects import Namespace
from kit.operator.process import OperatorProcess

USER = "test-operator"
LEASE_NAMESPACE = "tunery-system"
"""Where replicas of the operator elect their leader."""
RBAC = "/apis/rbac.authorization.k8s.io/v1"

_numbers = itertools.count(1)


def grant(api: Api, path: str, prefix: str, calls: Iterable[Call]) -> None:
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
            self.shared = self._process(self._folder / "shared", self.kubeconfig)
        if self.shared.process is None:
            self.shared.start()
        return self.shared

    def make(self, kubeconfig: Path | None = None, **settings: Any) -> OperatorProcess:
        """Return an operator of one test, not started yet."""
        folder = self._folder / f"own-{next(self._numbers)}"
        return self._process(folder, kubeconfig or self.kubeconfig, settings)

    def _process(self, folder: Path, kubeconfig: Path, settings: dict[str, Any] | None = None) -> OperatorProcess:
        return OperatorProcess(folder, kubeconfig, self._tls, settings or {}, popen=operator_server().popen)

    def clear(self) -> None:
        """Stop the shared operator: who needs it starts it again."""
        if self.shared is not None:
            assert self.shared.stop() == 0


def make_namespace(api: Api) -> Namespace:
    """Return a new namespace; it lives as long as the API server of the session."""
    name = f"test-{next(_numbers)}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return Namespace(api, name)
