"""A proxy between the operator and the real API server: it does to calls what networks and servers do at worst."""

from __future__ import annotations

import asyncio
import math
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from kit.operator.faults import Answer, Call, Cut, Fault, Hang, Kill, Rule, Slow, Swallow, parse_call
from kit.operator.faults_stream import Stream, StreamEnds
from tools.cluster.certs import Authority, Pair
from tools.cluster.kubeconfig import write_kubeconfig
from tools.cluster.ports import free_port

_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "keep-alive"})
_POLL = 0.02


@dataclass
class Exchange:
    """One call, as the proxy saw it."""

    call: Call
    at: float
    """Monotonic time."""
    body: bytes
    status: int = 0
    """Of the answer that went to the operator; 0 where none did."""


class FaultProxy:
    """A server in a thread of its own; rules may be added and lifted at any time."""

    def __init__(self, folder: Path, kubeconfig: Path, authority: Authority, keep: int | None = None) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        user = config["users"][0]["user"]
        self._server = config["clusters"][0]["cluster"]["server"]
        self._client = Pair(Path(user["client-certificate"]), Path(user["client-key"]))
        self._authority = authority
        self._port = free_port()
        self._rules: list[Rule] = []
        self._streams: set[Stream] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self.exchanges: deque[Exchange] = deque(maxlen=keep)
        """What was seen, the newest `keep` of it."""
        self.kill: Callable[[], None] = lambda: None
        """Kills the operator; set by who runs it."""
        self.kubeconfig = write_kubeconfig(
            folder / "kubeconfig-proxy", f"https://127.0.0.1:{self._port}", authority, self._client
        )

    # For the tests

    def start(self) -> FaultProxy:
        """Serve from now on."""
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def stop(self) -> None:
        """End all connections."""
        self.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def add(self, fault: Fault, verb: str, resource: str, **which: Any) -> Rule:
        """Let a fault strike; `which` are the fields of Rule."""
        rule = Rule(fault, verb, resource, **which)
        self._rules = [*(old for old in self._rules if old.active), rule]
        return rule

    def clear(self) -> None:
        """Lift every fault."""
        rules, self._rules = self._rules, []
        for rule in rules:
            rule.lift()

    def drop(self, *resources: str) -> None:
        """End the open watches of these resources: the operator has to begin new ones."""
        for stream in list(self._streams):
            if stream.call.resource in resources:
                stream.dropped = True

    def silence(self, *resources: str) -> None:
        """Let nothing more arrive on the open watches of these resources; those that follow are whole."""
        for stream in list(self._streams):
            if stream.call.resource in resources:
                stream.silent = True

    @contextmanager
    def gap(self, *resources: str) -> Any:
        """What happens inside is not seen by the watches, and the next watch is told that its version is too old."""
        swallow = [self.add(Swallow(), "watch", resource, times=None) for resource in resources]
        yield
        for resource in resources:
            self.add(Answer(410), "watch", resource)
        self.drop(*resources)
        time.sleep(3 * _POLL)
        for rule in swallow:
            rule.lift()

    def calls(self, namespace: str | None = None, since: float = 0.0) -> list[Exchange]:
        """Return the exchanges of a namespace, or all, in their order."""
        found = [exchange for exchange in list(self.exchanges) if exchange.at >= since]
        return [e for e in found if namespace is None or e.call.namespace == namespace]

    def writes(self, namespace: str | None = None, since: float = 0.0) -> list[Exchange]:
        """Return the exchanges that were to change something; events and leases do not count."""
        exchanges = self.calls(namespace, since)
        return [e for e in exchanges if e.call.writes and e.call.resource not in ("events", "leases", "tokenreviews")]

    def counts(self, since: float = 0.0) -> Counter[tuple[str, str]]:
        """Return how often each kind of call was made."""
        return Counter(exchange.call.kind for exchange in self.calls(since=since))

    # The server

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _serve(self) -> None:
        upstream = ssl.create_default_context(cafile=str(self._authority.pair.cert))
        upstream.load_cert_chain(self._client.cert, self._client.key)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=upstream, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=2**22,
        )
        pair = self._authority.issue("fault-proxy", "fault-proxy", hosts=["127.0.0.1"])
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        serving.load_cert_chain(pair.cert, pair.key)
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=serving).start()
        self._ready.set()

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = parse_call(request.method, request.path_qs, body)
        exchange = Exchange(call, time.monotonic(), body)
        self.exchanges.append(exchange)
        rule = next((rule for rule in self._rules if not rule.of_streams and rule.strikes(call)), None)
        response = await self._answer(request, exchange, rule)
        exchange.status = response.status
        return response

    async def _answer(self, request: web.Request, exchange: Exchange, rule: Rule | None) -> web.StreamResponse:
        fault = rule.fault if rule is not None else None
        match fault:
            case Answer():
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                return web.Response(
                    status=fault.status, body=fault.body(), content_type="application/json", headers=headers
                )
            case Hang():
                assert rule is not None
                return await self._hang(request, fault, rule)
            case Slow():
                await asyncio.sleep(fault.seconds)
            case Kill(before=True):
                self.kill()
                return _closed(request)
            case Cut(when="before"):
                return _closed(request)
        return await self._forward(request, exchange, fault)

    async def _hang(self, request: web.Request, fault: Hang, rule: Rule) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if fault.headers:
            response.content_length = 1000
            await response.prepare(request)
        end = math.inf if fault.seconds is None else time.monotonic() + fault.seconds
        while not rule.lifted.is_set() and time.monotonic() < end:
            await asyncio.sleep(_POLL)
        return _closed(request)

    async def _forward(self, request: web.Request, exchange: Exchange, fault: Fault | None) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = f"{self._server}{request.path_qs}"
        async with self._session.request(request.method, url, data=exchange.body or None, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if exchange.call.verb == "watch" and answer.status == 200:
                exchange.status = 200
                return await self._stream(request, exchange.call, answer, kept)
            data = await answer.read()
        match fault:
            case Kill():
                self.kill()
                return _closed(request)
            case Cut(when="after"):
                return _closed(request)
            case Cut(when="middle"):
                return await _half(request, answer.status, kept, data)
        return web.Response(status=answer.status, body=data, headers=kept)

    async def _stream(
        self, request: web.Request, call: Call, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        stream = Stream(call, lambda: self._rules)
        self._streams.add(stream)
        # The operator may be gone, killed by a rule for another call.
        with suppress(ConnectionError):
            try:
                await _pass_on(answer, stream, response)
                await response.write_eof()
            except StreamEnds as end:
                await response.write(end.partial or b"\n")
                if end.abrupt:
                    return _closed(request)
                await response.write_eof()
            finally:
                self._streams.discard(stream)
        return response


async def _pass_on(answer: aiohttp.ClientResponse, stream: Stream, response: web.StreamResponse) -> None:
    """Hand a watch's lines over, until it ends or is dropped; raises StreamEnds."""
    coming: asyncio.Task[bytes] | None = None
    try:
        while not stream.dropped:
            coming = coming or asyncio.create_task(answer.content.readline())
            done, _ = await asyncio.wait([coming], timeout=_POLL)
            if done:
                line, coming = coming.result(), None
                if not line:
                    return
                for out in stream.lines(line):
                    await response.write(out)
            elif stream.due():
                for out in stream.rest():
                    await response.write(out)
    finally:
        if coming is not None:
            coming.cancel()


async def _half(request: web.Request, status: int, headers: dict[str, str], data: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = len(data)
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    return _closed(request)


def _closed(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer, or without the rest of one."""
    if request.transport is not None:
        request.transport.close()
    return web.Response(status=499)
