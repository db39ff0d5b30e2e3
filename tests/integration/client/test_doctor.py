"""`tunery doctor` against a real API server: each ✗ comes with a command that fixes it."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tunery import checks
from tunery.cluster import Cluster
from tunery.objects import list_objects

from .conftest import TENANT
from kit.kubectl import Kubectl
from kit.operator.api import Api, eventually
from kit.operator.objects import Namespace, lorajob
from kit.operator.stage import RBAC
from tools.cluster.controlplane import ControlPlane

Run = Callable[..., Any]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"


def results(cluster: Cluster) -> dict[str, checks.Check]:
    return {check.name: check for check in checks.run_checks(cluster)}


def lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if not line.startswith("  ")]


FORWARD = "✗ permission for pods/portforward: you may not create, get; needed by download, report, chat"


def test_a_tenant_without_port_forward_gets_it_by_the_remedy(
    as_tenant: Run, team: Namespace, api_server: Kubectl
) -> None:
    path = f"{RBAC}/namespaces/{team.name}/roles"
    for role in team.api.items(path):
        rules = [rule for rule in role["rules"] if "pods/portforward" not in rule["resources"]]
        team.api.patch(f"{path}/{role['metadata']['name']}", {"rules": rules})
    failed = eventually("the role holds", lambda: one_failure(as_tenant("doctor")))
    assert (failed.code, FORWARD in lines(failed.out)) == (1, True), failed.out
    remedy = next(line for line in failed.out.splitlines() if line.startswith("  Ask a cluster admin: kubectl create"))
    for command in remedy.partition(": ")[2].split(" && "):
        api_server.run(*shlex.split(command)[1:])
    done = eventually("nothing fails", lambda: found if (found := as_tenant("doctor")).code == 0 else None)
    assert "✗" not in done.out
    assert f" as {TENANT}" in lines(done.out)[0]
    assert "✓ permission for lorajobs.tunery.dev: get, list, watch, create, patch, delete" in done.out
    assert "? GPUs: nodes is forbidden" in done.out, "what the tenant may not see is unknown, and no failure"


def one_failure(done: Any) -> Any:
    """Return what doctor printed if one check has failed."""
    return done if done.out.count("✗") == 1 else None


def test_json_is_one_document(as_tenant: Run) -> None:
    found = json.loads(as_tenant("-o", "json", "doctor").out)
    assert {"Passed", "Unknown"} <= {each["result"] for each in found} <= {"Passed", "Failed", "Unknown"}
    assert found[0].keys() == {"name", "result", "message", "remedy"}


def test_the_remedies_give_a_user_without_permissions_all_that_the_commands_need(
    control_plane: ControlPlane, team: Namespace, api_server: Kubectl
) -> None:
    cluster = Cluster.load(str(control_plane.client_kubeconfig("newcomer", "new comer")), None, team.name)
    found = [check for check in checks.permissions(cluster) if check.result == checks.FAILED]
    assert len(found) == len(checks.PERMISSIONS)
    for check in found:
        for command in check.remedy.removeprefix("Ask a cluster admin: ").split(" && "):
            api_server.run(*shlex.split(command)[1:])
    eventually("all are granted", lambda: all(check.result == checks.PASSED for check in checks.permissions(cluster)))


def test_the_cluster_has_the_fields_of_this_client(cluster: Cluster) -> None:
    assert results(cluster)["Tunery's resources"].result == checks.PASSED


def test_another_version_of_the_resources_is_named(cluster: Cluster, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    served = cluster.request("GET", f"/openapi/v3/apis/{checks.API_VERSION}")
    job = next(s for name, s in served["components"]["schemas"].items() if name.endswith(".LoRAJob"))
    job["properties"]["spec"]["properties"]["later"] = job["properties"]["spec"]["properties"].pop("onStop")
    plain = cluster.request
    monkeypatch.setattr(
        cluster, "request", lambda method, path, *rest: served if "openapi" in path else plain(method, path, *rest)
    )
    older, newer = checks.resources(cluster)
    assert older.message == "the cluster lacks fields of this client: LoRAJob spec.onStop"
    assert newer.message == "this client lacks fields of the cluster: LoRAJob spec.later"
    assert "helm upgrade" in older.remedy
    assert "pip install" in newer.remedy


def test_a_missing_namespace_fails(cluster: Cluster) -> None:
    check = next(checks.namespace(cluster.within("missing")))
    assert (check.result, check.message) == (checks.FAILED, "missing does not exist")


def test_a_full_quota_fails_and_names_what_is_full(cluster: Cluster, team: Namespace, api: Api) -> None:
    team.limit(pods="5", configmaps="9")
    path = team.path("resourcequotas", "limit")
    eventually("the use is known", lambda: (api.get(path) or {}).get("status", {}).get("used", {}).get("configmaps"))
    assert next(checks.quotas(cluster))[1:3] == (checks.PASSED, "configmaps 1 of 9, pods 0 of 5 used")
    api.patch(path, {"spec": {"hard": {"configmaps": "1"}}})
    check = eventually("it is full", lambda: next((c for c in checks.quotas(cluster) if c.result == "Failed"), None))
    assert check.message == "configmaps 1 of 1 used"
    assert f"kubectl edit resourcequota limit -n {team.name}" in check.remedy


def test_the_gpus_of_nodes_are_counted(cluster: Cluster, api: Api) -> None:
    assert next(checks.gpus(cluster)).result == checks.UNKNOWN
    for name, count in (("gpu-a", "4"), ("gpu-b", "2"), ("cordoned", "8")):
        spec = {"unschedulable": True} if name == "cordoned" else {}
        api.call("POST", "/api/v1/nodes", {"metadata": {"name": name}, "spec": spec})
        api.patch(f"/api/v1/nodes/{name}/status", {"status": {"allocatable": {"nvidia.com/gpu": count, "cpu": "8"}}})
    try:
        assert next(checks.gpus(cluster))[1:3] == (checks.PASSED, "6 nvidia.com/gpu on 2 of 2 nodes")
    finally:
        for name in ("gpu-a", "gpu-b", "cordoned"):
            api.delete(f"/api/v1/nodes/{name}")


class TestOperator:
    """Whether the operator runs, by its Lease or by what it does with objects."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "_OPERATOR_SECONDS", 3.0)

    def test_without_objects_it_is_unknown(self, cluster: Cluster) -> None:
        assert next(checks.operator(cluster)).result == checks.UNKNOWN

    def test_an_object_that_nobody_reads_is_a_failure(self, cluster: Cluster, team: Namespace) -> None:
        team.apply(lorajob("a"))
        check = next(checks.operator(cluster))
        assert (check.result, check.message) == (checks.FAILED, "it has not read lorajob/a within 3 s")

    def test_an_object_that_it_reads_meanwhile_shows_that_it_runs(
        self, cluster: Cluster, team: Namespace, put_status: Run
    ) -> None:
        team.apply(lorajob("a"))
        timer = threading.Timer(1, put_status, ("a",), {"observedGeneration": 1, "phase": "Waiting"})
        timer.start()
        assert next(checks.operator(cluster))[1:3] == (checks.PASSED, "it has just read all objects of the namespace")
        timer.join()
        check = next(checks.operator(cluster))
        assert check.result == checks.PASSED
        assert check.message.startswith("it has read all objects of the namespace, and last wrote one ")
        views = list_objects(cluster)
        assert checks._last_write(cluster, views) > views[0].created, "the write of the status counts"

    @pytest.mark.parametrize("alive", [True, False])
    def test_a_lease_counts_if_it_is_renewed(self, cluster: Cluster, team: Namespace, api: Api, alive: bool) -> None:
        path = LEASES.format(team.name)
        spec = {"holderIdentity": "pod-1", "renewTime": "2020-01-01T00:00:00.000000Z"}
        api.call("POST", path, {"metadata": {"name": "tunery"}, "spec": spec})
        with renewed(api, f"{path}/tunery") if alive else threading.Lock():
            check = next(checks.operator(cluster))
        api.delete(f"{path}/tunery")
        where = f"the Lease tunery in namespace {team.name}"
        if alive:
            assert check[1:3] == (checks.PASSED, f"pod-1 renews {where}")
        else:
            assert check[1:3] == (checks.FAILED, f"no operator renews {where}")
            assert f"kubectl get pods -n {team.name}" in check.remedy


def test_a_running_operator_passes(cluster: Cluster, served: Namespace) -> None:
    served.apply(lorajob("a", suspend=True))
    assert next(checks.operator(cluster)).result == checks.PASSED


@contextmanager
def renewed(api: Api, path: str) -> Iterator[None]:
    """Renew a Lease twice a second."""
    end = threading.Event()

    def renew() -> None:
        while not end.wait(0.5):
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
            api.patch(path, {"spec": {"renewTime": now}})

    thread = threading.Thread(target=renew)
    thread.start()
    yield
    end.set()
    thread.join()


def test_a_cluster_without_an_answer_is_the_only_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tunery.cli import run

    assert run(["--kubeconfig", str(tmp_path / "none"), "doctor"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("✗ API server: no cluster is configured")
    assert "--kubeconfig" in out.splitlines()[1]
