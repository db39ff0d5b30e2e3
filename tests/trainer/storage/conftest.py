"""A real S3 server once for all tests here, and a bucket for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.storage.access import credentials
from tunery_trainer.storage import LocalStore, Store, open_store

from cluster.s3 import S3Server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"), buckets=("ready",))
    server.start()
    yield server
    server.remove()


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[str]:
    name = f"b-{uuid.uuid4().hex[:12]}"
    client = s3.client()
    client.create_bucket(Bucket=name)
    yield name
    # Each bucket takes volumes of the server's, and there are not many.
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)


@pytest.fixture
def s3_store(s3: S3Server, bucket: str) -> Store:
    store, _ = open_store(f"s3://{bucket}", credentials(s3), "spec.output.uri")
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


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client speak to the local hub: other tests of the session switch it off for good."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
