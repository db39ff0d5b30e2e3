"""One version under several names: it is brought once, and takes the room of one, however they are asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tunery_api.runspec import DiskLimit
from tunery_api.serving import DesiredAdapter
from tunery_common.storage import OnBytes, Store, StorePath
from tunery_server.adapters import disk_room, turns

from kit.server.loader import Table, adapter_files, ask, open_file, write_base

SIZE = sum(map(len, adapter_files().values()))
WEIGHTS = "adapter_model.safetensors"
TWINS = ("one", "two")


class Gate:
    """Opens folders whose weights come once it is told so, a byte at a time until then where they are not `silent`."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.silent = False
        self.damaged = False
        self.downloads = 0
        """Of weights."""

    def __call__(self, item: DesiredAdapter) -> StorePath:
        place = open_file(item)
        return StorePath(Gated(place.store, self), place.prefix) if item.name in TWINS else place  # type: ignore[arg-type]


class Gated:
    """A store behind a gate."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store, self._gate = store, gate

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def download(self, key: str, path: Path, progress: OnBytes | None = None) -> str:
        if not key.endswith(WEIGHTS):
            return self._store.download(key, path, progress)
        self._gate.downloads += 1
        while not self._gate.open.wait(0.02):
            if progress is not None and not self._gate.silent:
                progress(1)
        digest = self._store.download(key, path, progress)
        return "0" * 64 if self._gate.damaged else digest


def small(tmp_path: Path, holds: float, opened: Callable[[DesiredAdapter], StorePath] = open_file) -> Table:
    """Return a table whose disk holds so many adapters beside the model."""
    model = sum(path.stat().st_size for path in write_base(tmp_path / "model").iterdir())
    disk = DiskLimit(bytes=model + int(holds * SIZE), field="spec.resources.ephemeralStorage")
    return Table(tmp_path, limit=8, disk=disk, opened=opened)


async def with_cold_twins(table: Table, others: int) -> None:
    """Have so many others loaded, which fill the disk, and one version wanted under two names."""
    first = [table.item(name, table.publish(name, adapter_files(at))) for at, name in enumerate("abc"[:others], 7)]
    table.want(*first)
    await table.go(steps=4)
    sha = table.publish("bot", adapter_files(1))
    table.want(*first, *(table.item(name, sha, "bot") for name in TWINS))
    await table.go(steps=4)
    assert len(table.engine.held) == others
    assert [table.told(name).state.value for name in TWINS] == ["Cold", "Cold"]


def names(answers: list[str]) -> list[str]:
    return [name.partition("@")[0] for name in answers]


@pytest.mark.parametrize("together", [False, True], ids=["one after the other", "together"])
async def test_only_one_other_leaves_for_both_names(together: bool, tmp_path: Path) -> None:
    table = small(tmp_path, 2.5)
    await with_cold_twins(table, 2)
    if together:
        answers = await asyncio.gather(*(ask(table, name) for name in TWINS))
    else:
        answers = [await ask(table, name) for name in TWINS]
    assert names(answers) == [*TWINS]
    await table.go(steps=2)
    assert len({"a", "b"} & set(names([*table.engine.held]))) == 1


async def test_at_the_start_nothing_waits_for_room_that_only_a_second_copy_would_take(tmp_path: Path) -> None:
    table = small(tmp_path, 2.5)
    sha = table.publish("bot", adapter_files(1))
    wanted = [table.item(name, sha, "bot") for name in ("one", "two", "three")]
    table.want(*wanted, table.item("other", table.publish("other", adapter_files(9))))
    await table.go(steps=4)
    assert [each.state.value for each in table.loader.state().adapters] == ["Served"] * 4


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def asked_meanwhile(table: Table, gate: Gate, seconds: float) -> list[str]:
    """Ask for both names, open the gate so much later, and make passes until both are answered."""
    waiting = [asyncio.create_task(ask(table, name)) for name in TWINS]

    async def passes() -> None:
        while True:
            await table.loader.step()
            table.clock.now += 0.1
            await asyncio.sleep(0.05)

    running = asyncio.create_task(passes())
    try:
        await asyncio.wait(waiting, timeout=seconds)
        gate.open.set()
        return list(await asyncio.gather(*waiting))
    finally:
        running.cancel()
        gate.open.set()
        await table.loader.settle()


@pytest.mark.slow
async def test_both_names_wait_for_one_download_however_long_it_takes(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "WORTH_BYTES", 1)
    monkeypatch.setattr(turns, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(disk_room, "WAIT_SECONDS", 0.5)
    table = small(tmp_path, 1.5, gate)
    await with_cold_twins(table, 1)
    assert names(await asked_meanwhile(table, gate, 3.0)) == [*TWINS]
    assert gate.downloads == 1


async def test_what_one_download_fails_with_is_told_to_both_names(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(turns, "SILENT_SECONDS", 1.0)
    table = small(tmp_path, 3.5, gate)
    await with_cold_twins(table, 3)
    gate.silent = True
    assert await asked_meanwhile(table, gate, 10.0) == ["StorageUnavailable"] * 2
    assert gate.downloads == 1


async def test_damaged_weights_are_not_read_once_more_for_each_name(gate: Gate, tmp_path: Path) -> None:
    gate.damaged = True
    gate.open.set()
    table = small(tmp_path, 3.5, gate)
    await with_cold_twins(table, 3)
    assert await asyncio.gather(*(ask(table, name) for name in TWINS)) == ["AdapterCorrupt"] * 2
    assert gate.downloads == 2, "once, and once more"


async def test_a_name_that_is_not_wanted_any_more_leaves_the_download_to_the_other(gate: Gate, tmp_path: Path) -> None:
    table = small(tmp_path, 3.5, gate)
    sha = table.publish("bot", adapter_files(1))
    table.want(*(table.item(name, sha, "bot") for name in TWINS))
    await table.loader.start()
    table.started = True
    await table.loader.step()
    async with asyncio.timeout(20):
        while not gate.downloads:
            await asyncio.sleep(0.01)
    table.want(table.item("two", sha, "bot"))
    await table.loader.step()
    gate.open.set()
    await table.loader.settle()
    await table.go()
    assert table.told("two").state == "Served"
