"""Two thousand adapters and room for eight: what a start costs, and a thousand requests over two hundred of them."""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tunery_api.runspec import DiskLimit
from tunery_api.serving import DesiredAdapter
from tunery_common.storage import StorePath
from tunery_server.adapters.loop import Loader, Ways
from tunery_server.engine import Engine
from tunery_server.report import MAX_REPORT, body_of
from tunery_server.routes import Routes

from kit.engine_process import EngineProcess, Kind
from kit.server.loader import BASE, Table, adapter_files, behind_a_gateway, open_file

COUNT, ASKED, ROOM, REQUESTS, AT_ONCE = 2_000, 200, 8, 1_000, 6
SIZE = sum(map(len, adapter_files(lora_alpha=1000).values()))
FOLDERS = 60


class Counted:
    """A store whose requests are counted, those under way too."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.under_way = self.most = 0
        self._lock = threading.Lock()

    def open(self, item: DesiredAdapter) -> StorePath:
        place = open_file(item)
        return StorePath(_Store(place.store, self), place.prefix)  # type: ignore[arg-type]

    def ask(self, store: object, name: str, *values: object, **more: object) -> object:
        with self._lock:
            self.count[name] += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            return getattr(store, name)(*values, **more)
        finally:
            with self._lock:
                self.under_way -= 1


class _Store:
    def __init__(self, store: object, counted: Counted) -> None:
        self._store, self._counted = store, counted

    def __getattr__(self, name: str) -> object:
        if name not in ("head", "read_bytes", "read_range", "download"):
            return getattr(self._store, name)
        return lambda *values, **more: self._counted.ask(self._store, name, *values, **more)


class Watched(Engine):
    """The engine's client, which notes what is held after each word of it."""

    highest = 0

    async def models(self) -> set[str]:
        found = await super().models()
        self.highest = max(self.highest, len(found) - 1)
        return found


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[EngineProcess]:
    engine = EngineProcess(Kind.FAULTY, tmp_path, ["--served-model-name", BASE]).start()
    yield engine
    engine.kill()


def published(table: Table) -> list[DesiredAdapter]:
    names = [f"a{number}" for number in range(COUNT)]
    return [table.item(name, table.publish(name, adapter_files(lora_alpha=1000 + at))) for at, name in enumerate(names)]


async def until_ready(loader: Loader) -> float:
    begun = time.monotonic()
    async with asyncio.timeout(60):
        while not loader.ready():
            await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def ask(client: aiohttp.ClientSession, url: str, model: str) -> tuple[int, str, float]:
    begun = time.monotonic()
    async with client.post(url, json={"model": model, "prompt": "x", "max_tokens": 1}) as answer:
        body = await answer.json()
    if answer.status == 200:
        assert body["model"] == answer.headers["X-Tunery-Adapter"]
        assert body["model"].partition("@")[0] == model
    return answer.status, body["error"]["code"] if "error" in body else "", time.monotonic() - begun


def zipf(requests: int) -> list[str]:
    numbers = random.Random(11)
    weights = [1 / place for place in range(1, ASKED + 1)]
    return [f"a{at}" for at in numbers.choices(range(ROOM, ROOM + ASKED), weights, k=requests)]


async def all_asked(url: str, models: list[str]) -> list[tuple[int, str, float]]:
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(client: aiohttp.ClientSession, model: str) -> tuple[int, str, float]:
        async with turns:
            return await ask(client, url, model)

    async with aiohttp.ClientSession() as client:
        return await asyncio.gather(*(one(client, model) for model in models))


@pytest.mark.slow
async def test_two_thousand_adapters_with_room_for_eight(faulty: EngineProcess, tmp_path: Path) -> None:
    model = sum(path.stat().st_size for path in Table(tmp_path / "x").root.joinpath("model").iterdir())
    disk = DiskLimit(bytes=model + FOLDERS * SIZE, field="spec.resources.ephemeralStorage")
    table = Table(tmp_path, limit=ROOM, disk=disk)
    table.want(*published(table))
    counted = Counted()
    routes, engine = Routes(BASE), Watched(str(faulty.socket))
    loader = Loader(table.spec, routes, engine, Ways(counted.open))
    async with behind_a_gateway(loader, routes, engine) as gateway:
        assert await until_ready(loader) < 30
        states = Counter(each.state.value for each in loader.state().adapters)
        assert states == {"Served": ROOM, "Cold": COUNT - ROOM}
        assert counted.most <= 8 + 4, "eight questions and four downloads"
        assert counted.count.total() <= 4 * COUNT + 16 * ROOM
        assert counted.count["download"] == 2 * ROOM
        assert len(body_of(loader.state())) < MAX_REPORT / 3

        url = f"{gateway}/v1/completions"
        warm = [seconds for _, _, seconds in await all_asked(url, [f"a{at % ROOM}" for at in range(200)])]
        answers = await all_asked(url, zipf(REQUESTS))
        codes = Counter(status for status, _, _ in answers)
        assert set(codes) <= {200, 503}
        assert codes[503] < REQUESTS / 100, Counter(code for _, code, _ in answers)
        assert {code for _, code, _ in answers} <= {"", "NoRoom", "AdapterLoading"}
        assert engine.highest <= ROOM
        folders = [path for path in Path(table.spec.adapters_dir).iterdir() if not path.name.startswith(".")]
        assert len(folders) <= FOLDERS
        assert counted.count["download"] < 2 * (ROOM + REQUESTS), "some were here still"
        again = [seconds for _, _, seconds in await all_asked(url, ["a8"] * 200)]
        assert statistics.median(again) < 3 * statistics.median(warm) + 0.01
        assert max(await passes(loader)) < 0.05


async def passes(loader: Loader) -> list[float]:
    """Return how long passes over all that is at rest take, and the report of it."""
    found = []
    for _ in range(5):
        begun = time.process_time()
        await loader.step()
        loader.state()
        found.append(time.process_time() - begun)
    return found
