"""What the documented role of a team permits, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunery import Client
from tunery.cluster import Cluster
from tunery.errors import ExitCode

from kit.operator.api import eventually
from kit.operator.objects import Namespace, lorajob


def test_submit_watch_explain_and_logs(
    team: Namespace, tenant_kubeconfig: Path, as_tenant: Callable[..., Any], put_status: Callable[..., None]
) -> None:
    cluster = Cluster.load(str(tenant_kubeconfig), None, team.name)
    eventually("the role is in force", lambda: cluster.can("watch", "lorajobs"))
    assert not cluster.can("get", "secrets", group="")
    job = Client(kubeconfig=str(tenant_kubeconfig), namespace=team.name).submit(
        lorajob("a", continueFrom={"loraJobRef": {"name": "base"}})
    )
    put_status("a", phase="Starting", observedGeneration=1, jobName="a-train", podName="a-train-x")
    said = as_tenant("explain", "a")
    assert (said.code, "lorajob/base does not exist." in said.out, "Forbidden" in said.out) == (0, True, False)
    assert as_tenant("logs", "a").out.startswith("lorajob/a is Starting and has no such pod now.")
    assert as_tenant("watch", "a", "--timeout", "1s").code == ExitCode.TIMEOUT
    put_status("a", phase="Succeeded")
    assert as_tenant("watch", "a").code == ExitCode.SUCCEEDED
    assert job.wait("5s").raise_for_failure().phase == "Succeeded"


def test_without_pods_and_events_explain_says_so_and_logs_names_doctor(
    team: Namespace, tenant_kubeconfig: Path, as_tenant: Callable[..., Any], put_status: Callable[..., None]
) -> None:
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{team.name}/roles"
    for role in team.api.items(path):
        rules = [rule for rule in role["rules"] if rule["apiGroups"] != [""]]
        team.api.patch(f"{path}/{role['metadata']['name']}", {"rules": rules})
    cluster = Cluster.load(str(tenant_kubeconfig), None, team.name)
    eventually("pods are forbidden", lambda: not cluster.can("get", "pods", group=""))
    team.apply(lorajob("a"))
    put_status("a", phase="Starting", observedGeneration=1, podName="a-train-x")
    assert json.loads(as_tenant("-o", "json", "explain", "a").out)["why"] == ["Events can't be listed: Forbidden."]
    refused = as_tenant("logs", "a")
    assert refused.code == ExitCode.FAILED
    assert "tunery doctor" in refused.err
