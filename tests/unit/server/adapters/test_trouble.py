"""The loader and an engine that is up and not well: slow, refusing what it should not, or making no sense."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tunery_server.engine import Engine, EngineGone, EngineRefusal

from kit.server.loader import BASE, Table, adapter_files, open_file

NUMBERS = [-1.0, -2.0]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def answers(table: Table, names: str, error: Exception) -> None:
    """Have the engine raise where one whose name begins so is asked for text."""

    def answer(name: str) -> list[float | None]:
        if name.startswith(names):
            raise error
        return [*NUMBERS, float(len(name))]

    table.engine.answer = answer


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (EngineGone("the engine did not answer", hangs=True), "it did not answer within 30 s"),
        (EngineRefusal(500, "too busy"), "the engine could not answer with it: too busy"),
    ],
)
async def test_a_version_that_a_busy_engine_does_not_answer_with_is_asked_again(
    table: Table, error: Exception, text: str
) -> None:
    answers(table, "bot", error)
    table.want(table.item("bot", table.publish("bot")), table.item("tone", table.publish("tone", adapter_files(2))))
    await table.go()
    told = table.told("bot")
    assert told.reason == "ProbeFailed"
    assert text in str(told.message)
    assert table.told("tone").state == "Served"
    table.engine.answer = lambda name: [*NUMBERS, float(len(name))]
    await table.go(steps=3, seconds=300)
    assert table.told("bot").state == "Served"


async def test_a_version_whose_request_alone_is_refused_answers_no_numbers(table: Table) -> None:
    answers(table, "bot", EngineRefusal(400, "Out of range float values"))
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert "refuses it with this adapter" in str(table.told("bot").message)
    assert table.told("bot").reason == "ProbeFailed"
    assert table.engine.held == {}
    assert table.loader.ready(), "the base answers"


async def test_an_engine_that_refuses_even_its_base_is_not_ready_and_says_so(table: Table) -> None:
    answers(table, "", EngineRefusal(400, "no tokenizer"))
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert not table.loader.ready()
    assert "the engine refuses a request for the base model: no tokenizer" in str(table.loader.state().message)
    assert "refuses the request that versions are probed with" in str(table.told("bot").message)


async def test_an_engine_without_log_probabilities_serves_its_base_alone(table: Table) -> None:
    answers(table, "", EngineRefusal(200, "it answered without the log-probabilities of its tokens"))
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert table.loader.ready()
    assert table.told("bot").reason == "EngineRefused"


async def test_a_base_that_does_not_answer_in_time_is_asked_again(table: Table) -> None:
    answers(table, "", EngineGone("the engine did not answer", hangs=True))
    table.want()
    await table.go()
    assert not table.loader.ready()
    assert "did not answer a request for the base model" in str(table.loader.state().message)
    table.engine.answer = lambda name: [*NUMBERS, float(len(name))]
    await table.go()
    assert table.loader.ready()


async def test_a_base_that_is_refused_after_an_answer_of_nan_must_start_anew(table: Table) -> None:
    spoilt: list[str] = []

    def answer(name: str) -> list[float | None]:
        if name.startswith("bot"):
            spoilt.append(name)
            return [None]
        if spoilt:
            raise EngineRefusal(400, "Out of range float values")
        return [*NUMBERS]

    table.engine.answer = answer
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert table.engine.spoiled
    assert "must start anew" in str(table.loader.state().message)


@pytest.mark.parametrize("error", [EngineRefusal(500, "no list"), EngineGone("the connection was closed")])
async def test_an_engine_that_does_not_say_what_it_holds_is_not_used_until_it_does(
    table: Table, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fails = table.engine.models, True

    async def models() -> set[str]:
        if fails:
            raise error
        return await plain()

    monkeypatch.setattr(table.engine, "models", models)
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    assert not table.loader.state().engine_ready
    assert table.loader.state().engine_version is None
    fails = False
    await table.go()
    assert table.told("bot").state == "Served"
    assert table.loader.state().engine_version == await table.engine.version()
    fails = True
    await table.go(seconds=10)
    assert table.answers("bot") == ("EngineFailed" if isinstance(error, EngineGone) else table.engine.held.popitem()[0])


async def test_what_the_engine_does_not_unload_is_tried_again_later(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, words = table.engine.unload, [EngineRefusal(500, "busy"), EngineGone("no answer", hangs=True)]

    async def unload(engine_name: str) -> None:
        if words:
            raise words.pop()
        await plain(engine_name)

    monkeypatch.setattr(table.engine, "unload", unload)
    table.want(table.item("bot", table.publish("bot")))
    await table.go()
    table.want()
    await table.go()
    assert table.answers("bot") == "404"
    assert len(table.engine.held) == 1
    await table.go(steps=4, seconds=300)
    assert table.engine.held == {}


async def test_a_defect_at_one_adapter_is_told_and_the_others_are_served(table: Table) -> None:
    def opened(item: Any) -> Any:
        if item.name == "bot":
            raise KeyError("a defect")
        return open_file(item)

    table.opened = opened
    table.new_gateway()
    table.want(table.item("bot", table.publish("bot")), table.item("tone", table.publish("tone", adapter_files(2))))
    await table.go()
    assert (table.told("bot").reason, table.told("tone").state) == ("InternalError", "Served")
    assert "KeyError" in str(table.told("bot").message)


async def test_a_pass_that_fails_is_followed_by_the_next(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery_server.adapters.loop.TICK_SECONDS", 0.02)
    failures, plain = [RuntimeError("a defect"), OSError("another")], table.engine.asked_for_health

    async def health() -> bool:
        if failures:
            raise failures.pop()
        return await plain()

    monkeypatch.setattr(table.engine, "asked_for_health", health)
    table.want()
    running = asyncio.create_task(table.loader.run())
    async with asyncio.timeout(10):
        while not table.loader.ready():
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert not failures


async def test_a_store_that_does_not_answer_is_given_up_after_a_while(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_server.adapters.turns.SILENT_SECONDS", 0.05)

    def opened(item: Any) -> Any:
        time.sleep(0.2)
        return open_file(item)

    table.opened = opened
    table.new_gateway()
    table.want(table.item("bot"))
    table.publish("bot")
    await table.go(steps=1)
    assert table.told("bot").reason == "StorageUnavailable"


@pytest.fixture
async def odd(tmp_path: Path) -> AsyncIterator[tuple[Engine, dict[str, Any]]]:
    """Yields the client of an engine that gives one answer to everything: status and text."""
    says: dict[str, Any] = {"status": 200, "text": "{}"}

    async def answer(_: web.Request) -> web.Response:
        return web.Response(**says)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "engine.sock")).start()
    client = Engine(str(tmp_path / "engine.sock"))
    yield client, says
    await client.close()
    await runner.cleanup()


async def test_answers_of_an_engine_that_make_no_sense_are_refusals(odd: tuple[Engine, dict[str, Any]]) -> None:
    client, says = odd
    assert await client.version() == ""
    for text in ("{}", "[]", "<html>", '{"data": 7}', '{"choices": [7]}', '{"choices": [{"logprobs": {}}]}'):
        says["text"] = text
        for question in (client.models(), client.logprobs(BASE, "x", 1)):
            with pytest.raises(EngineRefusal):
                await question
    says |= {"status": 404, "text": '{"error": "no such thing"}'}
    assert await client.version() == ""
    with pytest.raises(EngineRefusal, match="no such thing"):
        await client.models()
    says["text"] = ""
    with pytest.raises(EngineRefusal, match="the status 404"):
        await client.models()
    assert not await client.health()
