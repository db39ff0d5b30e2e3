"""What the trainer's tests share: tiny models, a manifest beside its model and data, buckets of a real S3 server."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

os.environ["HF_HUB_OFFLINE"] = "1"

from tunery_trainer.storage import LocalStore, Store, open_store

from cluster.s3 import S3Server
from kit.s3 import credentials
from kit.story import Case, Write, make_rows, manifest, write_manifest, write_rows
from kit.tiny_models import CHATML, build_tokenizer, write_chat_model, write_family


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order: with two threads PiSSA's rounding was seen to differ by 2e-5 between runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a family's model, written once a session."""
    folders: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in folders:
            folders[family] = write_family(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def llama(family_folder: Callable[[str], Path]) -> Path:
    return family_folder("llama")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama that chats."""
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """With ChatML as its own chat template and `<|im_end|>` as its end of sequence."""
    return build_tokenizer(CHATML)


@pytest.fixture
def case(tmp_path: Path, tiny_model: Path) -> Case:
    """Writes a manifest with the given changes beside model and data, and gives its path back."""
    (tmp_path / "model").symlink_to(tiny_model)
    write_rows(tmp_path / "data.jsonl", make_rows())

    def write(**changes: Any) -> Path:
        return write_manifest(tmp_path, manifest(tmp_path, **changes))

    return write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows (objects, or raw lines as strings) as a .jsonl file and gives its path back."""

    def write_rows(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write_rows


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
