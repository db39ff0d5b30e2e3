"""Servers that a test session shares: a real Kubernetes API server with our CRDs, and a real S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tunery_api import scrub

from cluster.controlplane import ControlPlane
from cluster.s3 import S3Server
from kit.installation import ROOT
from kit.kubectl import Kubectl

# A test is no stopwatch: beside other work any example may take longer than Hypothesis's 200 ms.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test tells this process to hide is hidden in that test only, as a pod hides its own secrets only."""
    monkeypatch.setattr(scrub, "_registered", dict(scrub._registered))


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, API server, controller-manager and scheduler, with both CRDs established; no node."""
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    plane.start()
    try:
        kubectl = api_kubectl(plane)
        kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
        kubectl.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield plane
    finally:
        plane.remove()


def api_kubectl(plane: ControlPlane) -> Kubectl:
    """Return kubectl for `plane`, as its administrator."""
    path = f"{plane.kubectl.parent}:{os.environ['PATH']}"
    return Kubectl(os.environ | {"KUBECONFIG": str(plane.kubeconfig), "PATH": path})


@pytest.fixture(scope="session")
def api_server(control_plane: ControlPlane) -> Kubectl:
    """kubectl against the session's API server."""
    return api_kubectl(control_plane)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with the buckets models, datasets and adapters."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    try:
        yield server
    finally:
        server.remove()
