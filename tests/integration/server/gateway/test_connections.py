"""Connections of the gateway: half a request head blocks no other client, and a waiting client keeps its connection."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from tunery_server.gateway.connections import BACKLOG, MOST, Limits, Room

from kit.server.gateway import CHAT, Site, open_site, write_keys

GET = b"GET /v1/models HTTP/1.1\r\nHost: gateway\r\n\r\n"
HALF = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: gateway\r\nX-One: "
BODY = b'{"model": "support-bot", "messages": []}'
POST = b"POST %s HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(BODY)) + BODY
PATIENCE = 60
"""Seconds within which what is waited for happens also on a busy machine."""
HOUR = 3600.0


@dataclass
class Client:
    """One connection, from an address of one's choice."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ends(self) -> bytes:
        """Return all that comes before the gateway closes it."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def head(self) -> bytes:
        """Return the head of an answer."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.readuntil(b"\r\n\r\n")


async def came(site: Site, raw: bytes, address: str = "127.0.0.1") -> Client:
    """Connect, and send."""
    port = int(site.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    writer.write(raw)
    await writer.drain()
    return Client(reader, writer)


async def until(site: Site, count: int) -> None:
    """Wait until so many connections are open."""
    async with asyncio.timeout(PATIENCE):
        while site.gateway.room.open != count:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def busy(site: Site) -> AsyncIterator[asyncio.Event]:
    """Let the engine answer only once the event is set."""
    told = asyncio.Event()

    async def wait(request: web.Request, body: dict[str, object]) -> web.StreamResponse:
        await told.wait()
        return await site.engine.default(request, body)

    site.engine.handler = wait
    try:
        yield told
    finally:
        told.set()


async def test_half_a_head_ends_in_time_and_neither_what_is_answered_nor_what_is_kept_open(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(head=0.3)) as site, busy(site) as told:
        kept = await came(site, GET)
        await kept.head()
        waiting = await came(site, POST)
        halves = [await came(site, raw) for raw in (b"", b"GET /v1/mod", HALF)]
        assert [await half.ends() for half in halves] == [b"", b"", b""]
        await asyncio.sleep(0.3)
        assert not kept.reader.at_eof()
        kept.writer.write(HALF)
        assert (await kept.ends()).startswith(b'{"object"'), "its earlier answer, and then the end of the half head"
        assert site.gateway.room.closed == {"slow": 4, "crowded": 0, "refused": 0, "unread": 0}
        told.set()
        assert (await waiting.head()).startswith(b"HTTP/1.1 200 ")


CHUNKED = POST.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked").replace(
    BODY, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
)


BLANK = b"\r\n"
"""An empty line too much, as some clients send it behind a body."""


@pytest.mark.parametrize(
    "before",
    [GET, POST, GET + POST, CHUNKED, POST + BLANK],
    ids=["GET", "POST", "GET and POST", "in chunks", "an empty line"],
)
async def test_half_a_head_behind_a_whole_request_ends_in_time_and_a_connection_without_one_is_kept(
    before: bytes, tmp_path: Path
) -> None:
    async with open_site(tmp_path, limits=Limits(head=0.3)) as site:
        kept, half = await came(site, before), await came(site, before + HALF)
        assert (await half.ends()).count(b"HTTP/1.1 200 ") == 1 + before.startswith(GET + POST)
        assert (await kept.head()).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.6)
        kept.writer.write(GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert (await kept.ends()).count(b"HTTP/1.1 200 ") == 1 + before.startswith(GET + POST)
        assert site.gateway.room.closed["slow"] == 1


async def test_half_a_head_that_comes_while_another_request_is_answered_ends_in_time(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(head=0.3)) as site, busy(site) as told:
        clients = [await came(site, POST), await came(site, POST)]
        async with asyncio.timeout(PATIENCE):
            while site.routes.in_flight() < 2:
                await asyncio.sleep(0.01)
        for client, raw in zip(clients, (HALF, POST + HALF), strict=True):
            client.writer.write(raw)
        await asyncio.sleep(0.6)
        assert site.gateway.room.closed["slow"] == 0, "as long as there is an answer to be given"
        told.set()
        assert [(await client.ends()).count(b"HTTP/1.1 200 ") for client in clients] == [1, 2]
        assert site.gateway.room.closed["slow"] == 2


async def test_who_waits_without_a_request_makes_way_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(connections=8, per_address=4, kept=0, head=HOUR)
    async with open_site(tmp_path, limits=limits) as site, busy(site) as told:
        waiting = await came(site, POST)
        while not site.routes.in_flight():
            await asyncio.sleep(0.01)
        halves = [await came(site, HALF) for _ in range(40)]
        await asyncio.gather(*(half.ends() for half in halves[:37]))
        assert site.gateway.room.open == 4
        late = await came(site, GET)
        assert (await late.head()).startswith(b"HTTP/1.1 200 ")
        told.set()
        assert (await waiting.head()).startswith(b"HTTP/1.1 200 ")
        assert await site.metric('tunery_gateway_connections_closed_total{cause="crowded"}') == 39
    lines = [record.getMessage() for record in caplog.records if "too many connections" in record.getMessage()]
    assert len(lines) == 1
    assert "4 of them from 127.0.0.1" in lines[0]


async def test_where_all_wait_for_answers_one_address_is_let_in_no_more_and_others_are(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(connections=4, per_address=2, kept=1)) as site, busy(site) as told:
        one = [await came(site, POST) for _ in range(2)]
        await until(site, 2)
        while site.routes.in_flight() < 2:
            await asyncio.sleep(0.01)
        assert await (await came(site, GET)).ends() == b""
        other = [await came(site, POST, "127.0.0.2") for _ in range(2)]
        while site.routes.in_flight() < 4:
            await asyncio.sleep(0.01)
        third = await came(site, GET, "127.0.0.3")
        assert (await third.head()).startswith(b"HTTP/1.1 200 "), "what is kept for those who have few"
        told.set()
        for client in (*one, *other):
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
            client.writer.close()
        third.writer.close()
        await until(site, 0)
        assert site.gateway.room.closed["refused"] == 1


@pytest.mark.parametrize(
    "raw", [GET, b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n", POST, GET + GET, b"NONE\r\n\r\n"]
)
async def test_who_says_at_once_that_no_more_comes_is_answered(tmp_path: Path, raw: bytes) -> None:
    async with open_site(tmp_path) as site:
        client = await came(site, raw)
        client.writer.write_eof()
        assert (await client.ends()).count(b"Content-Length: ") == (2 if raw == GET + GET else 1)


async def test_who_says_that_no_more_comes_behind_a_body_that_took_a_while_is_answered(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(half_closed=0.5)) as site:
        client = await came(site, POST[: -len(BODY)])
        await asyncio.sleep(1)
        client.writer.write(BODY)
        client.writer.write_eof()
        assert (await client.ends()).startswith(b"HTTP/1.1 200 ")


async def test_who_leaves_is_not_waited_for(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(half_closed=0.2)) as site, busy(site):
        for pause in (0.0, 0.3):
            site.engine.aborted.clear()
            client = await came(site, POST)
            while not site.routes.in_flight():
                await asyncio.sleep(0.01)
            await asyncio.sleep(pause)
            client.writer.close()
            async with asyncio.timeout(5):
                await site.engine.aborted.wait()
            await until(site, 0)


METRICS = b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n"
KEY = "sk-team-0123456789"
KEYED = POST.replace(b"Host: gateway", b"Host: gateway\r\nAuthorization: Bearer " + KEY.encode())
BIG = 8 << 20


async def deaf(site: Site, raw: bytes, address: str = "127.0.0.1") -> socket.socket:
    """Connect, and send until it is not taken any more; nothing is read."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    one.bind((address, 0))
    one.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(one, ("127.0.0.1", int(site.url.rpartition(":")[2])))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await loop.sock_sendall(one, raw)
    return one


async def stuck(site: Site, count: int) -> None:
    """Wait until so many connections wait for their clients to take something."""
    async with asyncio.timeout(PATIENCE):
        while sum(each.writing_paused for each in connections(site)) != count:
            await asyncio.sleep(0.01)


def connections(site: Site) -> list[RequestHandler]:
    """Return the gateway's ends of them."""
    assert site.runner.server is not None
    return list(site.runner.server.connections)


async def answers_with(site: Site, size: int) -> None:
    """Have the engine answer with so many bytes."""

    async def big(_: web.Request, body: dict[str, object]) -> web.StreamResponse:
        return web.json_response({"text": "x" * size})

    site.engine.handler = big


@pytest.mark.slow
async def test_who_reads_nothing_and_has_no_key_makes_way_for_who_has_one(tmp_path: Path) -> None:
    limits = Limits(connections=8, per_address=6, kept=0, head=HOUR, unread=HOUR)
    async with open_site(tmp_path, write_keys(tmp_path / "k", team=KEY), limits=limits) as site, busy(site) as told:
        many = [await deaf(site, METRICS * 4000, f"127.0.0.{2 + number % 2}") for number in range(8)]
        await stuck(site, 8)
        honest = [await came(site, KEYED, "127.0.0.9") for _ in range(6)]
        async with asyncio.timeout(PATIENCE):
            while site.routes.in_flight() < 6:
                await asyncio.sleep(0.01)
        late = [await came(site, METRICS, "127.0.0.2") for _ in range(9)]
        told.set()
        for client in honest:
            assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        for one in (*many, *(client.writer for client in late)):
            one.close()


@pytest.mark.slow
async def test_an_answer_that_nobody_takes_ends_and_one_that_is_read_slowly_does_not(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(unread=1.0)) as site:
        await answers_with(site, BIG)
        silent, slow = await deaf(site, POST), await deaf(site, POST)
        await stuck(site, 2)
        got = 0
        for _ in range(20):
            got += len(await asyncio.get_running_loop().sock_recv(slow, 4096))
            await asyncio.sleep(0.15)
        assert site.gateway.room.closed["unread"] == 1
        async with asyncio.timeout(20):
            while got < BIG:
                got += len(await asyncio.get_running_loop().sock_recv(slow, 1 << 16))
        silent.close()
        slow.close()


async def test_the_rest_of_an_answer_on_its_way_to_a_slow_client_is_not_cut_for_who_comes_anew(tmp_path: Path) -> None:
    async with open_site(tmp_path, limits=Limits(connections=1, per_address=1, kept=0)) as site:
        await answers_with(site, 48 << 10)
        slow = await deaf(site, b"")
        await until(site, 1)
        for each in connections(site):
            assert each.transport is not None
            each.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        await asyncio.get_running_loop().sock_sendall(slow, POST)
        async with asyncio.timeout(PATIENCE):
            while not (site.engine.asked and not site.routes.in_flight()):
                await asyncio.sleep(0.01)
        assert await (await came(site, GET)).ends() == b""
        read = b""
        async with asyncio.timeout(PATIENCE):
            while not read.endswith(b'xxx"}'):
                more = await asyncio.get_running_loop().sock_recv(slow, 4096)
                assert more, f"cut off after {len(read)} bytes"
                read += more
        slow.close()


class Held:
    """A connection, as the room sees it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.ended = False

    def make_way(self) -> None:
        self.ended = True


def test_in_a_full_room_the_oldest_of_the_address_that_has_most_makes_way() -> None:
    room = Room(Limits(connections=5, per_address=4, kept=0))
    few, many = Held("10.0.0.1"), [Held("10.0.0.2") for _ in range(4)]
    for one in (few, *many):
        assert room.enter(one)
    room.let_in(many[0])
    assert room.enter(Held("10.0.0.3"))
    assert [one.ended for one in (few, *many)] == [False, False, True, False, False]
    assert room.open == 5
    for one in (few, *many):
        room.leave(one)
        room.waits(one)
    assert room.open == 1


def test_who_has_shown_no_key_for_some_time_makes_way_first_however_few_they_are_of_an_address() -> None:
    now = 0.0
    room = Room(Limits(connections=6, per_address=6, kept=0, stranger=5.0), lambda: now)
    kept = [Held("10.0.0.1") for _ in range(3)]
    for one in kept:
        room.enter(one)
        room.let_in(one)
        room.waits(one)
    strangers = [Held(f"10.0.1.{number}") for number in range(3)]
    for one in strangers:
        room.enter(one)
        room.waits(one)
    now = 4.9
    assert room.enter(Held("10.0.0.2"))
    assert [one.ended for one in (*kept, *strangers)] == [True, False, False, False, False, False]
    now = 5.0
    for _ in range(3):
        assert room.enter(Held("10.0.0.2"))
    assert [one.ended for one in (*kept, *strangers)] == [True, False, False, True, True, True]


def test_those_who_come_together_do_not_make_way_for_each_other_while_there_are_places_for_few() -> None:
    room = Room(Limits(connections=4, per_address=9, kept=16))
    for number in range(4):
        room.enter(one := Held(f"10.0.1.{number}"))
        room.let_in(one)
    honest = [Held("10.0.0.9") for _ in range(8)]
    assert [room.enter(one) for one in honest] == [True] * 8
    assert not any(one.ended for one in honest)


@pytest.mark.parametrize("files", [16, 256, 1024, 4096, 20_000, 1 << 20])
def test_connections_and_their_ways_to_the_engine_are_fewer_than_files(files: int) -> None:
    limits = Limits.within(files)
    assert 0 < limits.per_address <= limits.connections
    assert 2 * (limits.connections + limits.kept) + 4 * limits.backlog < files
    assert limits.backlog == BACKLOG or files < 20_000
    assert limits.connections + limits.kept == MOST or files < 20_000


def test_a_process_that_may_open_more_files_does() -> None:
    code = "from tunery_server.gateway.connections import *; raise_files(); print(limits_here().connections)"
    command = f'ulimit -Sn 512; exec "{sys.executable}" -c "{code}"'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 512
