"""Stores that hang: what is loaded stays loaded and answers, those that wait are told why, and others still come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tunery_api.runspec import DiskLimit
from tunery_api.serving import DesiredAdapter
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath
from tunery_server.adapters import source, turns, waking
from tunery_server.adapters.turns import GivenUp, Heard, Turns

from kit.server.loader import Table, adapter_files, ask, open_file

SIZE = sum(map(len, adapter_files().values()))


class Hanging:
    """Opens folders, but for some names only once it is told to."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.answers = threading.Event()

    def __call__(self, item: DesiredAdapter) -> StorePath:
        if item.name in self.names:
            self.answers.wait(20)
        return open_file(item)


@pytest.fixture
def store() -> Hanging:
    return Hanging()


@pytest.fixture
async def table(tmp_path: Path, store: Hanging) -> AsyncIterator[Table]:
    table = Table(tmp_path, limit=2, opened=store)
    yield table
    store.answers.set()
    await table.loader.settle()


async def started(table: Table, names: str, pinned: bool = True) -> dict[str, DesiredAdapter]:
    """Publish adapters and have them wanted; those without room are cold."""
    shas = {name: table.publish(name, adapter_files(at)) for at, name in enumerate(names, 1)}
    wanted = {name: table.item(name, sha if pinned else None) for name, sha in shas.items()}
    table.want(*wanted.values())
    await table.go()
    return wanted


def served(table: Table) -> str:
    return "".join(each.name for each in table.loader.state().adapters if each.state.value == "Served")


async def until(table: Table, true: Callable[[], bool]) -> None:
    """Make passes, none of which waits for a store, until something is so."""
    async with asyncio.timeout(10):
        while not true():
            await table.loader.step()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("pinned", [True, False])
async def test_those_that_are_loaded_stay_where_the_store_of_cold_ones_hangs(
    table: Table, store: Hanging, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.2)
    await started(table, "abcdef", pinned)
    store.names = set("cdef")
    waiting = [asyncio.create_task(ask(table, name)) for name in "cdef"]
    for _ in range(5):
        await asyncio.sleep(0.01)
        for name in "ab":
            assert (await ask(table, name)).startswith(f"{name}@")
    assert await asyncio.gather(*waiting) == ["StorageUnavailable"] * 4
    assert served(table) == "ab"
    assert table.engine.did("unload") == []
    told = table.told("c")
    assert (told.state, told.reason) == ("Cold", "StorageUnavailable")
    assert told.message == "the storage did not answer within 0 s"
    assert await ask(table, "c") == "StorageUnavailable", "at once: it is not asked again for each request"
    store.answers.set()
    await table.go(steps=2, seconds=60)
    assert table.told("c").reason is None
    assert (await ask(table, "c")).startswith("c@")


async def test_a_store_that_is_still_silent_when_a_request_has_waited_long_enough_is_what_it_is_told(
    table: Table, store: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waking, "HOLD_SECONDS", 0.05)
    await started(table, "abc")
    store.names = {"c"}
    assert await asyncio.gather(*(ask(table, "c") for _ in range(9))) == ["StorageUnavailable"] * 9
    assert table.loader._slots["c"].tries == 1, "however many have waited"
    assert served(table) == "ab"
    told = table.told("c")
    assert (told.state, told.reason) == ("Cold", "StorageUnavailable"), "its download is still under way"
    assert told.message == "nothing of it has come from its storage within 0 s"
    store.answers.set()
    await table.loader.settle()
    assert (table.told("c").state, table.told("c").reason) == ("Cold", None)
    monkeypatch.undo()
    assert (await ask(table, "c")).startswith("c@")


async def test_whoever_is_to_be_kept_takes_a_place_only_once_its_files_are_here(table: Table, store: Hanging) -> None:
    wanted = await started(table, "abc")
    store.names = {"c"}
    table.want(*(item.model_copy(update={"keep_loaded": item.name == "c"}) for item in wanted.values()))
    for _ in range(5):
        await table.loader.step()
        await asyncio.sleep(0.01)
    assert served(table) == "ab"
    store.answers.set()
    await until(table, lambda: "c" in served(table))
    assert len(served(table)) == 2


async def test_one_that_was_given_a_free_place_and_hangs_leaves_it_to_another_and_comes_later(
    table: Table, store: Hanging
) -> None:
    wanted = await started(table, "abcd")
    for name in "bc":
        assert (await ask(table, name)).startswith(f"{name}@")
    await table.loader.settle()
    assert served(table) == "bc"
    store.names = {"d"}
    table.want(wanted["d"], wanted["b"], wanted["a"])
    await until(table, lambda: table.told("d").state == "Loading")
    waiting = asyncio.create_task(ask(table, "d"))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert (await ask(table, "a")).startswith("a@"), "its files are here"
    assert served(table) == "ba"
    assert not waiting.done()
    store.answers.set()
    assert (await waiting).startswith("d@")
    await table.loader.settle()
    assert table.engine.highest == 2


async def test_a_cold_one_comes_while_the_stores_of_many_others_hang(
    table: Table, store: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.05)
    await started(table, "abcdefghijk")
    store.names = set("cdefghij")
    waiting = [asyncio.create_task(ask(table, name)) for name in "cdefghij"]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert (await ask(table, "k")).startswith("k@")
    assert not any(task.done() for task in waiting)
    store.answers.set()
    assert [name[0] for name in await asyncio.gather(*waiting)] == list("cdefghij")


async def test_a_download_that_was_given_up_has_only_one_leave_a_small_disk_however_often_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.2)
    table = Table(tmp_path, limit=3, disk=DiskLimit(bytes=10**9, field="spec.resources.ephemeralStorage"))
    room = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    table.disk = DiskLimit(bytes=room + int(3.5 * SIZE), field="spec.resources.ephemeralStorage")
    table.__post_init__()
    await started(table, "abcd")
    answers, plain = threading.Event(), source.download_files

    def stuck(*args: Any) -> None:
        answers.wait(20)
        plain(*args)

    monkeypatch.setattr(source, "download_files", stuck)
    for _ in range(3):
        assert await ask(table, "d") == "StorageUnavailable"
        assert len(served(table)) == 2
        table.clock.now += 61
    answers.set()
    await until(table, lambda: not list((tmp_path / "adapters" / ".drafts").iterdir()))
    await table.go(steps=2)
    assert (await ask(table, "d")).startswith("d@")


async def test_so_many_threads_are_at_stores_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.02)
    monkeypatch.setattr(turns, "MOST", 2)
    several, answers, put = Turns(4), threading.Event(), []

    def question() -> bool:
        put.append(1)
        return answers.wait(20)

    for _ in range(4):
        with pytest.raises(TuneryError, match="storage"):
            await several.ask(question, Heard())
    assert len(put) == 2
    answers.set()
    async with asyncio.timeout(5):
        while several.under_way:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(turns, "SILENT_SECONDS", 20)
    assert await several.ask(question, Heard())


async def test_bytes_that_come_too_late_end_the_thread_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.02)
    heard, late, ended = Heard(), threading.Event(), threading.Event()

    def question() -> None:
        late.wait(20)
        try:
            heard.moved(1)
        except GivenUp:
            ended.set()

    with pytest.raises(TuneryError, match="did not answer"):
        await Turns(1).ask(question, heard)
    late.set()
    assert await asyncio.to_thread(ended.wait, 10)
