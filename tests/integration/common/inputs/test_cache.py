"""The cache of a namespace: entries appear whole, are used without reading them again, and go when nobody uses them."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.common.inputs.test_fetch import MODEL, NONE, NOT_WANTED, _fill, _hub_credentials
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.inputs import digests
from tunery_common.inputs.fetch import MODELS, fetch_model
from tunery_common.inputs.location import Location
from tunery_common.inputs.shared_cache import RECORD, CacheUnusable, SharedCache
from tunery_common.storage import Store
from tunery_common.storage.s3 import S3Store
from tunery_trainer.inputs.cached_model import cache_model

from kit import mounts
from kit.hub_server import HubServer
from kit.s3 import credentials
from tools.cluster.s3 import S3Server

ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32
HOUR = 3600


def _silent(done: int, total: int) -> None:
    pass


def put(cache: SharedCache, key: str, size: int, age: float = 0.0) -> Path:
    """Put an entry of one file, last asked for `age` seconds ago; return its folder."""
    with cache.filling(MODELS, key) as draft:
        assert draft is not None
        (draft / "model.safetensors").write_bytes(b"w" * size)
        cache.put(MODELS, key, draft, {"model.safetensors": "ab"})
    lock = cache.entries(MODELS).parent / "locks" / f"{MODELS}-{key}"
    os.utime(lock, (time.time() - age, time.time() - age))
    return cache.entries(MODELS) / key


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "claim").mkdir()
    return tmp_path / "claim"


def test_an_entry_is_there_once_it_is_whole(root: Path) -> None:
    cache = SharedCache(root)
    assert cache.use(MODELS, ONE) is None
    with cache.filling(MODELS, ONE) as draft:
        assert draft is not None
        (draft / "model.safetensors").write_bytes(b"w")
        assert SharedCache(root).use(MODELS, ONE) is None
    assert SharedCache(root).use(MODELS, ONE) is None  # given up half-way
    put(cache, ONE, 10)
    found = SharedCache(root).use(MODELS, ONE)
    assert found is not None
    assert found.digests == {"model.safetensors": "ab"}
    assert sorted(path.name for path in found.folder.iterdir()) == [RECORD, "model.safetensors"]
    assert not list((root / "drafts").iterdir())
    with cache.filling(MODELS, TWO) as other:
        assert other is not None


@pytest.mark.parametrize("harm", ["cut", "gone", "record"])
def test_an_entry_that_is_not_whole_is_filled_anew(root: Path, harm: str) -> None:
    cache = SharedCache(root)
    folder = put(cache, ONE, 10)
    if harm == "cut":
        (folder / "model.safetensors").write_bytes(b"w" * 9)
    elif harm == "gone":
        (folder / "model.safetensors").unlink()
    else:
        (folder / RECORD).write_text("[1]")
    assert cache.use(MODELS, ONE) is None
    put(cache, ONE, 10)
    assert cache.use(MODELS, ONE) is not None


def test_one_fills_and_the_other_waits(root: Path) -> None:
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.wait(20)
        with SharedCache(root).filling(MODELS, ONE) as draft:
            order.append("there" if draft is None else "again")

    thread = threading.Thread(target=second)
    thread.start()
    cache = SharedCache(root)
    with cache.filling(MODELS, ONE) as draft:
        assert draft is not None
        begun.set()
        time.sleep(0.3)
        order.append("filled")
        (draft / "config.json").write_bytes(b"{}")
        cache.put(MODELS, ONE, draft, {})
    thread.join()
    assert order == ["filled", "there"]


def test_the_least_recently_used_goes_first_and_only_as_needed(root: Path) -> None:
    cache = SharedCache(root, max_bytes=4000)
    oldest, older = put(cache, ONE, 1500, age=5 * HOUR), put(cache, TWO, 1500, age=4 * HOUR)
    with cache.filling(MODELS, THREE):
        cache.make_room(1500, MODELS, THREE)
    assert not oldest.exists()
    assert older.exists()
    put(cache, THREE, 1500)
    with cache.filling(MODELS, TWO) as there:  # asked for again: now the younger of the two
        assert there is None
    with cache.filling(MODELS, ONE), pytest.raises(CacheUnusable, match=r"room for [-\d,]+ bytes, 3,500 are needed"):
        cache.make_room(3500, MODELS, ONE)
    assert older.exists()


def test_what_a_process_uses_stays_until_it_ends(root: Path) -> None:
    cache = SharedCache(root, max_bytes=2000)
    folder = put(cache, ONE, 1500, age=5 * HOUR)
    program = f"""
import pathlib, sys
from tunery_common.inputs.shared_cache import SharedCache
cache = SharedCache(pathlib.Path({str(root)!r}))
assert cache.use("models", {ONE!r})
print("used", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == "used\n"
        with cache.filling(MODELS, ONE) as there:  # the next job does not wait for the end of that training
            assert there is None
        os.utime(root / "locks" / f"{MODELS}-{ONE}", (0, 0))
        with cache.filling(MODELS, TWO), pytest.raises(CacheUnusable, match="the rest is in use"):
            cache.make_room(1500, MODELS, TWO)
        assert (folder / "model.safetensors").exists()
        user.kill()
    with cache.filling(MODELS, TWO):
        cache.make_room(1500, MODELS, TWO)
    assert not folder.exists()


def test_what_was_asked_for_lately_stays(root: Path) -> None:
    cache = SharedCache(root, max_bytes=2000)
    folder = put(cache, ONE, 1500, age=HOUR / 2)
    with cache.filling(MODELS, TWO), pytest.raises(CacheUnusable):
        cache.make_room(1500, MODELS, TWO)
    assert folder.exists()


def test_an_abandoned_draft_makes_room_too(root: Path) -> None:
    cache = SharedCache(root, max_bytes=2000)
    with cache.filling(MODELS, ONE) as draft:
        assert draft is not None
        (draft / "half").write_bytes(b"w" * 1500)
    os.utime(root / "locks" / f"{MODELS}-{ONE}", (0, 0))
    with cache.filling(MODELS, TWO):
        cache.make_room(1500, MODELS, TWO)
    assert not draft.exists()


def test_names_that_are_not_ours_lead_nowhere(root: Path, tmp_path: Path) -> None:
    cache = SharedCache(root, max_bytes=10)
    (tmp_path / "precious").mkdir()
    with cache.filling(MODELS, ONE):
        (root / "locks" / "..-precious").touch()
        os.utime(root / "locks" / "..-precious", (0, 0))
        with pytest.raises(CacheUnusable):
            cache.make_room(1500, MODELS, ONE)
    assert (tmp_path / "precious").exists()


@pytest.fixture
def read_only(root: Path) -> Iterator[Path]:
    """The claim as a training pod sees it."""
    with mounts.read_only(root, root.with_name("mount")) as mount:
        yield mount


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that come from S3."""
    keys: list[str] = []
    plain = S3Store.download

    def spy(self: S3Store, key: str, *args: object) -> str:
        keys.append(key)
        return plain(self, key, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(S3Store, "download", spy)
    return keys


def test_a_base_from_s3_comes_once(
    s3_server: S3Server,
    bucket: str,
    s3_store: Store,
    root: Path,
    read_only: Path,
    tmp_path: Path,
    downloaded: list[str],
) -> None:
    _fill(s3_store, "m", {**MODEL, **NOT_WANTED})
    plain = Location(f"s3://{bucket}/m", credentials(s3_server))
    preflight, train = (Location(plain.uri, plain.credentials, cache=SharedCache(at)) for at in (root, read_only))
    cache_model(preflight, _silent)
    assert sorted(downloaded) == sorted(f"m/{name}" for name in MODEL)
    downloaded.clear()
    cache_model(preflight, _silent)
    found = fetch_model(train, tmp_path / "work")
    assert downloaded == []
    assert not (tmp_path / "work").exists()
    own = fetch_model(plain, tmp_path / "own")
    assert (found.digest, found.weight_bytes) == (own.digest, own.weight_bytes)
    names = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert names == {*MODEL, RECORD}
    assert all((found.folder / name).read_bytes() == data for name, data in MODEL.items())
    downloaded.clear()
    s3_store.put_bytes("m/merges.txt", b"c d")  # another model now, of the same sizes
    assert fetch_model(train, tmp_path / "work").digest != found.digest
    assert len(downloaded) == len(MODEL)


def test_a_base_from_a_hub_comes_once_and_is_what_the_hub_says(root: Path, read_only: Path, tmp_path: Path) -> None:
    with HubServer({"models/owner/model": {**MODEL, **NOT_WANTED}}) as hub:
        place = Location("hf://owner/model", _hub_credentials(hub), cache=SharedCache(root))
        cache_model(place, _silent)
        hub.requests.clear()
        found = fetch_model(Location(place.uri, place.credentials, cache=SharedCache(read_only)), tmp_path / "work")
        assert not [line for line in hub.requests if "/resolve/" in line]
    names = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert names == {*MODEL, RECORD}
    record = json.loads((found.folder / RECORD).read_text())
    assert all(digest for _, digest in record.values())


def test_a_file_that_is_not_what_the_hub_says_is_not_cached(root: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    with HubServer({"models/owner/model": MODEL}, told={name: "0" * 64}) as hub:
        place = Location("hf://owner/model", _hub_credentials(hub), cache=SharedCache(root))
        with pytest.raises(TuneryError, match=f"spec.model.uri: {name} came with another SHA-256") as caught:
            cache_model(place, _silent)
        assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
        assert not list((root / "models").iterdir())
        hub.told.clear()
        cache_model(place, _silent)
    assert len(list((root / "models").iterdir())) == 1


@pytest.mark.slow
def test_an_interrupted_filling_goes_on(
    s3_server: S3Server,
    bucket: str,
    s3_store: Store,
    root: Path,
    downloaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _fill(s3_store, "m", MODEL)
    place = Location(f"s3://{bucket}/m", credentials(s3_server), cache=SharedCache(root))
    with monkeypatch.context() as patch:
        patch.setattr(SharedCache, "put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("tunery_trainer.inputs.cached_model._without_bookkeeping", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            cache_model(place, _silent)
    downloaded.clear()
    cache_model(place, _silent)
    assert downloaded == []
    assert len(list((root / "models").iterdir())) == 1


def _refusing(number: int) -> Callable[..., int]:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.slow(fast=["quota", "read-only"])
@pytest.mark.parametrize("why", ["full", "read-only", "quota", "broken"])
def test_a_cache_that_cannot_take_it_is_no_failure(
    s3_server: S3Server,
    bucket: str,
    s3_store: Store,
    read_only: Path,
    root: Path,
    tmp_path: Path,
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _fill(s3_store, "m", MODEL)
    cache = SharedCache(read_only if why == "read-only" else root, max_bytes=100 if why == "full" else None)
    place = Location(f"s3://{bucket}/m", credentials(s3_server), cache=cache)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        if why in ("quota", "broken"):
            patch.setattr(os, "pwrite", _refusing(errno.EDQUOT if why == "quota" else errno.EIO))
        cache_model(place, _silent)
    assert "the base model is not cached: " in caplog.text
    assert fetch_model(place, tmp_path / "work").folder.is_relative_to(tmp_path / "work")


def test_a_base_in_a_claim_is_read_once_for_its_digest(
    root: Path, read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "tiny"
    for name, data in MODEL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    preflight, train = (
        Location("pvc://models/tiny", NONE, mount=folder.parent, cache=SharedCache(at)) for at in (root, read_only)
    )
    cache_model(preflight, _silent)
    assert not (folder / digests.BOOK).exists()
    expected = fetch_model(Location("pvc://models/tiny", NONE, mount=folder.parent), tmp_path / "work").digest
    (folder / digests.BOOK).unlink()
    monkeypatch.setattr(digests, "hash_file", lambda path: pytest.fail(f"{path} is read again"))
    assert fetch_model(train, tmp_path / "work").digest == expected
