"""A disk that holds less than the engine: idle adapters leave it for who is asked for; it is said where none can."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tunery_api.runspec import DiskLimit
from tunery_api.serving import DesiredAdapter

from .loader_kit import Table, adapter_files, ask, write_base

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


async def test_where_all_of_the_disk_is_kept_loaded_the_rest_says_that_it_is_full_and_what_to_do(
    tmp_path: Path,
) -> None:
    table = small(tmp_path, 1.5)
    wanted = items(table, 3, kept=1)
    table.want(*wanted)
    await table.go(steps=4)
    assert (count(table, "Served"), count(table, "Cold")) == (1, 2)
    assert await answers(table, "a01") == "DiskFull"
    await table.go()
    told = table.told("a01")
    assert (told.state, told.reason) == ("Failed", "DiskFull")
    assert f"({FIELD})" in str(told.message)
    assert told.hint == f"Raise {FIELD}, or serve fewer adapters, or fewer with keepLoaded."
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
    assert "no adapter is there that could leave" in str(table.told("a00").message)
    assert table.told("a00").state == "Failed"


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
