"""The chart without Helm in the cluster, as Argo CD and Flux use it: rendered without a look into it, and applied."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.chart.installed import test_admission as jobs
from integration.chart.installed import test_admission_servers as servers
from tunery_operator.manifests.job import build_job

from kit.accounts import kubeconfig_of
from kit.api_server import ApiServer
from kit.chart import everything
from kit.chart.installing import CRDS, TEAM, kubeconfig_of_the_service_account, kubectl_for
from kit.chart.policies import platform_of, refusal
from kit.chart.rendering import CHART, KUBE_VERSION, NAMESPACE, Helm, Rendered
from kit.chart.running import CERTIFICATE, Operator, make_certificate, running_operator
from kit.kubectl import Kubectl, KubectlError, wait_for
from tools.cluster.controlplane import ControlPlane

TEMPLATE = ("template", "tunery", str(CHART), "-n", NAMESPACE, "--kube-version", KUBE_VERSION, "--skip-tests")
HOST = f"tunery.{NAMESPACE}.svc"


def template(helm: Helm, *settings: str) -> str:
    flags = [part for setting in settings for part in ("--set", setting)]
    return helm.run(*TEMPLATE, *flags)


@pytest.fixture(scope="module")
def applied(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A cluster to which the chart came as text."""
    with ControlPlane(tmp_path_factory.mktemp("gitops")).temporary() as plane:
        kubectl = kubectl_for(plane)
        enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
        for name in (NAMESPACE, TEAM):
            kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": enforce}})
        apply(kubectl, template(helm))
        yield kubectl


def apply(kubectl: ApiServer, text: str) -> None:
    kubectl.run("apply", "--server-side", "--field-manager=gitops", "-f", "-", stdin=text)
    kubectl.run("wait", "--for=condition=Established", *(f"crd/{name}" for name in CRDS), "--timeout=30s")


@pytest.mark.parametrize(
    "settings", [[], ["watchNamespaces={team-a}"], ["networkPolicy.enabled=true", "metrics.rules.enabled=true"]]
)
def test_rendered_twice_it_is_the_same_to_the_byte(helm: Helm, settings: list[str]) -> None:
    assert template(helm, *settings) == template(helm, *settings)


@pytest.mark.slow
def test_what_fills_the_certificate_is_no_drift_and_a_sync_leaves_it(
    applied: ApiServer, helm: Helm, tmp_path: Path
) -> None:
    assert "was created: there was none" in make_certificate(applied, tmp_path)
    made = applied.get("secret", CERTIFICATE, NAMESPACE)
    assert made is not None
    assert made["type"] == "Opaque"
    # Argo CD prunes what has the label of an application and is not rendered.
    assert "app.kubernetes.io/instance" not in made["metadata"]["labels"]
    # `kubectl diff` ends with 1, which is an error here, where anything would change.
    assert applied.run("diff", "--server-side", "--field-manager=gitops", "-f", "-", stdin=template(helm)) == ""
    apply(applied, template(helm))
    after = applied.get("secret", CERTIFICATE, NAMESPACE)
    assert after is not None
    assert after["data"] == made["data"]
    assert "is still valid" in make_certificate(applied, tmp_path)


@pytest.mark.slow
def test_the_account_of_the_certificate_makes_the_secret_of_that_name_and_of_two_runs_one(
    applied: ApiServer, tmp_path: Path
) -> None:
    make_certificate(applied, tmp_path)
    account = kubeconfig_of(applied, NAMESPACE, "tunery-certificate", tmp_path)
    job = Kubectl(applied.environment | {"KUBECONFIG": str(account)})
    body: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"ca.crt": "eA=="}}
    by_apply = ("apply", "--server-side", "--field-manager=late", "-f", "-")
    for how, name, refused in (
        (by_apply, CERTIFICATE, 'conflict with "tunery-certificate-'),
        (by_apply, "another", "cannot patch resource"),
        (("create", "-f", "-"), "another", "cannot create resource"),
    ):
        meta = {"name": name, "namespace": NAMESPACE}
        with pytest.raises(KubectlError, match=refused):
            job.run(*how, stdin=json.dumps(body | {"metadata": meta}))


def answers(operator: Operator, authority: Path) -> int:
    """Post as a pod that trusts an authority; return what a stranger's token is answered with."""
    context = ssl.create_default_context(cafile=authority)
    with socket.create_connection(("127.0.0.1", operator.progress_port), timeout=10) as plain:
        connection = http.client.HTTPConnection(HOST)
        connection.sock = context.wrap_socket(plain, server_hostname=HOST)
        connection.request("POST", "/", body="{}", headers={"Authorization": "Bearer not-a-token"})
        status = connection.getresponse().status
        connection.close()
    return status


@pytest.mark.slow
def test_a_pod_that_trusts_the_authority_reports_on_over_an_upgrade(
    applied: ApiServer, helm: Helm, tmp_path: Path
) -> None:
    authority, before, later = tmp_path / "ca.crt", tmp_path / "before", tmp_path / "later"
    before.mkdir()
    with running_operator(applied, Rendered.parse(template(helm)), before) as operator:
        wait_for("it to lead, and so to ask for tokens", operator.leads, timeout=30)
        shutil.copy(before / "ca.crt", authority)
        assert answers(operator, authority) == 401
    upgrade = template(helm, "image.tag=v2")
    prune_jobs(applied)
    apply(applied, upgrade)
    later.mkdir()
    with running_operator(applied, Rendered.parse(upgrade), later) as operator:
        wait_for("it to lead, and so to ask for tokens", operator.leads, timeout=30)
        assert answers(operator, authority) == 401


def prune_jobs(kubectl: ApiServer) -> None:
    """Delete what may be no longer rendered, as such tools do."""
    for job in kubectl.list("jobs", NAMESPACE):
        kubectl.delete("job", job["metadata"]["name"], NAMESPACE)


@pytest.mark.slow
def test_an_emptied_secret_is_filled_again(applied: ApiServer, tmp_path: Path) -> None:
    before = (applied.get("secret", CERTIFICATE, NAMESPACE) or {})["data"]
    applied.run("patch", "secret", CERTIFICATE, "-n", NAMESPACE, "--type=merge", "-p", '{"data": null}')
    assert "was created: ca.crt, tls.crt, tls.key was missing" in make_certificate(applied, tmp_path)
    assert (applied.get("secret", CERTIFICATE, NAMESPACE) or {})["data"] != before


@pytest.mark.slow
def test_the_policies_take_every_pod_of_a_platform_that_says_all_it_can(
    applied: ApiServer, helm: Helm, tmp_path: Path
) -> None:
    """Authorities, proxies, labels and no ids: of all that the operator builds then, the API server refuses nothing."""
    own = applied.using(kubeconfig_of_the_service_account(applied, tmp_path))
    flags = [part for key, value in everything.VALUES.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]
    text = helm.run(*TEMPLATE, *flags)
    assert text == helm.run(*TEMPLATE, *flags)
    apply(applied, text)
    platform = platform_of(Rendered.parse(text))
    bodies = [build_job(plan) for plan in jobs.plans(platform).values()]
    bodies.append(servers.children(servers.plan(platform))["Deployment"])
    wait_for("the policies", lambda: refusal(own, bodies[-1]) is None, timeout=60)
    assert [refusal(own, body) for body in bodies] == [None] * len(bodies)
    foreign = bodies[0]
    (volume,) = (v for v in foreign["spec"]["template"]["spec"]["volumes"] if v["name"] == "volume-ca-bundle")
    volume["configMap"]["name"] = "another"
    assert "mounts its run" in (refusal(own, foreign) or "")


@pytest.mark.slow
def test_what_replaces_all_that_is_rendered_leaves_the_certificate(
    applied: ApiServer, helm: Helm, tmp_path: Path
) -> None:
    """Argo CD's Replace=true, and whoever deletes it all and makes it again."""
    before = (applied.get("secret", CERTIFICATE, NAMESPACE) or {})["data"]
    text = template(helm, "crds.install=false")
    prune_jobs(applied)
    for ways in ([["delete", "--ignore-not-found"], ["create"]], [["replace"]]):
        for way in ways:
            applied.run(*way, "-f", "-", stdin=text)
        assert "is still valid" in make_certificate(applied, tmp_path)
        assert (applied.get("secret", CERTIFICATE, NAMESPACE) or {})["data"] == before
        assert applied.run("diff", "-f", "-", stdin=text) == ""
