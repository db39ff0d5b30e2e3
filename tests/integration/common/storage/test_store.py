"""What the Store protocol promises, on a real S3 server and on a real disk."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import ObjectExists, ObjectMissing, Store, s3_client
from tunery_common.storage.base import ObjectReplaced
from tunery_common.storage.local import LocalStore


def test_put_head_read_delete(store: Store) -> None:
    assert store.head("a/b.txt") is None
    store.put_bytes("a/b.txt", b"hello world")
    entry = store.head("a/b.txt")
    assert entry is not None
    assert (entry.key, entry.size) == ("a/b.txt", 11)
    assert store.read_bytes("a/b.txt") == b"hello world"
    assert store.read_range("a/b.txt", 6, 3) == b"wor"
    assert store.read_range("a/b.txt", 6, 100) == b"world"
    assert store.read_range("a/b.txt", 50, 3) == b""
    assert b"".join(store.stream(entry, 6)) == b"world"
    assert b"".join(store.stream(entry, 3, 5)) == b"lo wo"
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    assert store.head("a/b.txt") is None


def test_list_is_a_folder_not_a_string_prefix(store: Store) -> None:
    for key in ("run/a", "run/sub/b", "run-2/c", "running"):
        store.put_bytes(key, b"x")
    assert [entry.key for entry in store.list("run")] == ["run/a", "run/sub/b"]
    assert [entry.key for entry in store.list("")] == ["run-2/c", "run/a", "run/sub/b", "running"]
    assert store.list("nothing/here") == []


@pytest.mark.slow(fast=["local"])
def test_list_goes_on_after_a_thousand(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.put_bytes(f"many/{i:04}", b""), range(1005)))
    assert len(store.list("many")) == 1005


@pytest.mark.parametrize(
    "read",
    [
        lambda store, path: store.read_bytes("no/such"),
        lambda store, path: store.read_range("no/such", 0, 1),
        lambda store, path: store.download("no/such", path),
    ],
    ids=["read_bytes", "read_range", "download"],
)
def test_missing_key(store: Store, tmp_path: Path, read: Callable[[Store, Path], object]) -> None:
    with pytest.raises(ObjectMissing, match="no/such"):
        read(store, tmp_path / "x")


@pytest.mark.parametrize("size", [0, 1, 3 << 20, 40 << 20], ids=["empty", "byte", "put", "multipart"])
def test_upload_and_download_keep_the_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(s3_client, "MULTIPART_THRESHOLD", 5 << 20)
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(size))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    sent: list[int] = []
    assert store.upload_file(source, "x/y", sent.append) == digest
    assert sum(sent) == size
    with pytest.raises(ObjectExists):
        store.upload_file(source, "x/y", if_none_match=True)
    store.delete("x/y")
    assert store.upload_file(source, "x/y", if_none_match=True) == digest
    received: list[int] = []
    target = tmp_path / "deep/er/target"
    assert store.download("x/y", target, received.append) == digest
    assert target.read_bytes() == source.read_bytes()
    assert sum(received) == size
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_object_replaced_while_it_is_read_is_noticed(store: Store) -> None:
    store.put_bytes("k", b"one")
    entry = store.head("k")
    assert entry is not None
    store.put_bytes("k", b"two")
    with pytest.raises(ObjectReplaced) as caught:
        list(store.stream(entry))
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_if_none_match_has_one_winner(store: Store) -> None:
    def attempt(number: int) -> int | None:
        try:
            assert store.put_bytes("race/manifest.json", f"{number}".encode(), if_none_match=True).atomic
        except ObjectExists:
            return None
        return number

    for round_ in range(5):
        with ThreadPoolExecutor(8) as pool:
            winners = [n for n in pool.map(attempt, range(8)) if n is not None]
        assert len(winners) == 1, f"round {round_}: {winners}"
        assert store.read_bytes("race/manifest.json") == f"{winners[0]}".encode()
        store.delete("race/manifest.json")


@pytest.mark.parametrize("key", ["../up", "a/../../up", "/abs", "a//b", "a/./b", "", "a\\..\\b"])
def test_keys_that_lead_out_are_refused(store: Store, key: str) -> None:
    with pytest.raises(TuneryError) as caught:
        store.put_bytes(key, b"x")
    assert caught.value.reason is FailureReason.INVALID_SPEC


def test_a_folder_that_another_run_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of one sweep write below one folder, and each removes what it leaves empty."""
    store = LocalStore(tmp_path, tmp_path.as_uri(), "spec.output.uri")
    mkdir, removed = Path.mkdir, []

    def make(path: Path, *args: Any, **kwargs: Any) -> None:
        mkdir(path, *args, **kwargs)
        if path.name == "b" and not removed:
            path.rmdir()
            removed.append(path)

    monkeypatch.setattr(Path, "mkdir", make)
    store.put_bytes("sweep/b/x", b"1")
    assert removed
    assert store.read_bytes("sweep/b/x") == b"1"


def test_without_hard_links_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path, tmp_path.as_uri(), "spec.output.uri")

    def link(*_: object) -> None:
        raise PermissionError

    def copy(_: BinaryIO, target: BinaryIO, __: int) -> None:
        target.write(b"ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", link)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", copy)
        with pytest.raises(TuneryError) as caught:
            store.put_bytes("x", b"half", if_none_match=True)
    assert caught.value.reason is FailureReason.DISK_FULL
    assert list(tmp_path.iterdir()) == []
    store.put_bytes("x", b"whole", if_none_match=True)
    assert store.read_bytes("x") == b"whole"
