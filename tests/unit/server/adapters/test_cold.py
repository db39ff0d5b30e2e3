"""More adapters than the engine may hold: verified beforehand, loaded for whoever asks; the least used ones leave."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tunery_api.runspec import DiskLimit
from tunery_api.serving import DesiredAdapter, HeldAdapter
from tunery_server.adapters import waking
from tunery_server.routes import NotServed

from kit.server.loader import Table, adapter_files, ask, lora_shapes, safetensors

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path, limit=2)


def items(table: Table, names: str = "abcd", **more: bool) -> list[DesiredAdapter]:
    """Publish adapters, and return their entries; those in `more` are kept loaded."""
    found = [table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate(names, 1)]
    return [item.model_copy(update={"keep_loaded": more.get(item.name, False)}) for item in found]


def states(table: Table) -> dict[str, str]:
    return {each.name: each.state.value for each in table.loader.state().adapters}


async def asked(table: Table, name: str) -> str:
    """Be one request, and let all come to rest after it."""
    found = await ask(table, name)
    await table.loader.settle()
    return found


async def test_what_has_no_room_is_cold_after_its_header_was_read_and_comes_when_it_is_asked_for(table: Table) -> None:
    wanted = items(table)
    table.want(*wanted)
    await table.go()
    assert states(table) == {"a": "Served", "b": "Served", "c": "Cold", "d": "Cold"}
    assert table.loader.ready()
    folders = [path.name for path in Path(table.spec.adapters_dir).iterdir() if not path.name.startswith(".")]
    assert len(folders) == 2, "no weights were brought of what is cold"
    told = table.told("d")
    assert (told.manifest_sha256, told.rank, told.reason) == (wanted[3].manifest_sha256, 4, None)
    assert told.size_bytes == sum(map(len, adapter_files(4).values()))
    name = f"d@{str(wanted[3].manifest_sha256)[:12]}"
    assert await asked(table, "d") == name
    assert await asked(table, name) == name
    assert states(table) == {"a": "Cold", "b": "Served", "c": "Cold", "d": "Served"}
    assert table.engine.highest == 2
    assert table.loader.ready()


async def test_the_least_recently_asked_leaves_but_none_that_is_being_asked_or_is_kept(table: Table) -> None:
    table.want(*items(table, a=True))
    await table.go()
    hold = asyncio.Event()
    running = asyncio.create_task(ask(table, "b", hold))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(ask(table, "c"))
    await asyncio.sleep(0.05)
    assert states(table)["b"] == "Served"
    assert not waiting.done(), "a is kept, b is being asked"
    hold.set()
    assert (await running).startswith("b@")
    assert (await waiting).startswith("c@")
    await table.loader.settle()
    assert states(table) == {"a": "Served", "b": "Cold", "c": "Served", "d": "Cold"}
    assert table.engine.highest == 2


async def test_all_who_wait_are_answered_by_one_load(table: Table) -> None:
    table.want(*items(table))
    await table.go()
    loads = len(table.engine.did("load"))
    table.engine.gate = asyncio.Event()
    waiting = [asyncio.create_task(ask(table, "d")) for _ in range(50)]
    await asyncio.sleep(0.05)
    for task in waiting[:10]:
        task.cancel()  # their clients have gone
    table.engine.gate.set()
    answers = await asyncio.gather(*waiting[10:])
    assert len(set(answers)) == 1
    assert len(table.engine.did("load")) == loads + 1
    await table.loader.settle()


async def test_who_finds_no_place_in_time_is_told_so(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "HOLD_SECONDS", 0.5)
    table.want(*items(table))
    await table.go()
    hold = asyncio.Event()
    running = [asyncio.create_task(ask(table, name, hold)) for name in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(NotServed, match="all 2 places in the engine") as caught:
        await table.routes.find("c")
    assert (caught.value.reason, caught.value.retry_after) == ("NoRoom", 5)
    hold.set()
    await asyncio.gather(*running)
    assert states(table)["c"] == "Cold", "nobody waits for it any more"
    assert (await asked(table, "c")).startswith("c@")


async def test_a_cold_load_that_fails_tells_its_reason_and_is_not_tried_for_every_request(table: Table) -> None:
    table.engine.refuse = lambda name: "no room on the device" if name.startswith("c") else None
    table.want(*items(table))
    await table.go()
    assert states(table)["c"] == "Cold"
    assert await asked(table, "c") == "EngineRefused"
    loads = len(table.engine.did("load"))
    for _ in range(20):
        assert await asked(table, "c") == "EngineRefused"
    assert len(table.engine.did("load")) == loads
    assert (table.told("c").state, table.told("c").reason) == ("Failed", "EngineRefused")
    assert (await asked(table, "d")).startswith("d@"), "its place is free again"
    table.clock.now += 300
    table.engine.refuse = lambda name: None
    await table.go()
    for name in "abd":
        assert (await asked(table, name)).startswith(f"{name}@")
    assert (await asked(table, "c")).startswith("c@")
    await table.go()
    assert table.told("c").reason is None


async def test_weights_that_only_the_load_finds_damaged_are_told_then(table: Table) -> None:
    wanted = items(table)
    weights = table.place("d") / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    table.want(*wanted)
    await table.go()
    assert states(table)["d"] == "Cold"
    assert await asked(table, "d") == "AdapterCorrupt"
    assert table.told("d").state == "Failed"
    assert "does not match the digest" in str(table.told("d").message)


@pytest.mark.parametrize(
    ("harm", "reason", "words"),
    [
        (lambda table: table.publish("d", adapter_files(use_dora=True)), "AdapterUnsupported", "DoRA"),
        (lambda table: table.publish("d", adapter_files(rank=128)), "RankTooHigh", "its rank is 128"),
        (
            lambda table: table.publish("d", {**adapter_files(), WEIGHTS: safetensors(lora_shapes(width=16))}),
            "BaseMismatch",
            "down_proj gives 16 outputs",
        ),
        (lambda table: (table.place("d") / WEIGHTS).unlink(), "AdapterCorrupt", "is missing, but its manifest"),
        (lambda table: (table.place("d") / WEIGHTS).write_bytes(b"x"), "AdapterCorrupt", "has 1 bytes"),
        (
            lambda table: (table.place("d") / "adapter_config.json").write_bytes(
                adapter_files(4)["adapter_config.json"].replace(b"q_proj", b"v_proj")
            ),
            "AdapterCorrupt",
            "does not match the digest",
        ),
        (
            lambda table: (table.place("d") / "adapter_config.json").write_bytes(b"{}"),
            "AdapterCorrupt",
            "adapter_config.json has 2 bytes, its manifest says",
        ),
        (lambda table: shutil.rmtree(table.place("d")), "AdapterMissing", "has no manifest.json"),
    ],
)
async def test_what_config_and_header_tell_is_known_before_anybody_asks(
    table: Table, harm: Callable[[Table], str | None], reason: str, words: str
) -> None:
    wanted = items(table)
    sha = harm(table)
    if isinstance(sha, str):
        wanted[3] = table.item("d", sha)
    table.want(*wanted)
    await table.go()
    told = table.told("d")
    assert (told.state, told.reason, told.manifest_sha256) == ("Failed", reason, None)
    assert words in str(told.message)
    assert await asked(table, "d") == reason
    assert table.loader.ready()
    assert not any(name.startswith("d@") for name in table.engine.did("load"))


async def test_a_cold_adapter_is_updated_to_what_was_verified_and_its_old_content_is_not_asked_for(
    table: Table,
) -> None:
    wanted = items(table)
    table.want(*wanted)
    await table.go()
    sha = table.publish("d", adapter_files(9))
    table.want(*wanted[:3], table.item("d", sha))
    await table.go()
    assert (table.told("d").state, table.told("d").manifest_sha256) == ("Cold", sha)
    assert await asked(table, "d") == f"d@{sha[:12]}"
    bad = table.publish("d", adapter_files(use_dora=True))
    table.want(*wanted[:3], table.item("d", bad))
    await table.go()
    for name in "bc":
        await asked(table, name)
    told = table.told("d")
    assert (told.state, told.manifest_sha256, told.wanted_sha256) == ("Cold", sha, bad)
    assert str(told.message).endswith(f"; still serving {sha[:12]}")
    assert await asked(table, "d") == f"d@{sha[:12]}", "its folder is here"


async def test_a_cold_adapter_without_a_pin_follows_what_is_published(table: Table) -> None:
    table.want(*items(table)[:3], table.item("d"))
    await table.go()
    assert table.told("d").state == "Cold"
    sha = table.publish("d", adapter_files(9))
    table.clock.now += 300
    await table.go()
    assert (table.told("d").state, table.told("d").manifest_sha256) == ("Cold", sha)
    assert await asked(table, "d") == f"d@{sha[:12]}"


async def test_too_many_are_only_those_that_are_kept_loaded(table: Table) -> None:
    table.want(*items(table, a=True, b=True, c=True))
    await table.go()
    assert states(table) == {"a": "Served", "b": "Served", "c": "Failed", "d": "Failed"}
    assert table.told("c").reason == table.told("d").reason == "TooManyAdapters"
    assert table.told("c").message == (
        "3 adapters have keepLoaded, engine.maxLoadedAdapters is 2, and this is number 3 of them"
    )
    assert str(table.told("d").message).endswith("none is left for the others")
    assert await asked(table, "d") == "TooManyAdapters"
    assert table.loader.ready()
    table.want(*items(table, a=True))
    await table.go()
    assert states(table) == {"a": "Served", "b": "Served", "c": "Cold", "d": "Cold"}


async def test_who_is_to_be_kept_from_now_on_takes_the_place_of_another(table: Table) -> None:
    table.want(*items(table))
    await table.go()
    table.want(*items(table, d=True))
    await table.go()
    assert states(table)["d"] == "Served"
    for name in "abc":
        assert (await asked(table, name)).startswith(f"{name}@")
    assert states(table)["d"] == "Served"


async def test_a_place_that_becomes_free_is_used(table: Table) -> None:
    wanted = items(table)
    table.want(*wanted)
    await table.go()
    table.want(*wanted[1:])
    await table.go()
    assert states(table) == {"b": "Served", "c": "Served", "d": "Cold"}


async def test_another_process_of_the_gateway_first_loads_what_was_loaded_and_asked_for_last(table: Table) -> None:
    table.want(*items(table))
    await table.go()
    for name in "dc":
        await asked(table, name)
    table.clock.now += 60
    await table.go(steps=1)
    table.engine.start(2)
    table.new_gateway()
    await table.go()
    assert states(table) == {"a": "Cold", "b": "Cold", "c": "Served", "d": "Served"}
    assert table.told("c").last_used is not None
    assert table.told("a").last_used is None


async def test_last_use_is_told_to_ten_minutes(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr("tunery_server.routes.time.time", lambda: now)
    table.want(*items(table))
    await table.go()
    await asked(table, "a")
    before = table.loader.state()
    for _ in range(9):
        now += 60
        await asked(table, "a")
        assert table.loader.state() == before
    now += 60
    await asked(table, "a")
    told = table.told("a").last_used
    assert told is not None
    assert now - 600 < told <= now


async def test_while_the_engine_is_away_nobody_waits_for_it(table: Table) -> None:
    table.want(*items(table))
    await table.go()
    table.engine.gate = asyncio.Event()
    waiting = asyncio.create_task(ask(table, "d"))
    await asyncio.sleep(0.05)
    table.engine.die()
    await table.loader.step()
    assert await waiting == "EngineFailed"
    assert await ask(table, "c") == "EngineFailed"
    table.engine.gate.set()
    table.engine.gate = None
    table.engine.start(2)
    await table.go()
    assert (await asked(table, "d")).startswith("d@")
    assert len(table.engine.held) == 2


async def test_the_disk_keeps_what_was_asked_for_last(tmp_path: Path) -> None:
    model = sum(path.stat().st_size for path in Table(tmp_path / "x").root.joinpath("model").iterdir())
    size = sum(map(len, adapter_files().values()))
    disk = DiskLimit(bytes=model + int(4.5 * size), field="spec.resources.ephemeralStorage")
    table = Table(tmp_path, limit=2, disk=disk)
    table.want(*items(table, "abcdefgh"))
    await table.go()
    for name in "abcdefghdcba":
        assert (await asked(table, name)).startswith(f"{name}@")
        folders = [path.name for path in Path(table.spec.adapters_dir).iterdir() if not path.name.startswith(".")]
        assert len(folders) <= 4
    assert table.engine.highest == 2


async def test_a_name_that_waits_or_is_refused_is_told_why_until_it_is_served_or_given_up(table: Table) -> None:
    table.want(held=[HeldAdapter(name="a", reason="AdapterWaiting", message="LoRAJob/a has not succeeded yet")])
    await table.go()
    with pytest.raises(NotServed, match="has not succeeded yet") as caught:
        table.routes.resolve("a")
    assert caught.value.reason == "AdapterWaiting"
    assert table.routes.names() == ["org/base"]
    table.want(*items(table, "a"), held=[HeldAdapter(name="b", reason="RankTooHigh", message="its rank is 128")])
    await table.go()
    assert table.answers("a").startswith("a@")
    assert table.answers("b") == "RankTooHigh"
    table.want()
    await table.go()
    assert table.answers("a") == table.answers("b") == "404"
