"""The command line against a real API server, in a namespace that no operator serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tunery.cli import run
from tunery.cluster import Cluster

from kit.installation import ROOT
from kit.operator.api import Api, Json
from kit.operator.objects import Namespace
from kit.operator.stage import RBAC, Stage, make_namespace
from tools.cluster.controlplane import ControlPlane

TENANT = "tenant"


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


@pytest.fixture(scope="session")
def tenant_kubeconfig(control_plane: ControlPlane) -> Path:
    """The kubeconfig of a user with only the permissions that a fixture grants."""
    return control_plane.client_kubeconfig(TENANT, TENANT)


@pytest.fixture
def as_tenant(
    api: Api, team: Namespace, tenant_kubeconfig: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run `tunery` as a user with the documented role in the namespace `team`, its output in a pipe."""
    allow(api, team.name, documented_rules())

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = run(["--kubeconfig", str(tenant_kubeconfig), "-n", team.name, *arguments])
        return Done(code, *capsys.readouterr())

    return call


def documented_rules() -> list[Json]:
    """Return the rules of the Role that docs/platforms.md gives to tenants."""
    blocks = (ROOT / "docs" / "platforms.md").read_text().split("```yaml\n")[1:]
    text = next(block.split("```")[0] for block in blocks if "kind: Role\n" in block)
    role = next(each for each in yaml.safe_load_all(text) if each["kind"] == "Role")
    rules: list[Json] = role["rules"]
    return rules


def allow(api: Api, namespace: str, rules: list[Json], name: str = TENANT) -> None:
    """Give the tenant these permissions in a namespace, by a Role of this name."""
    group, meta = "rbac.authorization.k8s.io", {"name": name}
    api.call("POST", f"{RBAC}/namespaces/{namespace}/roles", {"metadata": meta, "rules": rules})
    subjects = [{"kind": "User", "name": TENANT, "apiGroup": group}]
    body = {"metadata": meta, "roleRef": {"kind": "Role", "name": name, "apiGroup": group}, "subjects": subjects}
    api.call("POST", f"{RBAC}/namespaces/{namespace}/rolebindings", body)
