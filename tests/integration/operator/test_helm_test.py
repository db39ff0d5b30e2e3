"""`helm test` on a real API server with a real operator; the nodes are played."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.configuration import Configuration
from kubernetes.config import load_kube_config

from tunery_operator.client.client import KubeClient
from tunery_operator.client.connection import Connection
from tunery_operator.client.permissions import TEST_PERMISSIONS
from tunery_operator.tools import helm_test
from tunery_operator.tools.helm_test import (
    MISSING,
    NAME,
    CheckFailed,
    Options,
    build_job,
    check_api,
    check_certificate,
    check_job,
    check_operator,
)

from kit.operator.api import eventually
from kit.operator.objects import Namespace
from kit.operator.reporting import Pods, Site
from tools.cluster.controlplane import ControlPlane

Json = dict[str, Any]
SECRET_MISSING = {"failure": {"reason": "SecretNotFound", "message": f"the Secret {MISSING} does not exist"}}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm_test, "_LOOK_SECONDS", 0.2)


@pytest.fixture
def client(control_plane: ControlPlane) -> Iterator[KubeClient]:
    """A client that asks for no right but those of the test's account."""
    configuration = Configuration()
    load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
    with KubeClient(Connection(configuration), allowed=TEST_PERMISSIONS) as client:
        yield client


def asked(namespace: str, **changes: Any) -> Options:
    nothing = Options(namespace, "https://127.0.0.1:1", "http://127.0.0.1:1/readyz", Path("ca.crt"), "", "", "", 60)
    return nothing._replace(**changes)


def test_without_a_bucket_the_preflight_has_to_say_so(namespace: Namespace, client: KubeClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(check_job, client, asked(namespace.name))
        namespace.end_pod(namespace.run_pod(f"{NAME}-preflight"), 64, message=SECRET_MISSING)
        assert "there is no bucket" in told.result()
    eventually("the job is removed", lambda: namespace.get("lorajobs", NAME) is None)


def test_a_preflight_that_fails_otherwise_is_told_in_its_own_words(namespace: Namespace, client: KubeClient) -> None:
    failure = {"failure": {"reason": "DatasetInvalid", "message": "line 1 is no JSON"}}
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(check_job, client, asked(namespace.name))
        namespace.end_pod(namespace.run_pod(f"{NAME}-preflight"), 64, message=failure)
        with pytest.raises(
            CheckFailed, match=r"should report the missing Secret .*, but reported DatasetInvalid: .*line 1 is no JSON"
        ):
            told.result()


@pytest.mark.slow
def test_with_a_bucket_the_job_trains_to_its_end_and_an_earlier_one_is_replaced(
    namespace: Namespace, client: KubeClient
) -> None:
    ask = asked(namespace.name, output_uri="s3://bucket/sample/", secret="s3", account="default")
    before = namespace.apply(build_job(ask))["metadata"]["uid"]
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(check_job, client, ask)
        eventually("the new job", lambda: uid(namespace) not in (None, before))
        preflight = f"{NAME}-preflight"
        eventually("its own preflight", lambda: of(namespace, preflight) == uid(namespace))
        namespace.pass_preflight(NAME)
        namespace.finish(NAME)
        assert "its adapter is at s3://" in told.result()


def of(namespace: Namespace, job: str) -> str | None:
    """Return the uid of the object that a Job is of."""
    found = namespace.get("jobs", job)
    return found and found["metadata"]["ownerReferences"][0]["uid"]


def uid(namespace: Namespace) -> str | None:
    found = namespace.get("lorajobs", NAME)
    return found and found["metadata"]["uid"]


@pytest.mark.slow
def test_a_job_that_nobody_acts_on_is_told_with_what_its_status_says(namespace: Namespace, client: KubeClient) -> None:
    namespace.limit(pods="0")
    with pytest.raises(CheckFailed, match=f"{NAME} has not ended within 3 s: .*describe lorajob {NAME}"):
        check_job(client, asked(namespace.name, seconds=3))


def test_the_api_is_asked_for_every_kind(namespace: Namespace, client: KubeClient) -> None:
    assert "lorajobs" in check_api(client, asked(namespace.name))


def test_what_does_not_answer_is_told_with_where_to_look() -> None:
    with pytest.raises(CheckFailed, match=r"readyz does not answer: .*do the operator's pods run"):
        check_operator(asked("n"))


async def test_the_certificate_is_looked_at_as_a_pod_does(progress_tls: Path) -> None:
    async with Site(progress_tls, Pods(set())) as site:
        url = f"https://127.0.0.1:{site.port}"
        good = asked("n", progress_url=url, authority=progress_tls / "ca.crt")
        assert "unauthenticated reports are rejected" in await asyncio.to_thread(check_certificate, good)
        other = Path(ssl.get_default_verify_paths().cafile or "")
        with pytest.raises(CheckFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(check_certificate, good._replace(authority=other))
