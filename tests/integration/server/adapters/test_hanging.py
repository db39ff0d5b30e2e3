"""Stores that stop in the middle of a body, or let it trickle: who waits is told, all others are served as before."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tunery_api.runspec import DiskLimit
from tunery_common.errors import TuneryError
from tunery_common.storage import s3_client, transfer
from tunery_server.adapters import turns
from tunery_server.adapters.turns import Heard, Turns

from kit.server.loader import Table, adapter_files, ask
from kit.server.stores import HangingStore, hanging_store

SIZE = sum(map(len, adapter_files().values()))
BAD = [f"b{number:02d}" for number in range(20)]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingStore]:
    """Yields a store with the buckets good and bad, whose client has as much patience as a test has time for."""
    monkeypatch.setattr(s3_client, "SHORT", s3_client.Patience(connect_seconds=2, read_seconds=2, attempts=1))
    with hanging_store() as store:
        yield store


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have who is silent be given up soon."""
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(turns, "SILENT_SECONDS", 3.0)


def table_of(tmp_path: Path, store: HangingStore, disk: DiskLimit | None = None, limit: int = 3) -> Table:
    return Table(tmp_path, limit=limit, disk=disk, opened=store.open)


async def started(table: Table, store: HangingStore, good: str, bad: list[str]) -> None:
    """Have adapters wanted of which the first are loaded and the others cold."""
    wanted = [store.publish("good", name, adapter_files(at)) for at, name in enumerate(good, 1)]
    wanted += [store.publish("bad", name, adapter_files(at)) for at, name in enumerate(bad, 100)]
    table.want(*wanted)
    await table.go()


def served(table: Table) -> str:
    return "".join(each.name for each in table.loader.state().adapters if each.state.value == "Served")


def asked(table: Table, names: list[str]) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(ask(table, name)) for name in names]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def passing(table: Table) -> AsyncIterator[None]:
    """Make passes meanwhile, for each of which much time goes by."""

    async def on() -> None:
        while True:
            await table.loader.step()
            table.clock.now += 1
            await asyncio.sleep(0.01)

    passes = asyncio.create_task(on())
    try:
        yield
    finally:
        passes.cancel()


def downloading() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("download", "blocking"))]


@pytest.mark.slow
async def test_nobody_leaves_a_small_disk_for_weights_that_stop_halfway_and_their_room_is_anothers(
    tmp_path: Path, store: HangingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(tmp_path, store)
    room = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    table = table_of(tmp_path, store, DiskLimit(bytes=room + int(4.5 * SIZE), field="spec.resources.ephemeralStorage"))
    await started(table, store, "abcde", BAD[:6])
    assert served(table) == "abc"
    hasten(monkeypatch)
    store.modes["bad"] = "half"
    async with passing(table):
        waiting = asked(table, BAD[:6])
        await until(lambda: store.hung >= 6)
        for name in "dea":
            assert (await ask(table, name)).startswith(f"{name}@"), "what hangs is quiet, and has no room of its own"
        assert await asyncio.gather(*waiting) == ["StorageUnavailable"] * 6
        assert len(served(table)) == 3
        for name in "abcabc":
            assert (await ask(table, name)).startswith(f"{name}@")
        store.modes.clear()
        for name in BAD[:6]:
            async with asyncio.timeout(10):
                while not (await ask(table, name)).startswith(f"{name}@"):
                    await asyncio.sleep(0.05)
    await table.loader.settle()


@pytest.mark.slow(only=["half"])
@pytest.mark.parametrize("mode", ["half", "trickle"])
async def test_bodies_that_hang_hold_up_no_other_bucket_and_their_threads_end(
    tmp_path: Path, store: HangingStore, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(transfer, "STREAMS", 4)
    transfer._streams.cache_clear()
    table = table_of(tmp_path, store)
    await started(table, store, "abcdef", BAD)
    before = len(downloading())
    hasten(monkeypatch)
    store.modes["bad"] = mode
    waiting = asked(table, BAD)
    await until(lambda: store.hung >= 4)
    for name in "def":
        assert (await ask(table, name)).startswith(f"{name}@")
    assert set(await asyncio.gather(*waiting)) == {"StorageUnavailable"}
    await until(lambda: len(downloading()) <= before)
    transfer._streams.cache_clear()


@pytest.mark.slow
async def test_a_slow_disk_is_not_taken_for_a_silent_storage(
    tmp_path: Path, store: HangingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(transfer, "_MARK_BYTES", 1)
    never, waited = threading.Event(), []

    def slow(plain: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            waited.append(never.wait(0.7))
            plain(descriptor)

        return sync

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, slow(getattr(os, name)))
    table = table_of(tmp_path, store)
    table.want(store.publish("good", "a", adapter_files()))
    await table.go()
    assert served(table) == "a", str(table.told("a").message)
    assert len(waited) >= 6, "each file's mark, its end, and its name"


@pytest.mark.slow
async def test_a_question_that_was_given_up_is_not_read_on(
    store: HangingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch)
    item = store.publish("bad", "b", adapter_files())
    store.modes["bad"] = "trickle"
    place, ended = store.open(item), threading.Event()

    def question() -> None:
        try:
            place.store.read_range(place.key("adapter_model.safetensors"), 0, 1 << 20)
        finally:
            ended.set()

    with pytest.raises(TuneryError, match="did not answer"):
        await Turns(1).ask(question, Heard())
    assert await asyncio.to_thread(ended.wait, 5)


async def test_so_many_threads_are_at_one_store_and_another_is_asked_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.02)
    monkeypatch.setattr(turns, "MOST_OF_ONE", 2)
    several, answers = Turns(1), threading.Event()
    for _ in range(2):
        with pytest.raises(TuneryError, match="did not answer"):
            await several.ask(lambda: answers.wait(20), Heard(), "s3://bad")
    with pytest.raises(TuneryError, match="2 questions to s3://bad that it does not answer"):
        await several.ask(lambda: answers.wait(20), Heard(), "s3://bad")
    monkeypatch.setattr(turns, "SILENT_SECONDS", 20)
    assert await several.ask(lambda: "here", Heard(), "s3://good") == "here"
    answers.set()


async def test_whoever_waits_for_a_turn_at_a_silent_store_waits_no_longer_than_who_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.2)
    several, answers, put = Turns(1), threading.Event(), []

    def question() -> bool:
        put.append(1)
        return answers.wait(20)

    told = await asyncio.gather(*(several.ask(question, Heard()) for _ in range(6)), return_exceptions=True)
    assert {str(error) for error in told} == {"StorageUnavailable: the storage did not answer within 0 s"}
    assert len(put) <= 2, "one after the other they would have waited six times as long"
    answers.set()


async def test_a_long_line_at_a_store_that_answers_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.3)
    several, pause = Turns(1), threading.Event()
    answers = await asyncio.gather(*(several.ask(lambda: pause.wait(0.1), Heard()) for _ in range(8)))
    assert answers == [False] * 8


@pytest.mark.slow
def test_a_process_ends_while_bodies_hang(store: HangingStore) -> None:
    store.publish("bad", "b", adapter_files())
    store.modes["bad"] = "half"
    program = f"""
import pathlib, threading, time
from tunery_common.storage import open_store
from tunery_common.storage.credentials import Credentials
place = open_store("s3://bad/b", Credentials("x", {store.credentials.values!r}), "f")
bring = lambda: place.store.download(place.key("adapter_model.safetensors"), pathlib.Path("/dev/shm/never"))
threading.Thread(target=bring, daemon=True).start()
while not any(each.name.startswith("download") for each in threading.enumerate()):
    time.sleep(0.01)
time.sleep(0.5)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 0
