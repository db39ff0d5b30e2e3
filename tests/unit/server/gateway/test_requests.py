"""The gateway: what it lets through, what it leaves out, and what it answers itself."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tunery_server.gateway.body import MAX_BODY, MAX_VALUES
from tunery_server.routes import NotServed, Routes, UnknownModel

from kit.server.gateway import BASE, BOT, CHAT, SHA, FakeEngine, open_site

BOMBS = {
    "no JSON": b"{",
    "a list": b"[]",
    "a string": b'"model"',
    "nothing": b"",
    "not UTF-8": b'{"model": "\xff"}',
    "too deep": b'{"model": "support-bot", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of many digits": b'{"model": "support-bot", "x": ' + b"9" * 100_000 + b"}",
    "a number beyond all": b'{"model": "support-bot", "x": 1e999}',
    "no number": b'{"model": "support-bot", "x": NaN}',
    "too many values": b'{"model": "support-bot", "x": [' + b"[]," * MAX_VALUES + b"0]}",
    "no model": b"{}",
    "an empty model": b'{"model": ""}',
    "a model that is a list": b'{"model": ["support-bot"]}',
    "stream that is a word": b'{"model": "support-bot", "stream": "yes"}',
    "options that are a list": b'{"model": "support-bot", "stream": true, "stream_options": [1]}',
}


async def test_the_model_is_the_engines_and_the_answer_says_which_version_answered(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        for model in ("support-bot", BOT):
            answer = await site.ask({"model": model, "messages": [{"role": "user", "content": "é\ud800"}]})
            assert (answer.status, answer.json["model"]) == (200, BOT)
            assert answer.headers["X-Tunery-Adapter"] == BOT
            assert answer.headers["X-Tunery-Manifest-SHA256"] == SHA
            assert site.engine.asked[-1] == {"model": BOT, "messages": [{"role": "user", "content": "é\ud800"}]}
        base = await site.ask({"model": BASE})
        assert base.json["model"] == site.engine.asked[-1]["model"] == BASE
        assert not [name for name in base.headers if name.startswith("X-Tunery-")]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
async def test_each_route_of_clients_leads_to_the_engines_own(tmp_path: Path, path: str) -> None:
    async with open_site(tmp_path) as site:
        assert (await site.ask(path=path + "?x=1")).status == 200
        assert site.engine.paths == [path]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/adapters"),
        ("DELETE", "/adapters/support-bot"),
        ("POST", "/invocations"),
        ("POST", "/pause"),
        ("POST", "/tokenize"),
        ("POST", "/v1/embeddings"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/health"),
        ("GET", "/version"),
        ("GET", "/"),
        ("GET", "/v1/models/"),
        ("POST", "/v1/models"),
        ("GET", CHAT),
        ("HEAD", "/v1/models"),
        ("HEAD", "/livez"),
        ("OPTIONS", CHAT),
        ("PUT", CHAT),
        ("TRACE", CHAT),
        ("POST", CHAT + "/"),
        ("POST", "/v1//chat/completions"),
        ("POST", "/v1/chat/completions/../../../adapters"),
        ("POST", "/v1/chat/completions/%2e%2e/load_lora_adapter"),
    ],
)
async def test_nothing_else_is_there(tmp_path: Path, method: str, path: str) -> None:
    async with open_site(tmp_path) as site:
        answer = await site.get(path, method)
        assert answer.status == 404
        if method != "HEAD":
            assert answer.error["code"] == "not_found"
            assert set(answer.error) == {"message", "type", "param", "code"}
        assert site.engine.paths == []
        assert "Server" not in answer.headers


@pytest.mark.parametrize("what", BOMBS)
async def test_a_body_that_is_none_is_refused_and_the_next_one_answered(tmp_path: Path, what: str) -> None:
    async with open_site(tmp_path) as site:
        answer = await site.ask(BOMBS[what])
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert (await site.ask()).status == 200
        assert len(site.engine.asked) == 1


async def test_a_body_has_its_limit_with_and_without_a_length(tmp_path: Path) -> None:
    body = json.dumps({"model": "support-bot", "prompt": "x" * MAX_BODY}).encode()

    async def parts() -> Any:
        for start in range(0, len(body), 1 << 20):
            yield body[start : start + (1 << 20)]

    async with open_site(tmp_path) as site:
        assert (await site.ask(body)).status == 413
        async with site.client.post(site.url + CHAT, data=parts()) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")
        largest = json.dumps({"model": "support-bot", "prompt": "x" * (MAX_BODY - 100)}).encode()
        assert (await site.ask(largest)).status == 200
        packed = await site.ask(gzip.compress(body), headers={"Content-Encoding": "gzip"})
        assert packed.status == 415


async def test_what_is_the_engines_business_does_not_reach_it(tmp_path: Path) -> None:
    private = {"priority": -9, "kv_transfer_params": {}, "vllm_xargs": {}, "lora_request": {}, "cache_salt": "x"}
    private |= {"request_id": "1", "lora_path": "/etc", "logits_processors": ["os.system"], "data_parallel_rank": 1}
    headers = {
        "Authorization": "Bearer key",
        "Cookie": "a=b",
        "X-Amzn-SageMaker-Adapter-Identifier": "other",
        "X-Data-Parallel-Rank": "1",
        "X-Forwarded-For": "1.2.3.4",
        "X-Request-Id": "abc-1",
        "Accept": "text/event-stream",
    }
    async with open_site(tmp_path) as site:
        await site.ask({"model": "support-bot", "temperature": 0, "top_k": 3} | private, headers=headers)
        assert site.engine.asked == [{"model": BOT, "temperature": 0, "top_k": 3}]
        seen = {name.lower(): value for name, value in site.engine.headers[0].items()}
        assert {name: seen.pop(name) for name in ("x-request-id", "accept", "content-type", "accept-encoding")} == {
            "x-request-id": "abc-1",
            "accept": "text/event-stream",
            "content-type": "application/json",
            "accept-encoding": "identity",
        }
        assert set(seen) <= {"host", "user-agent", "content-length", "connection"}
        for bad in ("x" * 129, "a b", "a/../b"):
            await site.ask(headers={"X-Request-Id": bad})
            assert "X-Request-Id" not in site.engine.headers[-1]


async def test_of_the_engines_headers_only_the_content_type_comes_back(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        answer = await site.ask()
        ours = {"X-Tunery-Adapter", "X-Tunery-Manifest-SHA256"}
        assert set(answer.headers) == {"Content-Type", "Content-Length", "Date"} | ours
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"


async def test_unknown_models_get_one_text_and_leave_nothing_behind(tmp_path: Path) -> None:
    """Each would stay in the engine for ever: it keeps a lock for every name it has heard."""
    async with open_site(tmp_path) as site:
        models = ["gpt-4", "support-bot@000000000000", "support-bot@", "@", BASE + "@3fa9c1d20b7e", "x" * 100_000]
        answers = [await site.ask({"model": model}) for model in models]
        assert {answer.status for answer in answers} == {404}
        # A name that is close is told, unless the look for the one before was a moment ago.
        assert len({answer.body.replace(b"did you mean support-bot? ", b"") for answer in answers}) == 1
        assert answers[0].error["code"] == "model_not_found"
        assert site.engine.asked == []
        assert await site.metric('tunery_adapter_requests_total{adapter="",client="",code="404"}') == len(models)


@pytest.mark.slow
async def test_a_storm_of_unknown_models_takes_no_memory(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        for number in range(200):
            await site.ask({"model": f"warm-{number}"})
        series = len((await site.get("/metrics")).body)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1500):
            await site.ask({"model": f"random-{number}"})
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 200_000
        assert len((await site.get("/metrics")).body) - series < 16


def test_a_hundred_thousand_unknown_names_leave_the_table_as_it_was() -> None:
    routes = Routes(BASE)
    routes.serve("support-bot", BOT, SHA)
    routes.hold("tone", "Loading", "is being loaded")
    before = {name: len(value) for name, value in vars(routes).items() if isinstance(value, dict)}
    for number in range(100_000):
        with pytest.raises(UnknownModel):
            routes.resolve(f"name-{number}@{number:012}")
    assert {name: len(value) for name, value in vars(routes).items() if isinstance(value, dict)} == before


async def test_what_is_wanted_and_not_served_is_never_answered_by_the_base(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.routes.hold("support-bot", "AdapterCorrupt", "adapter_model.safetensors does not match its digest")
        for model in ("support-bot", BOT):
            answer = await site.ask({"model": model})
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.error["code"] == "AdapterCorrupt"
            assert answer.error["message"].startswith(
                "support-bot is not served now: adapter_model.safetensors does not"
            )
        assert site.engine.asked == []
        assert await site.metric('tunery_adapter_requests_total{adapter="support-bot",client="",code="503"}') == 2
        site.routes.drop("support-bot")
        assert (await site.ask()).status == 404


async def test_a_new_version_takes_the_name_and_the_old_ends_what_it_has_begun(tmp_path: Path) -> None:
    new = "support-bot@" + "7" * 12
    async with open_site(tmp_path) as site:
        go_on = asyncio.Event()

        async def waiting(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await go_on.wait()
            return await FakeEngine.default(site.engine, request, body)

        site.engine.handler = waiting
        old = asyncio.create_task(site.ask())
        while not site.engine.asked:
            await asyncio.sleep(0.01)
        site.routes.serve("support-bot", new, "7" * 64)
        assert not await site.routes.drained(BOT, 0.05)
        drained = asyncio.create_task(site.routes.drained(BOT, 5))
        go_on.set()
        assert (await old).json["model"] == BOT
        assert await drained
        assert (await site.ask()).json["model"] == new
        assert (await site.ask({"model": BOT})).status == 404
        assert site.routes.in_flight() == 0


async def test_models_are_listed_as_openai_lists_them(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.routes.hold("tone", "Loading", "is being loaded")
        site.routes.serve("team/bot", "team/bot@" + "7" * 12, "7" * 64)
        listed = (await site.get("/v1/models")).json
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == [BASE, "support-bot", "team/bot"]
        assert [model["parent"] for model in listed["data"]] == [None, BASE, BASE]
        assert listed["data"][1]["root"] == BOT
        assert all(model["object"] == "model" and isinstance(model["created"], int) for model in listed["data"])
        assert (await site.get("/v1/models/support-bot")).json == listed["data"][1]
        assert (await site.get("/v1/models/team%2Fbot")).json == (await site.get("/v1/models/team/bot")).json
        assert (await site.get("/v1/models/tone")).status == 503
        assert (await site.get("/v1/models/nothing")).error["code"] == "model_not_found"


def test_a_version_that_was_held_is_known_by_its_own_name_only() -> None:
    routes = Routes(BASE)
    routes.serve("support-bot", BOT, SHA)
    routes.hold("support-bot", "EngineFailed", "the engine is being started again")
    routes.hold("support-bot", "Loading", "is being loaded")
    with pytest.raises(NotServed, match="is being loaded"):
        routes.resolve(BOT)
    with pytest.raises(UnknownModel):
        routes.resolve("support-bot@000000000000")
    routes.serve("support-bot", BOT, SHA)
    assert routes.resolve("support-bot").version == "3fa9c1d20b7e"
    assert routes.names() == [BASE, "support-bot"]


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_server.gateway.body.READ_SECONDS", 0.1)

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.sleep(0.5)
        yield b'"support-bot"}'

    async with open_site(tmp_path) as site:
        async with site.client.post(site.url + CHAT, data=slowly()) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (408, "timeout")
        assert site.engine.asked == []


async def test_a_defect_of_the_gateway_is_an_answer_and_a_trace_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_site(tmp_path) as site:
        with monkeypatch.context() as patched:
            patched.setattr(site.routes, "find", lambda *_: 1 / 0)
            answer = await site.ask({"model": BASE})
        assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
        assert "ZeroDivisionError" in caplog.text
        assert "Zero" not in str(answer.json)
        assert (await site.ask({"model": BASE})).status == 200
