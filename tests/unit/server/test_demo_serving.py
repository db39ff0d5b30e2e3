"""What `make demo-serving` asks, through a real gateway: every model at the same time, and who has answered."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tunery_api.serving import engine_name

from kit.kubectl import Kubectl
from kit.server.gateway import BASE, BOT, event, open_site, stream
from tools.demo.serving import MAX_TOKENS, _overlap, _runs, ask_together

TONE_SHA = "1" * 64
TONE = engine_name("tone", TONE_SHA)
QUESTION = "Where is parcel 77?"


def chunk(model: str, text: str) -> bytes:
    """Return an event of a chat completion, as the engine names its model."""
    return event({"model": model, "choices": [{"index": 0, "delta": {"content": text}}]})


async def test_the_base_and_both_adapters_are_asked_at_the_same_time_and_told_apart(tmp_path: Path) -> None:
    all_asked = asyncio.Barrier(3)

    async def together(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await all_asked.wait()
        texts = ("", f"{body['model']} says\n", " hello", "")
        return await stream(request, [chunk(body["model"], text) for text in texts], seconds=0.02)

    async with open_site(tmp_path) as site:
        site.routes.serve("tone", TONE, TONE_SHA)
        site.engine.handler = together
        async with asyncio.timeout(60):
            answers = await ask_together(site.url, [BASE, "support-bot", "tone"], QUESTION)
        assert {str(asked["messages"]) for asked in site.engine.asked} == {str([{"role": "user", "content": QUESTION}])}
        assert {asked["max_tokens"] for asked in site.engine.asked} == {MAX_TOKENS}
    assert [each.asked for each in answers] == [BASE, "support-bot", "tone"]
    assert [(each.by, each.text) for each in answers] == [(name, f"{name} says hello") for name in (BASE, BOT, TONE)]
    assert all(0 < each.first <= each.last and len(each.times) == 2 for each in answers)
    assert _overlap(answers).startswith("6 chunks of 3 answers in ")


async def test_an_answer_without_a_word_is_one(tmp_path: Path) -> None:
    async def silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await stream(request, [chunk(body["model"], ""), b"data: [DONE]\n\n"])

    async with open_site(tmp_path) as site:
        site.engine.handler = silent
        (answer,) = await ask_together(site.url, ["support-bot"], QUESTION)
    assert (answer.by, answer.text, answer.times) == (BOT, "", [])
    assert 0 < answer.first == answer.last


async def test_what_is_refused_or_broken_off_ends_the_demo_in_the_gateways_words(tmp_path: Path) -> None:
    async def broken(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk(body["model"], "a"))
        assert request.transport is not None
        request.transport.abort()
        return response

    async with open_site(tmp_path) as site:
        with pytest.raises(AssertionError, match=r"^nobody: HTTP 404: .*There is no such model"):
            await ask_together(site.url, ["nobody"], QUESTION)
        site.engine.handler = broken
        with pytest.raises(AssertionError, match=r"^support-bot: The engine has broken off this answer"):
            await ask_together(site.url, ["support-bot"], QUESTION)


async def test_a_connection_that_breaks_off_ends_the_demo_in_a_sentence() -> None:
    with pytest.raises(AssertionError, match=r"^http://127\.0\.0\.1:1 broke off: "):
        await ask_together("http://127.0.0.1:1", ["support-bot"], QUESTION)


class Cluster(Kubectl):
    """A cluster of one Deployment."""

    def __init__(self, *images: str) -> None:
        pod = {"initContainers": [{"image": each} for each in images], "containers": [{"image": "engine:1"}]}
        self.deployment = {"spec": {"template": {"spec": pod}}} if images else None

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        assert (kind, name) == ("deployment", "demo-server")
        return self.deployment


def test_replicas_of_an_earlier_demo_are_not_asked() -> None:
    """The operator that was just installed has not looked yet, and what the status says is of before."""
    assert _runs(Cluster("server:2"), "demo", "server:2")
    assert not _runs(Cluster("server:1"), "demo", "server:2")
    assert not _runs(Cluster(), "demo", "server:2")
