"""A real S3 server once for all tests here, and a bucket for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tunery_trainer.storage import LocalStore, Store, open_store
from tunery_trainer.storage.s3_client import make_client

from trainer.storage.seaweed import Seaweed


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def bucket(s3: Seaweed) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    make_client(s3.credentials(), "spec.output.secretRef").create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_store(s3: Seaweed, bucket: str) -> Store:
    store, _ = open_store(f"s3://{bucket}", s3.credentials(), "spec.output.uri")
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
