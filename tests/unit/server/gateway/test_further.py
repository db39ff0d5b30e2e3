"""What tells half a head from nothing: wherever bytes are cut, and with empty lines between requests."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser

from integration.server.gateway.test_connections import BLANK, CHUNKED, GET, HALF, POST
from tunery_server.gateway.further import Further


@pytest.mark.parametrize("blank", [b"", BLANK], ids=["no line between", "an empty line"])
async def test_wherever_bytes_are_cut_it_is_known_whether_a_head_has_begun(blank: bytes) -> None:
    loop = asyncio.get_running_loop()
    requests = [GET, POST, CHUNKED + blank, POST + blank, CHUNKED, GET + blank, POST, GET, HALF]
    raw, ends = b"".join(requests), set[int]()
    for request in requests[:-1]:
        begins = max(ends, default=0)
        head = request.index(b"\r\n\r\n") + 4
        ends |= set(range(begins + head, begins + len(request) + 1))
    for step in (1, 2, 3, 7, 50, 190, len(raw)):
        for first in range(1, min(step, len(raw) - 1) + 1):
            parser, further = HttpRequestParser(BaseProtocol(loop), loop, 1 << 16), Further()
            for at, to in pairwise([0, *range(first, len(raw), step), len(raw)]):
                messages = parser.feed_data(raw[at:to])[0]
                further.came(raw[at:to], *(messages[-1] if messages else ()))
                assert further.begun is (to not in ends), (step, first, at, to)
