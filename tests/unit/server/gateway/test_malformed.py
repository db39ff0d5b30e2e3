"""What is no request that HTTP knows: refused in OpenAI's form as all else, and no byte of it comes back."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from tunery_server.gateway.body import MAX_BODY

from kit.server.gateway import CHAT, Site, open_site

MARK = b"echoed0client0bytes"
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\n"
POST = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: gateway\r\n"


async def sent(site: Site, raw: bytes) -> tuple[bytes, bytes]:
    """Send bytes over a connection of their own; return head and body of the one answer before it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(site.url.rpartition(":")[2]))
    writer.write(raw)
    try:
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"GET /v1/models/" + MARK * 600 + b" HTTP/1.1\r\n\r\n", 400, "headers_too_large"),
        (b"GET /" + MARK * 600 + b" HTTP/1.1\r\n\r\n", 400, "headers_too_large"),
        (HEAD + b"Authorization: Bearer " + MARK * 600 + b"\r\n\r\n", 400, "headers_too_large"),
        (HEAD + MARK * 600 + b": 1\r\n\r\n", 400, "headers_too_large"),
        (HEAD + b"".join(b"%s-%d: 1\r\n" % (MARK, at) for at in range(200)) + b"\r\n", 400, "headers_too_large"),
        (MARK + b"\r\n\r\n", 400, "malformed_request"),
        (b"\x16\x03\x01\x02\x00" + MARK + b"\r\n\r\n", 400, "malformed_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + MARK, 400, "malformed_request"),
        (b"GET /v1/models HTTP/" + MARK + b"\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/models HTTP/2.0\r\nHost: " + MARK + b"\r\n\r\n", 400, "malformed_request"),
        (b"GET /v1/models/" + MARK + b"\r\n\r\n", 400, "malformed_request"),
        (b"POST " + CHAT.encode() + MARK + b"TP/1.1\r\nHost: gateway\r\n\r\n", 400, "malformed_request"),
        (b"GET http://[" + MARK + b"/ HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (HEAD + b"Content-Length: " + MARK + b"\r\n\r\n", 400, "malformed_request"),
        (HEAD + MARK + b" : 1\r\n\r\n", 400, "malformed_request"),
        (HEAD + b"X-One: a\x00" + MARK + b"\r\n\r\n", 400, "malformed_request"),
        (POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + MARK, 400, "malformed_request"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + MARK + b"\r\n", 400, "malformed_request"),
        (HEAD + b"Expect: " + MARK + b"\r\nConnection: close\r\n\r\n", 417, "expectation_failed"),
        (
            b"GET /none HTTP/1.1\r\nHost: gateway\r\nExpect: " + MARK + b"\r\nConnection: close\r\n\r\n",
            417,
            "expectation_failed",
        ),
        (HEAD + b"Expect: \x96" + MARK + b"\r\n\r\n", 417, "expectation_failed"),
        (b"GET /none HTTP/1.1\r\nHost: gateway\r\nExpect: \xff" + MARK + b"\r\n\r\n", 417, "expectation_failed"),
    ],
)
async def test_what_is_no_request_is_refused_in_openais_form_and_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raw: bytes, status: int, code: str
) -> None:
    async with open_site(tmp_path) as site:
        head, body = await sent(site, raw)
        assert re.match(rb"HTTP/1\.[01] %d " % status, head), head
        assert "Traceback" not in caplog.text
        assert b"content-type: application/json" in head.lower()
        assert b"aiohttp" not in head, "nobody needs to know what the gateway is made of"
        error = json.loads(body)["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, None)
        assert MARK not in head + body
        assert MARK.decode() not in caplog.text, "nor does its log fill with it"
        assert site.engine.asked == []
        assert (await site.ask()).status == 200


@pytest.mark.parametrize("length", [MAX_BODY + 1, 99_999_999, 1 << 63])
async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(tmp_path: Path, length: int) -> None:
    async with open_site(tmp_path) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(site.url.rpartition(":")[2]))
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % length + MARK)
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in head.lower()
