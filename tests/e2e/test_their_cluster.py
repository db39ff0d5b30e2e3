"""What a platform's own cluster demands: its ids, taints, proxy and authority, and its way to the operator.

Each is met on the real node with the chart as it comes, said in the status, and done as the docs say.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from e2e.conftest import LONG, SETTINGS, Launch, lorajob

from kit.environment import images
from kit.forwarding import proxy, way
from kit.installation import NAMESPACE as OPERATORS
from kit.installation import install
from kit.jobs import Job
from kit.kubectl import Kubectl, wait_for
from kit.policies import changing_pods, giving_ids
from kit.tenant import create_tenant, s3_secret
from tools.cluster.certs import Authority

pytestmark = pytest.mark.slow

FIRST_ID = 1000670000
TAINT = "example.com/pool"
STORE = "storage.corporate.example"
"""A name that only the proxy knows."""
PROXY_PORT, STORE_PORT, REPORTS_PORT = 18128, 18443, 8443
IDS, POOL, PROXIED = "e2e-their-ids", "e2e-their-pool", "e2e-their-proxy"
CLUSTER_WIDE = {IDS: ("mutatingadmissionpolicy", "validatingadmissionpolicy")}
TOLD_SECONDS = 30


@pytest.fixture(scope="module")
def node(kubectl: Kubectl, environment: dict[str, str]) -> str:
    """The address at which pods reach the machine of the tests."""
    host = urlsplit(environment["AWS_ENDPOINT_URL"]).hostname
    assert host
    return host


@pytest.fixture(scope="module")
def network(node: str, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 server with a certificate of the platform's own authority, which only a proxy reaches."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    authority.create()
    parts = urlsplit(environment["AWS_ENDPOINT_URL"])
    certificate = authority.issue("store", STORE, hosts=[STORE])
    with (
        way((node, STORE_PORT), (node, parts.port or 80), certificate),
        proxy((node, PROXY_PORT), {f"{STORE}:443": (node, STORE_PORT)}) as asked,
    ):
        yield authority.pair.cert, asked


@pytest.fixture(scope="module")
def tenants(kubectl: Kubectl, environment: dict[str, str], installed: None) -> Iterator[None]:
    """A namespace for each; that of the proxy's job names a store that none but the proxy knows."""
    names = (IDS, POOL, PROXIED)
    _clean(kubectl, *names)
    for name in names:
        create_tenant(kubectl, name, environment)
    kubectl.apply(s3_secret(PROXIED, environment | {"AWS_ENDPOINT_URL": f"https://{STORE}"}))
    kubectl.apply(*giving_ids(IDS, IDS, FIRST_ID))
    yield
    _clean(kubectl, *names)


def _clean(kubectl: Kubectl, *namespaces: str) -> None:
    for kind in CLUSTER_WIDE[IDS]:
        kubectl.delete(f"{kind}binding", IDS)
        kubectl.delete(kind, IDS)
    for name in namespaces:
        kubectl.delete("namespace", name)


def test_a_pod_whose_reports_do_not_arrive_is_said_and_reports_once_they_may(
    launch: Launch, kubectl: Kubectl, namespace: str, node: str
) -> None:
    """As behind a NetworkPolicy: the operator's name leads where nothing listens, until somebody opens the way."""
    service = f"tunery.{OPERATORS}.svc"
    aliases = {"op": "add", "path": "/spec/hostAliases", "value": [{"ip": node, "hostnames": [service]}]}
    policy = changing_pods(namespace, namespace, "unheard", aliases)
    kubectl.apply(*policy)
    try:
        time.sleep(5)  # until the API server has compiled it
        blocks = LONG | {"training": LONG["training"] | {"maxSteps": 30000}}
        job = launch("unheard", **blocks)
        wait_for("it to run", lambda: job.condition("Running").get("status") == "True", 90)
        wait_for("nothing heard", lambda: _reported(job) == "False", 120 + TOLD_SECONDS)
        said = job.condition("ProgressReported")["message"]
        assert f"Allow TCP {REPORTS_PORT} from it to Service tunery.{OPERATORS}" in said
        found = kubectl.get("service", "tunery", OPERATORS)
        assert found is not None
        with way((node, REPORTS_PORT), (found["spec"]["clusterIP"], REPORTS_PORT)):
            wait_for("its reports", lambda: _reported(job) == "True", TOLD_SECONDS)
            assert job.status["progress"]["step"] > 0
            assert job.status["phase"] == "Training"
    finally:
        for made in policy:
            kubectl.delete(made["kind"].lower(), namespace)


def _reported(job: Job) -> str | None:
    return job.condition("ProgressReported").get("status")


def test_a_wait_ends_either_way(launch: Launch, kubectl: Kubectl, namespace: str) -> None:
    launch("good", preflight="Skip")
    launch("bad", dataset={"uri": "s3://datasets/e2e/nothing.jsonl", "secretRef": {"name": "s3"}})
    for name, phase in (("bad", "Failed"), ("good", "Succeeded")):
        kubectl.run("wait", "lorajob", name, "-n", namespace, "--for=condition=Finished", "--timeout=300s", timeout=320)
        found = kubectl.get("lorajob", name, namespace)
        assert found is not None
        assert found["status"]["phase"] == phase


def _job(kubectl: Kubectl, namespace: str, name: str) -> Job:
    return Job(kubectl, lorajob(namespace, name), namespace)


TOLERATE = [{"key": TAINT, "operator": "Exists"}]
NO_IDS = {"runAsUser": None, "runAsGroup": None, "fsGroup": None}
THEIRS: dict[str, Any] = {
    "operator": {"podSecurityContext": NO_IDS, "tolerations": TOLERATE},
    "preflight": {"tolerations": TOLERATE},
    "trainer": {
        "securityContext": NO_IDS,
        "tolerations": TOLERATE,
        "podLabels": {"cost-center": "ml"},
        "caBundle": {"configMap": "corporate", "key": "ca.crt"},
    },
}
"""The values of the chart for all of it, as docs/platforms.md has them; the proxy's address is not known before."""


def _values(node: str) -> tuple[str, ...]:
    flat = _flat(THEIRS | {"trainer": THEIRS["trainer"] | {"env": {"HTTPS_PROXY": f"http://{node}:{PROXY_PORT}"}}})
    return tuple(f"{name}={value}" for name, value in flat)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield a tree of values as --set takes them."""
    if isinstance(value, dict):
        for key, item in value.items():
            escaped = key.replace(".", "\\.")
            yield from _flat(item, f"{path}.{escaped}" if path else escaped)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, "null" if value is None else str(value)


@pytest.fixture(scope="module")
def told(tenants: None, kubectl: Kubectl, environment: dict[str, str]) -> Iterator[dict[str, dict[str, Any]]]:
    """What each status says under the chart as it comes; the node takes only pods that know its taint from then on.

    At the end both are as before: the chart last, whose pods know no taint.
    """
    said = {"ids": _job(kubectl, IDS, "ids").apply().wait_failure("PodRefused", TOLD_SECONDS)}
    said["proxied"] = _job(kubectl, PROXIED, "proxied").apply().wait_failure("StorageUnavailable", 240)
    (name,) = [each["metadata"]["name"] for each in kubectl.list("nodes")]
    kubectl.run("taint", "node", name, f"{TAINT}=ml:NoSchedule", "--overwrite")
    try:
        said["pooled"] = _job(kubectl, POOL, "pooled").apply().wait_failure("Unschedulable", TOLD_SECONDS)
        yield said
    finally:
        kubectl.run("taint", "node", name, f"{TAINT}-")
        install(kubectl, images(environment), *SETTINGS)


@pytest.fixture(scope="module")
def fitted(
    told: dict[str, dict[str, Any]],
    kubectl: Kubectl,
    environment: dict[str, str],
    node: str,
    network: tuple[Path, list[str]],
) -> None:
    """The chart with the platform's values, and the authority where its pods look for it."""
    corporate = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "corporate"}}
    for namespace in (IDS, POOL, PROXIED):
        kubectl.apply(corporate | {"data": {"ca.crt": network[0].read_text()}}, namespace=namespace)
    install(kubectl, images(environment), *SETTINGS, *_values(node))


def test_what_the_cluster_demands_is_said(told: dict[str, dict[str, Any]]) -> None:
    assert "untolerated taint" in told["pooled"]["message"]
    assert "unable to validate against any security context constraint" in told["ids"]["message"]
    assert f"must be in the ranges: [{FIRST_ID}" in told["ids"]["message"]
    assert STORE in told["proxied"]["message"]
    assert all(each["hint"] for each in told.values())


def test_ids_that_the_cluster_chooses(fitted: None, kubectl: Kubectl) -> None:
    """As OpenShift does; the operator's own pods have none of the chart's either."""
    job = _job(kubectl, IDS, "anew").apply()
    job.wait_phase("Succeeded", timeout=400)
    for pod in (*job.pods("preflight"), *job.pods("train")):
        context = pod["spec"]["securityContext"]
        assert (context["runAsUser"], context["fsGroup"]) == (FIRST_ID, FIRST_ID)
        assert "runAsGroup" not in context
    operators = kubectl.list("pods", OPERATORS, "app.kubernetes.io/component=operator")
    assert operators
    assert all("runAsUser" not in each["spec"]["securityContext"] for each in operators)


def test_a_job_that_waited_goes_on_as_soon_as_it_may(fitted: None, kubectl: Kubectl) -> None:
    """Its preflight, too: the pool's taint is still there."""
    for namespace, name in ((POOL, "pooled"), (IDS, "ids")):
        job = _job(kubectl, namespace, name)
        job.wait_phase("Succeeded", timeout=400)
        (pod,) = job.pods("train")
        assert {"key": TAINT, "operator": "Exists"} in pod["spec"]["tolerations"]
        assert pod["metadata"]["labels"]["cost-center"] == "ml"


def test_through_their_proxy_to_a_store_of_their_authority(
    fitted: None, kubectl: Kubectl, network: tuple[Path, list[str]]
) -> None:
    job = _job(kubectl, PROXIED, "proxied")
    network[1].clear()
    job.retry("proxied")
    status = job.wait_phase("Succeeded", timeout=400)
    assert status["adapter"]["uri"] == f"s3://adapters/{PROXIED}/proxied"
    assert set(network[1]) == {f"{STORE}:443"}, "what is within the cluster goes past the proxy"
