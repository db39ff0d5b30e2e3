"""Servers that a test session shares: a real Kubernetes API server with our CRDs, a real S3 server; its buckets."""

from __future__ import annotations

import gc
import os
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # xdist has no types

from tunery_api import redact
from tunery_common.storage import LocalStore, Store, open_store

from kit.installation import ROOT
from kit.kubectl import Kubectl
from kit.s3 import credentials
from kit.scheduling import scope_of
from kit.slow import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_sessionstart,
)
from tools.cluster.controlplane import ControlPlane
from tools.cluster.daemon import end_on_sigterm
from tools.cluster.paths import cache_dir
from tools.cluster.s3 import S3Server

# A test is no stopwatch: beside other work any example may take longer than Hypothesis's 200 ms.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Cached before a test sets XDG_CACHE_HOME, as the trainer does: Kubernetes would be built a second time.
cache_dir()

# The collector of Go takes a quarter of an API server's time; each server takes 250 MB more so.
os.environ.setdefault("GOGC", "400")

# pytest ends its fixtures at Ctrl-C, not at SIGTERM.
end_on_sigterm()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect the tests with the garbage collector off, and exclude what is imported from later collections.

    A full collection, which accelerate starts after each training, would take half a second.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Give each file to one worker, and fast files that share servers together: slow ones would take it too long."""
    fast = config.getoption("markexpr") == "not slow"
    return (SharedServers if fast else LoadFileScheduling)(config, log)


class SharedServers(LoadFileScheduling):  # type: ignore[misc]  # a base without types
    """Schedules files, and those that share servers together."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that tests start leave their temporary files below pytest's folder, which pytest removes."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(tmp_path_factory.mktemp("tmp"))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Variables that a test sets are of that test only: the trainer sets those of its libraries' caches."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test tells this process to hide is hidden in that test only, as a pod hides its own secrets only."""
    monkeypatch.setattr(redact, "_registered", dict(redact._registered))


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, API server, controller-manager and scheduler, with both CRDs established; no node."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane")).temporary() as plane:
        kubectl = api_kubectl(plane)
        kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
        kubectl.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield plane


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
    with S3Server(tmp_path_factory.mktemp("s3")).temporary() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server) -> Iterator[str]:
    """A bucket of the test's own."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    client = s3_server.client()
    client.create_bucket(Bucket=name)
    yield name
    # Each bucket takes volumes of the server's, and there are not many.
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)


@pytest.fixture
def s3_store(s3_server: S3Server, bucket: str) -> Store:
    store, _ = open_store(f"s3://{bucket}", credentials(s3_server), "spec.output.uri")
    return store


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return LocalStore(tmp_path / "store", (tmp_path / "store").as_uri(), "spec.output.uri")


@pytest.fixture(params=["s3", "local"])
def store(request: pytest.FixtureRequest) -> Store:
    """Both stores: what is promised holds for each."""
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found
