"""Streams through the gateway: byte for byte, without delay, and ended as soon as the client disconnects."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from tunery_server.gateway.usage import MAX_EVENT, Usage, UsageReader, usage_in

from kit.server.gateway import BOT, CHAT, USAGE, USAGE_CHUNK, Site, chunk, event, open_site, stream

DONE = b"data: [DONE]\n\n"
TEXT = [event(chunk(text)) for text in ("one", 'says "usage": {"prompt_tokens": 9}', "é\u2028")]
ASK = {"model": "support-bot", "messages": [], "stream": True}


def through(data: bytes, cuts: list[int], swallow: bool) -> tuple[bytes, Usage | None]:
    """Feed `data` in pieces, and return what comes out."""
    reader = UsageReader(swallow)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    kept = b"".join(reader.feed(data[start:end]) for start, end in pairwise(places))
    return kept + reader.end(), reader.usage


@given(st.lists(st.integers(0, 5000)), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_however_a_stream_is_cut_the_same_bytes_come_out(cuts: list[int], end: str, swallow: bool) -> None:
    before = b"".join(event(chunk(text), end) for text in ("a", '"usage"', "c"))
    said, done = event(USAGE_CHUNK, end), f": ping{end}{end}data: [DONE]{end}{end}".encode()
    kept, usage = through(before + said + done, cuts, swallow)
    assert kept == before + (b"" if swallow else said) + done
    assert usage == Usage(7, 3)


@given(
    st.lists(st.sampled_from([b"data:", b'{"usage"', b"\r", b"\n", b"\n\n", b"x", b'"usage"']), max_size=30), st.data()
)
def test_what_is_no_event_comes_out_as_it_went_in(parts: list[bytes], data: st.DataObject) -> None:
    junk = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(0, 200)))
    assert through(junk, cuts, swallow=True) == (junk, None)
    assert through(junk, cuts, swallow=False) == (junk, None)


def test_events_over_several_lines_and_with_other_fields_are_read() -> None:
    said = (
        b'event: usage\nid: 4\ndata: {"choices": [],\ndata:"usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
    )
    assert through(TEXT[0] + said + DONE, [], swallow=True) == (TEXT[0] + DONE, Usage(7, 3))


def test_numbers_beside_words_are_read_and_the_words_stay() -> None:
    last = event({**chunk("end"), "usage": USAGE})
    none = event({**chunk("end"), "usage": None})
    assert through(none + last + DONE, [], swallow=True) == (none + last + DONE, Usage(7, 3))


def test_an_event_without_an_end_is_not_held_for_ever() -> None:
    reader = UsageReader(swallow=True)
    sent = [b"data: " + b"x" * 65536 for _ in range(40)]
    most = 0
    kept = 0
    for part in sent:
        kept += len(reader.feed(part))
        most = max(most, sum(map(len, sent)) - kept)
    assert kept + len(reader.end()) == sum(map(len, sent))
    assert kept > MAX_EVENT


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (event({"choices": ['"usage": {}'], "usage": USAGE})[6:], Usage(7, 3)),
        (b'{"usage" : {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": {}}, "x": 1}', Usage(3, 4)),
        (event({"usage": USAGE, "prompt_logprobs": [{"7": {"decoded_token": "usage"}}]})[6:], Usage(7, 3)),
        (event({"usage": USAGE, "top_logprobs": [{"usage": -0.5, "other": -1.0}]})[6:], Usage(7, 3)),
        (b'{"usage": null}', None),
        (b'{"usage": {"prompt_tokens": -1, "completion_tokens": "many"}}', Usage(0, 0)),
        (b'{"usage": {"prompt_tokens": 1', None),
        (b'{"usage": ' + b"[" * 100_000, None),
        (b"", None),
    ],
)  # fmt: skip
def test_the_tokens_of_a_whole_answer_are_found(body: bytes, usage: Usage | None) -> None:
    assert usage_in(body) == usage


async def test_a_stream_is_byte_for_byte_that_of_an_engine_that_was_not_asked_for_tokens(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:

        async def answers(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            assert body["stream_options"] == {"include_usage": True}
            whole = b"".join(TEXT) + event(USAGE_CHUNK) + DONE
            return await stream(request, [whole[start : start + 50] for start in range(0, len(whole), 50)])

        site.engine.handler = answers
        for given_options in ({}, {"stream_options": None}, {"stream_options": {"continuous_usage_stats": True}}):
            answer = await site.ask(ASK | given_options)
            assert answer.body == b"".join(TEXT) + DONE
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-Tunery-Adapter"] == BOT
        assert "Content-Encoding" not in answer.headers
        series = 'tunery_adapter_tokens_total{adapter="support-bot",client="",kind='
        assert [await site.metric(f'{series}"{kind}"}}') for kind in ("prompt", "completion")] == [21, 9]


async def test_who_asks_for_the_tokens_gets_them(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        options = {"include_usage": True, "continuous_usage_stats": True}
        answer = await site.ask(ASK | {"stream_options": options})
        assert site.engine.asked[0]["stream_options"] == options
        assert answer.body.endswith(event(USAGE_CHUNK) + DONE)
        series = 'tunery_adapter_tokens_total{adapter="support-bot",client="",kind="completion"}'
        assert await site.metric(series) == 3


async def test_responses_are_streamed_untouched_and_counted(tmp_path: Path) -> None:
    said = {"input_tokens": 11, "output_tokens": 5}
    events = [
        b"event: response.created\n" + event({"type": "response.created", "response": {"usage": None}}),
        b"event: response.completed\n" + event({"type": "response.completed", "response": {"usage": said}}),
    ]
    async with open_site(tmp_path) as site:
        site.engine.handler = lambda request, _: stream(request, events)
        answer = await site.ask({"model": "support-bot", "input": "x", "stream": True}, path="/v1/responses")
        assert answer.body == b"".join(events)
        assert "stream_options" not in site.engine.asked[0]
        series = 'tunery_adapter_tokens_total{adapter="support-bot",client="",kind="prompt"}'
        assert await site.metric(series) == 11


async def test_each_token_arrives_when_it_is_written(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        go_on = asyncio.Event()

        async def steps(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for part in TEXT:
                await response.write(part)
                await go_on.wait()
                go_on.clear()
            return response

        site.engine.handler = steps
        async with site.client.post(site.url + CHAT, json=ASK) as answer:
            for part in TEXT:
                assert await asyncio.wait_for(answer.content.readany(), 2) == part
                go_on.set()


async def endless(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(TEXT[0] * 20)
        await asyncio.sleep(0.001)


async def silent(_: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError(body)


async def ended(site: Site) -> None:
    """Wait until the engine's request is ended, and nothing is in flight."""
    await asyncio.wait_for(site.engine.aborted.wait(), 1)
    while site.routes.in_flight():
        await asyncio.sleep(0.01)


async def test_where_the_client_goes_the_engine_stops_within_a_second(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.engine.handler = endless
        async with site.client.post(site.url + CHAT, json=ASK) as answer:
            await answer.content.readany()
            assert await site.metric("tunery_requests_in_flight") == 1
        await ended(site)
        series = 'tunery_adapter_requests_total{adapter="support-bot",client="",code="499"}'
        assert await site.metric(series) == 1


async def test_where_the_client_goes_before_the_first_token_the_engine_stops_too(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.engine.handler = silent
        with pytest.raises(TimeoutError):
            await site.ask(timeout=aiohttp.ClientTimeout(total=0.2))
        await ended(site)


async def test_a_client_that_does_not_read_holds_nobody_else(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.engine.handler = endless
        port = int(site.url.rpartition(":")[2])
        slow = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            body = json.dumps(ASK).encode()
            writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            slow.append((reader, writer))
        while site.routes.in_flight() < 20:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        site.engine.handler = None
        started = time.monotonic()
        for _ in range(10):
            assert (await site.ask()).status == 200
        assert time.monotonic() - started < 2
        for _, writer in slow:
            writer.transport.abort()
        while site.routes.in_flight():
            await asyncio.sleep(0.01)


async def test_a_stream_that_the_engine_breaks_off_ends_with_an_error_and_without_an_end(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:

        async def breaks(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(TEXT[0])
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
            return response

        site.engine.handler = breaks
        async with site.client.post(site.url + CHAT, json=ASK) as answer:
            read = await answer.content.readuntil(b"}}\n\n")
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()
        assert read.startswith(TEXT[0])
        last = json.loads(read.removeprefix(TEXT[0]).removeprefix(b"data: "))
        assert last["error"]["code"] == "engine_error"
        site.engine.handler = None
        assert (await site.ask()).status == 200


async def test_a_stream_in_which_nothing_moves_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery_server.gateway.answers.IDLE_SECONDS", 0.2)
    async with open_site(tmp_path) as site:
        site.engine.handler = lambda request, _: stream(request, TEXT, 60)
        with pytest.raises(aiohttp.ClientPayloadError):
            await site.ask(ASK)
        await ended(site)
