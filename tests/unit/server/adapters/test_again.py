"""Cold adapters whose files change, go or come back: what is asked for is looked at again, and nothing is hidden."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tunery_api.reasons import FailureReason
from tunery_api.runspec import DiskLimit
from tunery_api.serving import DesiredAdapter
from tunery_common.errors import TuneryError
from tunery_common.storage import StorePath
from tunery_server.adapters import work
from tunery_server.adapters.again import AGAIN_SECONDS, MOST
from tunery_server.adapters.fits import Fit
from tunery_server.adapters.slot import LOOK_SECONDS, Slot
from tunery_server.adapters.source import Known
from tunery_server.routes import NotServed

from kit.server.loader import Table, adapter_files, open_file

WEIGHTS = "adapter_model.safetensors"


class Counted:
    """Opens folders, and counts how often each was asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.down = False
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, item: DesiredAdapter) -> StorePath:
        self.names.append(item.name)
        self.answers.wait(20)
        if self.down:
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "the storage does not answer")
        return open_file(item)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path, limit=1, opened=Counted())


async def ask(table: Table, name: str) -> str:
    """Be one request, and let all come to rest after it: the engine's name of what answers, or the reason."""
    try:
        found = (await table.routes.find(name)).engine_name
    except NotServed as error:
        found = error.reason
    await table.go(steps=1)
    return found


async def cold(table: Table, pinned: bool = False) -> str:
    """Have `d` cold, beside one that is kept loaded and takes its turn; returns its digest."""
    sha = table.publish("d", adapter_files(3))
    table.want(table.item("a", table.publish("a")), table.item("d", sha if pinned else None))
    await table.go()
    assert table.told("d").state == "Cold"
    return sha


async def test_a_cold_adapter_that_was_published_anew_answers_the_first_who_asks(table: Table) -> None:
    await cold(table)
    sha = table.publish("d", adapter_files(9))
    assert await ask(table, "d") == f"d@{sha[:12]}"
    assert (table.told("d").state, table.told("d").reason) == ("Served", None)


async def cold_on_the_disk(table: Table, pinned: bool = False) -> str:
    """Have `d` cold again after it was loaded once, so that its files are here; returns its digest."""
    sha = await cold(table, pinned)
    for name in "da":
        assert (await ask(table, name)).startswith(f"{name}@")
    assert table.told("d").state == "Cold"
    counted(table).names.clear()
    return sha


def counted(table: Table) -> Counted:
    assert isinstance(table.opened, Counted)
    return table.opened


async def test_a_cold_adapter_whose_files_are_here_answers_with_what_was_published_since(table: Table) -> None:
    await cold_on_the_disk(table)
    sha = table.publish("d", adapter_files(9))
    assert await ask(table, "d") == f"d@{sha[:12]}", "the first who asks, nor is the clock waited for"
    told = table.told("d")
    assert (told.state, told.manifest_sha256, told.reason) == ("Served", sha, None)


async def test_all_who_ask_meanwhile_share_one_look_and_a_pinned_one_needs_none(table: Table) -> None:
    sha = await cold_on_the_disk(table)
    answers = await asyncio.gather(*(table.routes.find("d") for _ in range(50)))
    assert {each.engine_name for each in answers} == {f"d@{sha[:12]}"}
    assert counted(table).names == ["d"]
    for _ in range(50):
        assert await ask(table, "d") == f"d@{sha[:12]}"
    assert counted(table).names == ["d"], "nobody looks while it is loaded, but for the clock"


async def test_a_pinned_one_is_loaded_from_the_disk_without_a_look(table: Table) -> None:
    sha = await cold_on_the_disk(table, pinned=True)
    assert await ask(table, "d") == f"d@{sha[:12]}"
    assert counted(table).names == []


@pytest.mark.parametrize("kept", [None, "1" * 64])
@pytest.mark.parametrize("pin", [None, "1" * 64])
def test_what_gets_a_place_is_looked_at_also_where_it_led_to_the_same_before_the_engine_died(
    kept: str | None, pin: str | None
) -> None:
    item = DesiredAdapter(name="d", uri="s3://adapters/d", manifest_sha256=pin)
    slot = Slot(item, kept=kept, cold=Known("1" * 64, Fit(4, None), 1))
    slot.begin()
    assert (slot.kept, slot.unseen) == ("1" * 64, pin is None)


async def test_where_the_storage_is_away_what_is_on_the_disk_answers_and_it_is_said(table: Table) -> None:
    old = await cold_on_the_disk(table)
    new = table.publish("d", adapter_files(9))
    counted(table).down = True
    assert await ask(table, "d") == f"d@{old[:12]}"
    told = table.told("d")
    assert (told.state, told.manifest_sha256, told.reason) == ("Served", old, "StorageUnavailable")
    assert told.message == (
        f"its place could not be looked at: the storage does not answer; serving {old[:12]} from the disk"
    )
    for name in "adad":
        assert (await ask(table, name)).startswith(f"{name}@")
    assert len(counted(table).names) <= 6, "it is tried less and less often"
    counted(table).down = False
    await table.go(steps=2, seconds=60)
    assert table.answers("d") == f"d@{new[:12]}"
    assert (table.told("d").state, table.told("d").reason) == ("Served", None)


async def test_a_served_adapter_whose_new_place_cannot_be_looked_at_says_so_and_one_by_the_clock_does_not(
    table: Table,
) -> None:
    old = table.publish("d", adapter_files(3))
    table.want(table.item("d"))
    await table.go()
    counted(table).down = True
    await table.go(steps=2, seconds=LOOK_SECONDS)
    assert (table.told("d").state, table.told("d").reason) == ("Served", None)
    new = table.publish("elsewhere", adapter_files(9))
    table.want(table.item("d").model_copy(update={"uri": table.item("elsewhere").uri}))
    await table.go()
    told = table.told("d")
    assert (told.state, told.manifest_sha256, told.reason) == ("Served", old, "StorageUnavailable")
    assert told.message == f"its place could not be looked at: the storage does not answer; still serving {old[:12]}"
    counted(table).down = False
    await table.go(steps=2, seconds=60)
    told = table.told("d")
    assert (told.state, told.manifest_sha256, told.reason) == ("Served", new, None)


async def test_a_storage_that_hangs_is_not_waited_for_long(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "AT_ONCE_SECONDS", 0.05)
    old = await cold_on_the_disk(table)
    counted(table).answers.clear()
    try:
        async with asyncio.timeout(2):
            assert (await table.routes.find("d")).engine_name == f"d@{old[:12]}"
        await asyncio.sleep(0)
        assert (table.told("d").state, table.told("d").reason) == ("Served", "StorageUnavailable")
    finally:
        counted(table).answers.set()
        await table.loader.settle()


async def test_a_bad_version_that_was_published_since_leaves_the_one_on_the_disk(table: Table) -> None:
    old = await cold_on_the_disk(table)
    bad = table.publish("d", adapter_files(9, use_dora=True))
    for _ in range(2):
        assert await ask(table, "d") == f"d@{old[:12]}"
        told = table.told("d")
        assert (told.state, told.reason, told.wanted_sha256) == ("Served", "AdapterUnsupported", bad)
        assert str(told.message).startswith(f"update to {bad[:12]}: ")
        assert await ask(table, "a") != "AdapterUnsupported"
    good = table.publish("d", adapter_files(11))
    assert await ask(table, "d") == f"d@{good[:12]}"
    assert table.told("d").reason is None


async def test_one_whose_place_is_gone_is_answered_from_the_disk_and_says_so(table: Table) -> None:
    old = await cold_on_the_disk(table)
    shutil.rmtree(table.place("d"))
    assert await ask(table, "d") == f"d@{old[:12]}"
    assert (table.told("d").state, table.told("d").reason) == ("Served", "AdapterMissing")
    assert await ask(table, "a") != "404"
    new = table.publish("d", adapter_files(9))
    assert await ask(table, "d") == f"d@{new[:12]}"
    assert table.told("d").reason is None


async def test_where_the_disk_holds_one_of_both_versions_the_old_one_makes_room_for_the_new(tmp_path: Path) -> None:
    model = sum(path.stat().st_size for path in Table(tmp_path / "x").root.joinpath("model").iterdir())
    size = sum(map(len, adapter_files().values()))
    disk = DiskLimit(bytes=model + int(2.5 * size), field="spec.resources.ephemeralStorage")
    table = Table(tmp_path, limit=1, disk=disk, opened=Counted())
    await cold_on_the_disk(table)
    rank = next(rank for rank in range(4, 64) if sum(map(len, adapter_files(9, rank).values())) >= 2 * size)
    sha = table.publish("d", adapter_files(9, rank))
    assert await ask(table, "d") == f"d@{sha[:12]}"
    assert table.told("d").reason is None


async def test_a_new_version_that_does_not_fit_is_told_for_what_it_is(table: Table) -> None:
    await cold(table)
    table.publish("d", adapter_files(9, use_dora=True))
    assert await ask(table, "d") == "AdapterUnsupported"
    assert (table.told("d").state, table.told("d").reason) == ("Failed", "AdapterUnsupported")


async def test_a_pinned_adapter_whose_place_has_other_content_is_corrupt_until_that_is_back(table: Table) -> None:
    sha = await cold(table, pinned=True)
    table.publish("d", adapter_files(9))
    assert await ask(table, "d") == "AdapterCorrupt"
    assert "Correct manifestSha256" in str(table.told("d").hint)
    table.publish("d", adapter_files(3))
    await after_the_hint(table, sha)


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize(("name", "reason"), [(WEIGHTS, "AdapterCorrupt"), ("manifest.json", "AdapterMissing")])
async def test_what_is_missing_stays_failed_whenever_it_is_looked_at_and_comes_soon_after_it_is_back(
    table: Table, name: str, reason: str, pinned: bool
) -> None:
    sha = await cold(table, pinned)
    path = table.place("d") / name
    content = path.read_bytes()
    path.unlink()
    assert await ask(table, "d") == reason
    for _ in range(60):
        await table.go(steps=1, seconds=11)
        told = table.told("d")
        assert (told.state, told.reason) == ("Failed", reason)
        assert told.message
        assert "d" not in table.routes.names()
    path.write_bytes(content)
    await after_the_hint(table, sha)


async def after_the_hint(table: Table, sha: str) -> None:
    """Ask as a client does who is told to come again after five seconds: within half a minute it is answered."""
    for _ in range(6):
        if (found := await ask(table, "d")) == f"d@{sha[:12]}":
            return
        table.clock.now += 4
    raise AssertionError(found)


async def test_a_look_finds_that_the_weights_of_a_cold_adapter_are_gone(table: Table) -> None:
    await cold(table)
    (table.place("d") / WEIGHTS).unlink()
    await table.go(steps=2, seconds=300)
    assert (table.told("d").state, table.told("d").reason) == ("Failed", "AdapterCorrupt")
    assert f"{WEIGHTS} is missing" in str(table.told("d").message)


async def test_a_storm_of_requests_leads_to_few_looks(tmp_path: Path) -> None:
    counted = Counted()
    table = Table(tmp_path, limit=1, opened=counted)
    names = [f"gone{number}" for number in range(100)]
    table.want(*(table.item(name, "0" * 64) for name in names))
    await table.go()
    assert {table.told(name).reason for name in names} == {"AdapterMissing"}
    await burst(table, ["gone0"] * 1000)
    counted.names.clear()
    await burst(table, ["gone0"] * 1000)
    assert not counted.names, "it has just been looked at"
    table.clock.now += AGAIN_SECONDS
    await burst(table, ["gone0"] * 1000)
    assert counted.names == ["gone0"]
    table.clock.now += AGAIN_SECONDS
    counted.names.clear()
    await burst(table, names * 10)
    assert len(counted.names) == MOST


async def burst(table: Table, names: list[str]) -> None:
    found: set[Any] = set()
    for name in names:
        with pytest.raises(NotServed) as caught:
            await table.routes.find(name)
        found.add(caught.value.reason)
    await table.loader.step()
    await table.loader.settle()
    assert found == {"AdapterMissing"}


async def test_an_alias_that_leads_to_a_failed_adapter_has_it_looked_at_too(table: Table) -> None:
    sha = await cold(table)
    weights = table.place("d") / WEIGHTS
    content = weights.read_bytes()
    weights.unlink()
    assert await ask(table, "d") == "AdapterCorrupt"
    weights.write_bytes(content)
    alias = {"name": "bot", "targets": [{"adapter": "d", "weight": 100}]}
    table.want(table.item("a", table.publish("a")), table.item("d"), aliases=[alias])
    table.clock.now += AGAIN_SECONDS
    await table.go(steps=1)
    assert await ask(table, "bot") == "AdapterCorrupt"
    assert await ask(table, "bot") == f"d@{sha[:12]}"
