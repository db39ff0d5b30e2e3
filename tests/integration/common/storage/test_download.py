"""A download is several ranges at a time, is never begun again for nothing, and never mixes two objects."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import Entry, LocalStore, Store, local, transfer
from tunery_common.storage.base import ObjectReplaced

from tools.cluster.s3 import S3Server

PART = 1 << 20
SIZE = 9 * PART + 12_345


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PART_BYTES": PART, "_MARK_BYTES": 2 * PART, "CHUNK_BYTES": PART // 4}.items():
        monkeypatch.setattr(transfer, name, value)
    monkeypatch.setattr(local, "CHUNK_BYTES", PART // 4)


@pytest.fixture
def data(store: Store) -> bytes:
    """Ten parts under the key `big`, the last of them short."""
    data = random.Random(2).randbytes(SIZE)
    store.put_bytes("big", data)
    return data


Stream = Callable[[Entry, int, int], Iterator[bytes]]


def _streaming(monkeypatch: pytest.MonkeyPatch, store: Store, change: Callable[[Stream], Stream]) -> None:
    """Have the store's ranges come as `change` makes them."""
    plain = store.stream
    monkeypatch.setattr(store, "stream", change(plain))


def _counted(requests: list[tuple[int, int]]) -> Callable[[Stream], Stream]:
    def change(plain: Stream) -> Stream:
        def stream(entry: Entry, start: int, length: int) -> Iterator[bytes]:
            requests.append((start, length))
            yield from plain(entry, start, length)

        return stream

    return change


def _interrupted(after: int) -> Callable[[int], None]:
    seen = 0

    def progress(count: int) -> None:
        nonlocal seen
        seen += count
        if seen > after:
            raise KeyboardInterrupt

    return progress


def test_ranges_are_read_side_by_side(
    store: Store, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request ends before ten of them are under way."""
    meeting = threading.Barrier(10)

    def change(plain: Stream) -> Stream:
        def stream(entry: Entry, start: int, length: int) -> Iterator[bytes]:
            meeting.wait(timeout=20)
            yield from plain(entry, start, length)

        return stream

    _streaming(monkeypatch, store, change)
    received: list[int] = []
    assert store.download("big", tmp_path / "big", received.append) == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "big").read_bytes() == data
    assert sum(received) == SIZE
    assert [path.name for path in tmp_path.glob("*big*")] == ["big"]


def test_streams_are_bounded_over_all_files(
    store: Store, data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock, now, most = threading.Condition(), 0, 0

    def change(plain: Stream) -> Stream:
        def stream(entry: Entry, start: int, length: int) -> Iterator[bytes]:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
                lock.notify_all()
                lock.wait_for(lambda: most >= transfer.STREAMS, timeout=60)  # all that may be there, on any machine
            time.sleep(0.02)  # for one more, if it may
            yield from plain(entry, start, length)
            with lock:
                now -= 1

        return stream

    _streaming(monkeypatch, store, change)
    threads = [threading.Thread(target=store.download, args=("big", tmp_path / f"{n}")) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == transfer.STREAMS
    assert all((tmp_path / f"{n}").read_bytes() == data for n in range(4))


def test_a_download_goes_on_where_it_was_cut_off(
    store: Store, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_WINDOW", 2)
    with pytest.raises(KeyboardInterrupt):
        store.download("big", tmp_path / "big", _interrupted(5 * PART))
    assert not (tmp_path / "big").exists()
    requests: list[tuple[int, int]] = []
    _streaming(monkeypatch, store, _counted(requests))
    steps: list[int] = []
    assert store.download("big", tmp_path / "big", steps.append) == hashlib.sha256(data).hexdigest()
    assert steps[0] >= 3 * PART
    assert sum(steps) == SIZE
    assert min(start for start, _ in requests) == steps[0]
    assert (tmp_path / "big").read_bytes() == data


def test_a_killed_download_goes_on_from_its_last_mark(tmp_path: Path) -> None:
    """SIGKILL leaves a file of the full size with holes: only what the mark says is taken for whole."""
    folder = tmp_path / "store"
    folder.mkdir()
    data = random.Random(3).randbytes(SIZE)
    (folder / "big").write_bytes(data)
    program = f"""
import os, pathlib
from tunery_common.storage import LocalStore, transfer
transfer.PART_BYTES, transfer._MARK_BYTES, transfer._WINDOW = {PART}, {2 * PART}, 4
target = pathlib.Path({str(tmp_path / "big")!r})
def die(count):
    if any(mark.stat().st_size for mark in target.parent.glob(".big.*.done")):
        os.kill(os.getpid(), 9)
LocalStore(pathlib.Path({str(folder)!r}), "file:///x", "f").download("big", target, die)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    (partial,) = tmp_path.glob(".big.*.partial")
    assert partial.stat().st_size == SIZE
    steps: list[int] = []
    store = LocalStore(folder, "file:///x", "f")
    assert store.download("big", tmp_path / "big", steps.append) == hashlib.sha256(data).hexdigest()
    assert 2 * PART <= steps[0] < SIZE
    assert steps[0] % PART == 0
    assert sum(steps) == SIZE


def test_a_range_that_breaks_off_is_asked_for_from_there(
    store: Store, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: set[int] = set()
    requests: list[tuple[int, int]] = []

    def change(plain: Stream) -> Stream:
        def stream(entry: Entry, start: int, length: int) -> Iterator[bytes]:
            requests.append((start, length))
            chunks = plain(entry, start, length)
            if start % (2 * PART) == 0 and start not in broken:
                broken.add(start)
                yield next(chunks)
                raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "connection reset")
            yield from chunks

        return stream

    _streaming(monkeypatch, store, change)
    received: list[int] = []
    assert store.download("big", tmp_path / "big", received.append) == hashlib.sha256(data).hexdigest()
    assert sum(received) == SIZE
    assert len(broken) == 5
    assert {start for start, _ in requests if start % PART} == {start + PART // 4 for start in broken}


def test_a_refusal_ends_all_ranges_at_once(
    store: Store, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[tuple[int, int]] = []

    def change(plain: Stream) -> Stream:
        def stream(entry: Entry, start: int, length: int) -> Iterator[bytes]:
            requests.append((start, length))
            raise TuneryError(FailureReason.STORAGE_ACCESS_DENIED, "not any more")
            yield b""

        return stream

    _streaming(monkeypatch, store, change)
    with pytest.raises(TuneryError, match="not any more"):
        store.download("big", tmp_path / "big")
    assert len(requests) <= 10


def test_parts_of_two_versions_are_never_mixed(
    store: Store, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is replaced by one of the same size while its parts are read."""
    replaced = threading.Event()

    def change(plain: Stream) -> Stream:
        def stream(entry: Entry, start: int, length: int) -> Iterator[bytes]:
            if start == 4 * PART and not replaced.is_set():
                store.put_bytes("big", b"b" * SIZE)
                replaced.set()
            if start > 4 * PART:
                replaced.wait(20)
            yield from plain(entry, start, length)

        return stream

    _streaming(monkeypatch, store, change)
    with pytest.raises(ObjectReplaced, match="big was replaced while it was read"):
        store.download("big", tmp_path / "big")
    assert not (tmp_path / "big").exists()
    store.download("big", tmp_path / "big")
    assert set((tmp_path / "big").read_bytes()) == {ord("b")}


def test_a_part_of_a_replaced_object_is_not_continued(store: Store, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.download("big", tmp_path / "big", _interrupted(5 * PART))
    store.put_bytes("big", b"b" * SIZE)
    store.download("big", tmp_path / "big")
    assert set((tmp_path / "big").read_bytes()) == {ord("b")}


def test_a_server_without_ranges_is_noticed(
    store: Store, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_ATTEMPTS", 1)
    _streaming(monkeypatch, store, lambda plain: lambda entry, start, length: plain(entry, 0, entry.size))
    with pytest.raises(TuneryError, match="more than the range") as caught:
        store.download("big", tmp_path / "big")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


def test_a_range_of_the_server_is_exactly_what_was_asked(s3_server: S3Server, s3_store: Store) -> None:
    s3_store.put_bytes("k", bytes(range(256)) * 100)
    entry = s3_store.head("k")
    assert entry is not None
    assert b"".join(s3_store.stream(entry, 300, 700)) == (bytes(range(256)) * 100)[300:1000]
    assert b"".join(s3_store.stream(entry, 25_000, 10_000)) == (bytes(range(256)) * 100)[25_000:]
