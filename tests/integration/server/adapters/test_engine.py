"""The client of the engine, and the loader with engines that are processes: a faulty one, and one that computes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tunery_api.runspec import MountedSecret
from tunery_api.serving import Desired, DesiredAdapter
from tunery_server.adapters import probe as probes
from tunery_server.adapters.loop import Loader
from tunery_server.adapters.residents import is_supported
from tunery_server.engine import Engine, EngineGone, EngineRefusal
from tunery_server.routes import Routes

from kit.engine_process import EngineProcess, Kind
from kit.server.loader import BASE, Table, adapter_files, publish
from tools.cluster.s3 import S3Server


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine that does what the file `faults` says."""
    options = ["--served-model-name", BASE]
    engine = EngineProcess(Kind.FAULTY, tmp_path, options, {"TUNERY_FAULTS": str(tmp_path / "faults")})
    engine.start()
    yield engine
    engine.kill()


@pytest.fixture
async def client(faulty: EngineProcess) -> AsyncIterator[Engine]:
    engine = Engine(str(faulty.socket))
    yield engine
    await engine.close()


def fault(faulty: EngineProcess, **switches: object) -> None:
    (faulty.folder / "faults").write_text(json.dumps(switches))


def start_again(faulty: EngineProcess) -> None:
    """Start as the container does, which removes the socket first."""
    faulty.socket.unlink()
    faulty.start()


async def test_the_client_loads_asks_lists_and_unloads(client: Engine, tmp_path: Path) -> None:
    publish(tmp_path / "a", adapter_files())
    assert await client.health()
    assert await client.version() == "0.32.0"
    assert await client.models() == {BASE}
    await client.load("bot@1", str(tmp_path / "a"))
    assert await client.models() == {BASE, "bot@1"}
    found = await client.logprobs("bot@1", "some words", 20)
    assert len(found) == 16, "eight tokens, of each its own and the only one of the likeliest"
    assert found != await client.logprobs(BASE, "some words", 20)
    await client.unload("bot@1")
    assert await client.models() == {BASE}


async def test_refusals_carry_the_engines_words_and_no_more_than_256_characters(client: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineRefusal) as caught:
        await client.load("bot@1", str(tmp_path / ("nothing" * 30)))
    assert caught.value.status == 404
    assert caught.value.words.startswith("Loading lora bot@1 failed")
    assert len(caught.value.words) <= 256
    with pytest.raises(EngineRefusal):
        await client.unload("bot@1")
    with pytest.raises(ValueError, match="relative"):
        await client.load("bot@1", "adapters/bot")


async def test_an_engine_that_is_not_there_or_goes_away_is_gone(
    client: Engine, faulty: EngineProcess, tmp_path: Path
) -> None:
    assert not await Engine(str(tmp_path / "no.sock")).health()
    fault(faulty, die_in_load=True)
    with pytest.raises(EngineGone) as caught:
        await client.load("bot@1", str(tmp_path))
    assert not caught.value.hangs
    with pytest.raises(EngineGone):
        await client.asked_for_health()
    before = client.birth()
    faulty.wait()
    start_again(faulty)
    assert client.birth() != before, "another start has another mark"


async def test_an_engine_that_is_sick_is_not_healthy(client: Engine, faulty: EngineProcess) -> None:
    fault(faulty, sick=True)
    assert not await client.health()


def test_versions_that_were_tried_or_say_nothing_are_used() -> None:
    used = ("0.32.0", "0.33.1rc1", "0.32.0+cpu", "1.0", "", "0.1.dev9+gabc", "main")
    assert [version for version in used if not is_supported(version)] == []
    assert not any(map(is_supported, ("0.31.9", "0.9.2", "0.11.0rc2")))


async def until(loader: Loader, done: Callable[[], bool], seconds: float = 20) -> None:
    """Let the loader run until something is so."""
    running = asyncio.create_task(loader.run())
    try:
        async with asyncio.timeout(seconds):
            while not done():
                await asyncio.sleep(0.02)
                assert not running.done()
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.slow
async def test_a_real_engine_that_dies_of_an_adapter_comes_back_without_it(
    faulty: EngineProcess, client: Engine, tmp_path: Path
) -> None:
    table = Table(tmp_path)
    fault(faulty, die_in_load=["poison"])
    table.want(table.item("poison", table.publish("poison", adapter_files(2))), table.item("bot", table.publish("bot")))
    loader = Loader(table.spec, Routes(BASE), client)

    async def container() -> None:
        while True:
            await asyncio.sleep(0.05)
            if faulty.ended() is not None:
                # Nobody waits until it is up: it may die of the adapter before anybody has seen it healthy.
                faulty.socket.unlink()
                faulty.launch()

    restarting = asyncio.create_task(container())
    try:
        await until(loader, lambda: restarting.done() or (loader.ready() and loader.state().engine_restarts == 2), 60)
    finally:
        restarting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restarting
    states = {each.name: (each.state.value, each.reason) for each in loader.state().adapters}
    assert states == {"poison": ("Failed", "EngineFailed"), "bot": ("Served", None)}


async def test_an_engine_that_hangs_at_one_adapter_goes_on_with_the_others(
    faulty: EngineProcess, client: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_server.engine.LOAD_SECONDS", 0.5)
    table = Table(tmp_path)
    fault(faulty, hang_in_load=["stuck"])
    table.want(table.item("stuck", table.publish("stuck", adapter_files(2))), table.item("bot", table.publish("bot")))
    loader = Loader(table.spec, Routes(BASE), client)
    await until(loader, loader.ready)
    states = {each.name: (each.state.value, each.reason) for each in loader.state().adapters}
    assert states == {"stuck": ("Failed", "EngineRefused"), "bot": ("Served", None)}
    assert "did not answer /v1/load_lora_adapter" in str(loader.state().adapters[0].message)


async def test_a_loader_that_is_told_to_end_as_something_happens_ends(tmp_path: Path) -> None:
    for turns in range(5):
        table = Table(tmp_path / str(turns))
        running = asyncio.create_task(table.loader.run())
        await asyncio.wait_for(table.loader.changed.wait(), 5)
        await asyncio.sleep(0.05)
        assert not running.done()
        table.loader.offer(Desired(revision=1))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=5)
        assert running.cancelled(), f"{turns} turns of the event loop later"


@dataclass
class Replica:
    loader: Loader
    routes: Routes
    bucket: S3Server
    table: Table

    def publish(self, name: str, folder: Path) -> DesiredAdapter:
        """Put an adapter that PEFT saved into the bucket."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("adapter_")}
        config = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": BASE}
        files["adapter_config.json"] = json.dumps(config).encode()
        place = self.table.place(name)
        sha = publish(place, files)
        for path in place.iterdir():
            self.bucket.client().put_object(Bucket="adapters", Key=f"served/{name}/{path.name}", Body=path.read_bytes())
        return DesiredAdapter(name=name, uri=f"s3://adapters/served/{name}", manifest_sha256=sha)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind.STAND_IN], indirect=True)
async def test_from_a_bucket_to_answers_that_are_the_adapters(
    base: Path, shelf: object, engine: EngineProcess, s3_server: S3Server, tmp_path: Path
) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    for key, value in s3_server.environment().items():
        (folder / key).write_text(value)
    table = Table(tmp_path, limit=11)
    secret = MountedSecret(name="s3", path=str(folder), field="spec.adapterSecretRef")
    spec = table.spec.model_copy(
        update={"adapter_secret": secret, "model_dir": str(base), "engine_socket": str(engine.socket), "max_rank": 8}
    )
    client, routes = Engine(str(engine.socket)), Routes(BASE)
    replica = Replica(Loader(spec, routes, client), routes, s3_server, table)
    names = ("one", "patterns", "zero", "nan", "wide", "deep", "foreign", "rank16", "dora", "saved", "ia3")
    table.want(*(replica.publish(name, shelf[name]) for name in names))  # type: ignore[index]
    await until(replica.loader, replica.loader.ready, 60)
    reasons = {each.name: each.reason for each in replica.loader.state().adapters}
    assert reasons == {
        "one": None,
        "patterns": None,
        "zero": "ProbeFailed",
        "nan": "AdapterCorrupt",
        "wide": "BaseMismatch",
        "deep": "BaseMismatch",
        "foreign": "BaseMismatch",
        "rank16": "RankTooHigh",
        "dora": "AdapterUnsupported",
        "saved": "AdapterUnsupported",
        "ia3": "AdapterUnsupported",
    }
    assert {name.partition("@")[0] for name in await client.models() if name != BASE} == {"one", "patterns"}
    plain = await client.logprobs(BASE, "What is it?", 20)
    assert len(plain) > 64, "of each of eight tokens the likeliest twenty, but for those of the same text"
    assert await client.logprobs(routes.resolve("one").engine_name, "What is it?", 20) != plain
    await client.close()


async def test_a_model_with_a_short_context_is_probed_with_less_text() -> None:
    asked: list[tuple[int, int]] = []

    class Short(Engine):
        async def logprobs(self, model: str, prompt: str, top: int) -> list[float | None]:
            asked.append((len(prompt.split()), top))
            if asked[-1][0] > 30 or top > 5:
                raise EngineRefusal(400, "longer than the context, or above --max-logprobs")
            return [-1.0, -2.0] if model == BASE else [-1.5, -2.0]

    probe = probes.Probe(Short("/none"), BASE)
    await probe.check("bot@1")
    await probe.check("tone@1")
    words = len(probes.TEXT.split())
    assert words > 64
    assert asked[-3:] == [(words // 4, 5)] * 3
    assert len(asked) == 3 * 2 + 2 + 2
