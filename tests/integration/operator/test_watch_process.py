"""The operator's process and its rights to list and watch: taken away, given back, or held in some namespaces only."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kit.operator.api import Api, Json, eventually
from kit.operator.objects import UNSEEN, lorajob
from kit.operator.process import OperatorProcess
from kit.operator.stage import make_namespace, rules
from tools.cluster.controlplane import ControlPlane

Make = Callable[..., OperatorProcess]
RBAC = "/apis/rbac.authorization.k8s.io/v1"
GROUP = "rbac.authorization.k8s.io"
STOP_SECONDS = 12.0


def readyz(operator: OperatorProcess) -> str:
    """Return what /readyz says, whatever its status."""
    try:
        with urllib.request.urlopen(f"{operator.metrics_url}/readyz", timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError:
        return ""


@pytest.fixture
def user(control_plane: ControlPlane, api: Api, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A user without any right yet."""
    name = f"watcher-{request.node.name.replace('_', '-')[:40]}"
    yield name, control_plane.client_kubeconfig(name, name)
    for kind in ("clusterrolebindings", "clusterroles"):
        if api.get(f"{RBAC}/{kind}/{name}") is not None:
            api.delete(f"{RBAC}/{kind}/{name}")


def grant(api: Api, name: str, granted: list[Json], namespace: str | None = None) -> None:
    """Give a user rights, in one namespace or in all."""
    role, path = ("ClusterRole", RBAC) if namespace is None else ("Role", f"{RBAC}/namespaces/{namespace}")
    meta = {"name": name}
    api.call("POST", f"{path}/{role.lower()}s", {"metadata": meta, "rules": granted})
    reference = {"kind": role, "name": name, "apiGroup": GROUP}
    subjects = [{"kind": "User", "name": name, "apiGroup": GROUP}]
    api.call("POST", f"{path}/{role.lower()}bindings", {"metadata": meta, "roleRef": reference, "subjects": subjects})


def test_without_the_right_to_list_it_is_alive_and_says_why_it_is_not_ready(
    api: Api, own_operator: Make, user: tuple[str, Path]
) -> None:
    """M13a: a LIST was refused for ever, and both probes were green."""
    name, kubeconfig = user
    granted = [rule for rule in rules() if rule["resources"] != ["jobs"]]
    grant(api, name, granted)
    operator = own_operator(kubeconfig).start(wait=False)
    eventually("only its watch is reported as failed", lambda: readyz(operator).startswith("jobs: 403"))
    assert operator.probe("healthz") == 200
    api.patch(f"{RBAC}/clusterroles/{name}", {"rules": rules()})
    eventually("ready", operator.is_ready)
    assert (operator.metric('tunery_watch_errors_total{code="403",resource="jobs"}') or 0) > 0
    operator.assert_clean_log()


def test_only_the_namespaces_that_are_named(api: Api, own_operator: Make, user: tuple[str, Path]) -> None:
    """M20: with rights in these namespaces only, and none that holds for the cluster."""
    name, kubeconfig = user
    served, also, other = (make_namespace(api) for _ in range(3))
    for namespace in (served, also):
        grant(api, name, rules(), namespace.name)
    operator = own_operator(kubeconfig, watchNamespaces=[served.name, also.name]).start()
    for namespace in (other, served, also):
        namespace.apply(lorajob("one"))
    for namespace in (served, also):
        eventually("it is served", partial(namespace.status, "one"))
    assert (other.get("lorajobs", "one") or {})["status"] == UNSEEN
    operator.assert_clean_log()


@pytest.mark.slow
def test_it_stops_at_once_and_cleanly_while_much_happens(api: Api, own_operator: Make) -> None:
    operator, namespace = own_operator().start(), make_namespace(api)
    for index in range(30):
        namespace.apply(lorajob(f"n{index}", preflight="Skip"))
    began = time.monotonic()
    assert operator.stop() == 0
    assert time.monotonic() - began < STOP_SECONDS
    operator.assert_clean_log()
