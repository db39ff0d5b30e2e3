"""A disk that holds less than the engine: idle adapters leave it for who is asked for; it is said where none can."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from pathlib import Path

import pytest

from tunery_api.runspec import DiskLimit
from tunery_api.serving import DesiredAdapter
from tunery_common.storage import StorePath

from kit.server.loader import Table, adapter_files, ask, open_file, write_base

SIZE = sum(map(len, adapter_files().values()))
FIELD = "spec.resources.ephemeralStorage"


def small(tmp_path: Path, holds: float, limit: int = 8) -> Table:
    """Return a table whose disk holds so many adapters beside the model, and whose engine holds `limit`."""
    model = sum(path.stat().st_size for path in write_base(tmp_path / "model").iterdir())
    return Table(tmp_path, limit=limit, disk=DiskLimit(bytes=model + int(holds * SIZE), field=FIELD))


def items(table: Table, count: int, kept: int = 0) -> list[DesiredAdapter]:
    names = [f"a{number:02d}" for number in range(count)]
    found = [table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate(names, 1)]
    return [item.model_copy(update={"keep_loaded": at < kept}) for at, item in enumerate(found)]


def count(table: Table, state: str) -> int:
    return sum(each.state.value == state for each in table.loader.state().adapters)


async def answers(table: Table, name: str, hold: asyncio.Event | None = None) -> str:
    """Return the name of the adapter that answers, or the reason of the refusal."""
    return (await ask(table, name, hold)).partition("@")[0]


async def test_what_the_disk_does_not_hold_is_cold_at_once_and_each_answers_whoever_asks(tmp_path: Path) -> None:
    table = small(tmp_path, 3.5)
    table.want(*items(table, 12))
    await table.go(steps=4)
    assert table.loader.ready(), "four seconds after the start"
    assert (count(table, "Served"), count(table, "Cold")) == (3, 9)
    assert not any(each.reason for each in table.loader.state().adapters)
    for _ in range(2):
        for number in range(12):
            assert await answers(table, f"a{number:02d}") == f"a{number:02d}"
            await table.go(steps=1)
            assert len(table.engine.held) <= 3
    assert table.loader.ready()
    assert (count(table, "Served"), count(table, "Cold")) == (3, 9)


async def test_the_least_recently_asked_leaves_the_disk_and_neither_who_is_asked_nor_who_is_kept(
    tmp_path: Path,
) -> None:
    table = small(tmp_path, 3.5)
    wanted = items(table, 5, kept=1)
    for many in (3, 5):
        table.want(*wanted[:many])
        await table.go(steps=4)
    assert {name.partition("@")[0] for name in table.engine.held} == {"a00", "a01", "a02"}
    hold = asyncio.Event()
    running = asyncio.create_task(answers(table, "a01", hold))
    await asyncio.sleep(0)
    assert await answers(table, "a03") == "a03"
    await table.go()
    assert {name.partition("@")[0] for name in table.engine.held} == {"a00", "a01", "a03"}
    hold.set()
    assert await running == "a01"
    assert await answers(table, "a04") == "a04"
    await table.go()
    assert {name.partition("@")[0] for name in table.engine.held} == {"a00", "a03", "a04"}, "a01 was asked before a03"


async def test_who_finds_all_of_the_disk_busy_waits_for_the_first_that_has_answered(tmp_path: Path) -> None:
    table = small(tmp_path, 1.5)
    wanted = items(table, 3)
    for many in (1, 3):
        table.want(*wanted[:many])
        await table.go(steps=4)
    hold = asyncio.Event()
    running = asyncio.create_task(answers(table, "a00", hold))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(answers(table, "a01"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    hold.set()
    assert (await running, await waiting) == ("a00", "a01")
    await table.loader.settle()


async def test_who_finds_all_but_what_is_kept_coming_or_leaving_waits_for_it(tmp_path: Path) -> None:
    table = small(tmp_path, 2.5, limit=2)
    table.want(*items(table, 6, kept=1))
    await table.go(steps=4)
    hold = asyncio.Event()
    running = asyncio.create_task(answers(table, "a01", hold))
    await asyncio.sleep(0)
    names = ["a02", "a03", "a04", "a05"]
    waiting = [asyncio.create_task(answers(table, name)) for name in names]
    await asyncio.sleep(0.3)
    hold.set()
    assert await asyncio.gather(running, *waiting) == ["a01", *names], "the room of a01 is each one's by turns"
    await table.loader.settle()
    assert not any(each.reason for each in table.loader.state().adapters)


async def test_where_all_of_the_disk_is_kept_loaded_the_rest_says_that_it_is_full_and_what_to_do(
    tmp_path: Path,
) -> None:
    table = small(tmp_path, 1.5)
    wanted = items(table, 3, kept=1)
    table.want(*wanted)
    await table.go(steps=4)
    told_cold, told_full = count(table, "Cold"), count(table, "Failed")
    assert (count(table, "Served"), told_cold + told_full) == (1, 2), "full where the kept one was here before its try"
    assert await answers(table, "a01") == "DiskFull"
    await table.go()
    told = table.told("a01")
    assert (told.state, told.reason) == ("Failed", "DiskFull")
    assert f"({FIELD})" in str(told.message)
    assert told.hint == "Raise resources.ephemeralStorage; or remove keepLoaded from some adapters."
    table.want(*(item.model_copy(update={"keep_loaded": False}) for item in wanted))
    await table.go(steps=2, seconds=60)
    assert await answers(table, "a01") == "a01"
    assert await answers(table, "a02") == "a02"


async def test_two_that_are_to_be_kept_and_do_not_fit_leave_one_of_them_served_and_the_other_told(
    tmp_path: Path,
) -> None:
    table = small(tmp_path, 1.5)
    table.want(*items(table, 4, kept=2))
    await table.go(steps=4)
    assert table.loader.ready()
    assert sorted((table.told(name).state.value, table.told(name).reason) for name in ("a00", "a01"))[0] == (
        "Failed",
        "DiskFull",
    )
    loads = len(table.engine.did("load"))
    await table.go(steps=60)
    assert len(table.engine.did("load")) == loads, "nothing comes and goes without an end"


async def test_a_disk_that_holds_no_adapter_at_all_is_told(tmp_path: Path) -> None:
    table = small(tmp_path, 0.5)
    table.want(*items(table, 2))
    await table.go(steps=4)
    assert table.loader.ready()
    assert await answers(table, "a00") == "DiskFull"
    assert f"are for adapters, beside the model, of the {table.spec.disk.bytes:,} of {FIELD}" in str(  # type: ignore[union-attr]
        table.told("a00").message
    )
    assert (table.told("a00").state, table.told("a00").hint) == ("Failed", "Raise resources.ephemeralStorage.")


async def test_an_update_has_another_leave_where_both_versions_do_not_fit(tmp_path: Path) -> None:
    table = small(tmp_path, 3.5)
    wanted = items(table, 3)
    table.want(*wanted)
    await table.go(steps=4)
    assert count(table, "Served") == 3
    sha = table.publish("a00", adapter_files(9))
    table.want(table.item("a00", sha), *wanted[1:])
    await table.go(steps=4)
    assert (table.told("a00").state, table.told("a00").manifest_sha256) == ("Served", sha)
    assert count(table, "Cold") == 1


def big(table: Table, sizes: float, name: str = "big") -> DesiredAdapter:
    """Publish an adapter that takes as many bytes as so many others."""
    rank = next(rank for rank in range(4, 65) if sum(map(len, adapter_files(7, rank).values())) >= sizes * SIZE)
    return table.item(name, table.publish(name, adapter_files(7, rank)))


def held(table: Table) -> set[str]:
    return {name.partition("@")[0] for name in table.engine.held}


@pytest.mark.parametrize("limit", [8, 4])
async def test_what_can_never_fit_is_told_before_anybody_asks_and_nobody_leaves_for_it(
    tmp_path: Path, limit: int
) -> None:
    opened: list[str] = []

    def counted(item: DesiredAdapter) -> StorePath:
        opened.append(item.name)
        return open_file(item)

    table = small(tmp_path, 4.5, limit)
    table.opened = counted
    table.new_gateway()
    others = items(table, 4)
    table.want(*others)
    await table.go(steps=4)
    table.want(*others, big(table, 5))
    await table.go(steps=4)
    told = table.told("big")
    assert (told.state, told.reason, told.hint) == ("Failed", "DiskFull", "Raise resources.ephemeralStorage.")
    opened.clear()
    for _ in range(3):
        assert await answers(table, "big") == "DiskFull"
        await table.go(steps=2)
        assert held(table) == {"a00", "a01", "a02", "a03"}
        for number in range(4):
            assert await answers(table, f"a{number:02d}") == f"a{number:02d}"
        table.clock.now += 61
    assert opened == [], "the store is not asked again for what no time will mend"


async def test_what_would_fit_only_if_those_that_are_kept_left_is_refused_before_anybody_leaves(
    tmp_path: Path,
) -> None:
    table = small(tmp_path, 6.5, limit=6)
    wanted = items(table, 6, kept=4)
    table.want(*wanted)
    await table.go(steps=4)
    large = big(table, 3)
    table.want(*wanted, large)
    await table.go(steps=4)
    assert table.told("big").state == "Cold"
    for _ in range(2):
        assert await answers(table, "big") == "DiskFull"
        await table.go(steps=1)
        assert len(held(table)) == 6, "the idle ones have not left in vain"
        assert (table.told("big").state, table.told("big").reason) == ("Failed", "DiskFull")
        assert table.told("big").hint == "Raise resources.ephemeralStorage; or remove keepLoaded from some adapters."
        table.clock.now += 61
    table.want(*(item.model_copy(update={"keep_loaded": False}) for item in wanted), large)
    await table.go(steps=1)
    assert await answers(table, "big") == "big"


async def test_one_that_is_to_be_kept_and_does_not_fit_beside_others_takes_nobodys_place(tmp_path: Path) -> None:
    table = small(tmp_path, 4.5, limit=4)
    wanted = items(table, 4, kept=2)
    table.want(*wanted)
    await table.go(steps=4)
    table.want(*wanted, big(table, 3).model_copy(update={"keep_loaded": True}))
    await table.go(steps=30, seconds=10)
    assert (table.told("big").state, table.told("big").reason) == ("Failed", "DiskFull")
    assert held(table) == {"a00", "a01", "a02", "a03"}
    assert table.engine.did("unload") == []


async def test_nobody_leaves_before_enough_may_leave_for_who_is_asked_for(tmp_path: Path) -> None:
    table = small(tmp_path, 6.5)
    wanted = items(table, 6)
    table.want(*wanted)
    await table.go(steps=4)
    table.want(*wanted, big(table, 3))
    await table.go(steps=4)
    hold = asyncio.Event()
    running = [asyncio.create_task(answers(table, f"a{number:02d}", hold)) for number in range(5)]
    await asyncio.sleep(0)
    waiting = asyncio.create_task(answers(table, "big"))
    await asyncio.sleep(0.3)
    assert "a05" in held(table), "the one that is idle is not enough"
    hold.set()
    assert await waiting == "big"
    await asyncio.gather(*running)
    await table.loader.settle()
    assert len(held(table)) == 4, "and no more than had to have left"


async def test_one_that_waits_for_room_gives_its_place_to_one_that_has_come(tmp_path: Path) -> None:
    """The larger one gets the place of who has left, the smaller one the room."""
    hold, other, opening, may_open = asyncio.Event(), asyncio.Event(), threading.Event(), threading.Event()

    def opened(item: DesiredAdapter) -> StorePath:
        if item.name == "a03" and hold.is_set():
            opening.set()
            may_open.wait(10)
        return open_file(item)

    table = small(tmp_path, 3.5, limit=3)
    table.opened = opened
    table.new_gateway()
    wanted = items(table, 4, kept=1)
    table.want(*wanted, big(table, 2))
    await table.go(steps=4)
    assert held(table) == {"a00", "a01", "a02"}
    running = [asyncio.create_task(answers(table, name, event)) for name, event in (("a01", hold), ("a02", other))]
    await asyncio.sleep(0)
    large = asyncio.create_task(answers(table, "big"))
    await asyncio.sleep(0.1)
    late = asyncio.create_task(answers(table, "a03"))
    await asyncio.sleep(0.3)
    hold.set()
    assert await asyncio.to_thread(opening.wait, 5)
    await table.loader.step()
    may_open.set()
    async with asyncio.timeout(5):
        assert await late == "a03", "though a02 is busy, without which there is no room for the large one"
    other.set()
    assert await asyncio.gather(large, *running) == ["big", "a01", "a02"]
    await table.loader.settle()


@pytest.mark.parametrize("sizes", [7, 5])
async def test_one_that_finds_no_room_leaves_its_place_to_those_that_do(tmp_path: Path, sizes: int) -> None:
    table = small(tmp_path, 6.5, limit=3)
    others = items(table, 3)
    table.want(*others[:2])
    await table.go(steps=4)
    table.want(*others[:2], big(table, sizes), others[2])
    await table.go(steps=4)
    assert held(table) == {"a00", "a01", "a02"}
    assert table.told("big").state == ("Failed" if sizes == 7 else "Cold")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("cold", [True, False])
async def test_a_manifest_that_lies_about_a_size_is_corrupt_and_moves_nobody(
    tmp_path: Path, file: str, cold: bool
) -> None:
    table = small(tmp_path, 3.5, limit=3)
    others = items(table, 3 if cold else 2)
    table.want(*others)
    await table.go(steps=4)
    table.publish("liar", adapter_files(7))
    path = table.place("liar") / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"][file]["size"] = 10**12
    path.write_bytes(json.dumps(manifest).encode())
    table.want(*others, table.item("liar", hashlib.sha256(path.read_bytes()).hexdigest()))
    await table.go(steps=4)
    told = table.told("liar")
    assert (told.state, told.reason) == ("Failed", "AdapterCorrupt")
    assert f"{file} has {len(adapter_files(7)[file]):,} bytes, its manifest says 1,000,000,000,000" in str(told.message)
    assert await answers(table, "liar") == "AdapterCorrupt"
    await table.go(steps=4)
    assert held(table) == {item.name for item in others}
