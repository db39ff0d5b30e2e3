"""An API server of one resource in this process, for the faults that the real one cannot be made to have."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.client.configuration import Configuration

from tunery_operator.client.connection import Connection

from kit.operator.api import Json

Script = Callable[["FakeApi", web.Request], Awaitable[web.StreamResponse]]


class FakeApi:
    """Lists in pages and watches like the real one; `lists` and `watches` say what the next of them do instead."""

    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[str, Json] = {}
        self.log: list[tuple[int, bytes]] = []
        """The events of all time, each with its version."""
        self.lists: deque[Script] = deque()
        self.watches: deque[Script] = deque()
        self.requests: list[web.Request] = []
        self.tokens: set[str] | None = None
        """The tokens that are valid; None: anyone may ask."""
        self._changed = asyncio.Condition()

    # What happens in the cluster

    def put(self, name: str, **status: Any) -> Json:
        """Create or change an object."""
        self.version += 1
        known = self.objects.get(name)
        meta = {"name": name, "namespace": "team", "uid": f"u-{name}", "resourceVersion": str(self.version)}
        body = {"metadata": {**meta, "managedFields": [{"manager": "test"}]}, "spec": {}, "status": status}
        self.objects[name] = body
        self._tell("ADDED" if known is None else "MODIFIED", body)
        return body

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.version += 1
        body = self.objects.pop(name)
        self._tell("DELETED", {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}})

    def bookmark(self) -> None:
        """Tell the version of now."""
        self._tell("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def _tell(self, kind: str, body: Json) -> None:
        self.log.append((self.version, line(kind, body)))
        asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # What the operator sees

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.tokens is not None and request.headers.get("Authorization") not in self.tokens:
            return refuse(401, "Unauthorized")
        scripts, usual = (self.watches, self.watch) if "watch" in request.query else (self.lists, self.list)
        return await scripts.popleft()(self, request) if scripts else await usual(request)

    async def list(self, request: web.Request) -> web.Response:
        """Answer with a page."""
        names, limit = sorted(self.objects), int(request.query["limit"])
        start = int(request.query.get("continue", 0))
        meta: Json = {"resourceVersion": str(self.version)}
        if start + limit < len(names):
            meta["continue"] = str(start + limit)
        items = [self.objects[name] for name in names[start : start + limit]]
        return web.json_response({"kind": "List", "metadata": meta, "items": items})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Send the events after a version, for ever."""
        response, since = await begin(request), int(request.query["resourceVersion"])
        sent = next((index for index, (version, _) in enumerate(self.log) if version > since), len(self.log))
        while True:
            while sent < len(self.log):
                await response.write(self.log[sent][1])
                sent += 1
            await self._longer_than(sent)

    async def _longer_than(self, sent: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.log) > sent)

    @property
    def listed(self) -> int:
        """The number of first pages that were asked for."""
        return sum("watch" not in each.query and "continue" not in each.query for each in self.requests)

    @property
    def watched(self) -> int:
        """The number of watches that were asked for."""
        return sum("watch" in each.query for each in self.requests)


def line(kind: str, body: Json) -> bytes:
    """Return an event as a watch sends it."""
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


async def begin(request: web.Request) -> web.StreamResponse:
    """Begin the answer to a watch."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    return response


def refuse(status: int, message: str, **headers: str) -> web.Response:
    """Return a refusal as the API server words it."""
    body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
    return web.json_response(body, status=status, headers=headers)


def refuses(status: int, **headers: str) -> Script:
    """Answer with an error."""

    async def answer(_: FakeApi, __: web.Request) -> web.StreamResponse:
        return refuse(status, f"no {status}", **headers)

    return answer


def sends(*lines: bytes, then: float = 0.0) -> Script:
    """Answer with these bytes, and end after so many seconds; a connection that is cut ends without a last chunk."""

    async def answer(_: FakeApi, request: web.Request) -> web.StreamResponse:
        response = await begin(request)
        for each in lines:
            await response.write(each)
        await asyncio.sleep(then)
        assert request.transport is not None
        request.transport.abort()
        return response

    return answer


def error_event(code: int) -> bytes:
    """Return the event by which an API server ends a watch."""
    return line("ERROR", {"kind": "Status", "code": code, "message": f"no {code}"})


def _refreshed_by(token: Callable[[], str]) -> Any:
    def refresh(configuration: Configuration) -> None:
        configuration.api_key["authorization"] = token()

    return refresh


@asynccontextmanager
async def serving(api: FakeApi, token: Callable[[], str] | None = None) -> AsyncIterator[Connection]:
    """Serve a fake API, and give the connection to it; `token` is asked for each request."""
    app = web.Application()
    app.router.add_get("/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{port}"
    if token is not None:
        configuration.api_key["authorization"] = token()
        configuration.refresh_api_key_hook = _refreshed_by(token)
    try:
        yield Connection(configuration)
    finally:
        await runner.cleanup()
