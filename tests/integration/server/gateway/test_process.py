"""The server's process: `python -m tunery_server gateway`, and how it ends without anyone's answer being lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tunery_api.adapterserver import Alias, AliasTarget
from tunery_api.inputs import ModelSpec
from tunery_api.names import PROGRESS_URL_ENV
from tunery_api.runspec import MountedSecret, RunIdentity
from tunery_api.serving import ClientRules, Desired, HeldAdapter, ReplicaReply, ReplicaReport, ReplicaState, ServeSpec
from tunery_server.process import close_gateway

from kit.server.gateway import BASE, CHAT, FakeEngine, chunk, event, open_site, stream, write_keys
from tools.cluster.ports import free_port

KEY = {"Authorization": "Bearer key-of-alice"}
SLOWLY = [event(chunk(str(number))) for number in range(20)]


class Server:
    """A process of the server, and its log."""

    def __init__(self, url: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.url = url
        self.process = process
        self.log = log

    async def status(self, path: str) -> int:
        """Return the status of a path, 0 where nobody answers."""
        try:
            async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
                return answer.status
        except aiohttp.ClientError:
            return 0

    async def until(self, path: str, status: int) -> None:
        """Wait until a path has this status."""
        async with asyncio.timeout(30):
            while await self.status(path) != status:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def started(folder: Path, engine: FakeEngine, keys: MountedSecret, *, told: bool = True) -> AsyncIterator[Server]:
    """Start the process as a pod does; `told`: there is a list of what is to be served."""
    port = free_port()
    if told:
        (folder / "adapters.json").write_text(Desired(revision=1).model_dump_json(by_alias=True))
    spec = ServeSpec(
        identity=RunIdentity(kind="AdapterServer", namespace="team", name="support", uid="1"),
        model=ModelSpec(uri="s3://models/smollm2"),
        served_name=BASE,
        api_keys=keys,
        port=port,
        model_dir=str(folder / "model"),
        adapters_dir=str(folder / "adapters"),
        engine_socket=engine.socket,
        desired_file=str(folder / "adapters.json"),
    )
    (folder / "serve.json").write_text(spec.model_dump_json(by_alias=True))
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tunery_server", "gateway", str(folder / "serve.json")), stderr=log, env=os.environ
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, folder / "log")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.slow
async def test_a_process_answers_ends_what_it_has_begun_and_says_no_key(tmp_path: Path) -> None:
    engine = FakeEngine(str(tmp_path / "engine.sock"))
    keys = write_keys(tmp_path / "keys", alice="key-of-alice")
    async with started(tmp_path, engine, keys) as server, aiohttp.ClientSession() as client:
        await server.until("/livez", 200)
        assert await server.status("/readyz") == 503
        assert await server.status("/healthz/engine") == 503
        await engine.start()
        await server.until("/healthz/engine", 200)
        await server.until("/readyz", 200)
        engine.handler = lambda request, _: stream(request, SLOWLY, 0.05)
        body: dict[str, Any] = {"model": BASE, "stream": True}
        async with client.post(server.url + CHAT, json=body, headers=KEY) as answer:
            assert answer.status == 200
            first = await answer.content.readany()
            server.process.send_signal(signal.SIGTERM)
            await server.until("/readyz", 503)
            async with client.post(server.url + CHAT, json=body, headers={"Authorization": "Bearer no"}) as other:
                assert other.status == 401
            assert first + await answer.content.read() == b"".join(SLOWLY)
        assert await asyncio.wait_for(server.process.wait(), 5) == 0
        await engine.stop()
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "key-of-alice" not in log
    assert len(log.splitlines()) < 5


Take = Callable[[ReplicaState], Awaitable[Desired | None]]


@asynccontextmanager
async def operator(take: Take, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Take the reports of a process: what `take` returns is answered."""

    async def answer(request: web.Request) -> web.Response:
        desired = await take(ReplicaReport.model_validate_json(await request.read()).replica_status)
        reply = ReplicaReply(desired=desired, interval_seconds=1.0)
        return web.Response(text=reply.model_dump_json(by_alias=True), content_type="application/json")

    app = web.Application()
    app.router.add_post("/report", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv(PROGRESS_URL_ENV, f"http://127.0.0.1:{runner.addresses[0][1]}/report")
    yield
    await runner.cleanup()


@pytest.mark.slow
async def test_a_process_reports_and_takes_what_it_is_answered_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ReplicaState] = []
    later = Desired(revision=7, held=[HeldAdapter(name="late", reason="JobRunning", message="is being trained")])

    async def take(state: ReplicaState) -> Desired:
        told.append(state)
        return later

    engine = FakeEngine(str(tmp_path / "engine.sock"))
    keys = write_keys(tmp_path / "keys", alice="key-of-alice")
    async with (
        operator(take, monkeypatch),
        started(tmp_path, engine, keys) as server,
        aiohttp.ClientSession() as client,
    ):
        async with asyncio.timeout(30):
            while not told or told[-1].revision != 7:
                await asyncio.sleep(0.05)
        async with client.post(server.url + CHAT, json={"model": "late"}, headers=KEY) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "JobRunning")
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(server.process.wait(), 5) == 0
    assert (told[0].revision, told[0].engine_ready) == (0, False)


@pytest.mark.slow
async def test_a_process_is_ready_once_the_operator_has_heard_that_requests_may_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    server: Server

    async def take(state: ReplicaState) -> None:
        while state.engine_ready and len(seen) < 20:
            seen.append(await server.status("/readyz"))
            await asyncio.sleep(0.05)

    engine = FakeEngine(str(tmp_path / "engine.sock"))
    keys = write_keys(tmp_path / "keys", alice="key-of-alice")
    async with operator(take, monkeypatch), started(tmp_path, engine, keys) as server:
        await engine.start()
        await server.until("/readyz", 200)
    await engine.stop()
    assert seen == [503] * 20


async def test_a_process_whose_engine_dies_while_it_ends_does_not_wait_for_it(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.engine.handler = lambda request, _: stream(request, SLOWLY, 60)
        asked = asyncio.create_task(site.ask({"model": BASE, "stream": True}))
        while not site.routes.in_flight():
            await asyncio.sleep(0.01)
        closing = asyncio.create_task(close_gateway(site.gateway, site.runner))
        await asyncio.sleep(0.1)
        assert not closing.done()
        begun = time.monotonic()
        await site.engine.stop()
        await closing
        assert time.monotonic() - begun < 5
        assert isinstance((await asyncio.gather(asked, return_exceptions=True))[0], aiohttp.ClientError)


async def test_an_answer_that_never_ends_is_waited_for_no_longer_than_the_pod_has(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:

        async def never(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await asyncio.sleep(60)
            raise AssertionError((request, body))

        site.engine.handler = never
        asked = asyncio.create_task(site.ask())
        while not site.routes.in_flight():
            await asyncio.sleep(0.01)
        begun = time.monotonic()
        await close_gateway(site.gateway, site.runner, seconds=0.3)
        assert 0.3 <= time.monotonic() - begun < 4
        assert isinstance((await asyncio.gather(asked, return_exceptions=True))[0], aiohttp.ClientError)
        assert site.routes.in_flight() == 0


@pytest.mark.slow
async def test_a_serve_json_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "serve.json").write_text("{}")
    for path in ("serve.json", "nothing.json"):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tunery_server", "gateway", str(tmp_path / path)), stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        assert process.returncode == 2
        assert f"{path} cannot be read" in said.decode()
        assert "Traceback" not in said.decode()


# Rules of clients


@pytest.mark.slow
async def test_the_gateway_of_a_pod_of_before_refuses_what_it_refused(tmp_path: Path) -> None:
    """The whole program, between a Secret that it mounts and a list that is written for another."""
    engine = FakeEngine(str(tmp_path / "engine.sock"))
    keys = write_keys(tmp_path / "keys", alice="key-of-alice", web="key-of-web")
    async with started(tmp_path, engine, keys) as server, aiohttp.ClientSession() as client:
        await engine.start()
        await server.until("/readyz", 200)
        say(tmp_path, 2, api_keys="keys", clients={"web": ["prod"]})
        await answered(client, server, {"prod": 200, BASE: 403})
        before = [ClientRules(api_keys="keys", clients={"web": ["prod"]})]
        say(tmp_path, 3, api_keys="keys-b", clients={"frontend": ["prod"]}, before=before, more="news")
        await answered(client, server, {"news": 403, "prod": 200, BASE: 403})
        async with client.get(f"{server.url}/v1/models", headers=KEY) as answer:
            assert [each["id"] for each in (await answer.json())["data"]] == [BASE, "prod", "news"]
    await engine.stop()


@pytest.mark.slow
async def test_before_it_has_read_who_may_ask_for_what_a_gateway_answers_nobody(tmp_path: Path) -> None:
    """A gateway follows one that was killed: its engine answers, and a limited key must never get access to all."""
    engine = FakeEngine(str(tmp_path / "engine.sock"))
    await engine.start()
    keys = write_keys(tmp_path / "keys", alice="key-of-alice", web="key-of-web")
    async with started(tmp_path, engine, keys, told=False) as server, aiohttp.ClientSession() as client:
        await server.until("/healthz/engine", 200)
        body = {"model": BASE, "messages": []}
        async with client.post(server.url + CHAT, json=body, headers=KEY) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "EngineFailed")
            assert answer.headers["Retry-After"]
        for path in ("/v1/models", f"/v1/models/{BASE}"):
            async with client.get(server.url + path, headers=KEY) as answer:
                assert answer.status == 503
        assert not [asked for asked in engine.asked if "messages" in asked]
        say(tmp_path, 1, api_keys="keys", clients={"web": ["prod"]})
        await answered(client, server, {BASE: 403, "prod": 200})
        assert await server.status("/readyz") == 200
    await engine.stop()


def say(folder: Path, revision: int, more: str = "", **rules: Any) -> None:
    """Write what is to be served as the operator does: aliases of the base, and who may ask."""
    names = filter(None, ("prod", more))
    aliases = [Alias(name=name, targets=[AliasTarget(adapter=BASE)]) for name in names]
    draft = folder / "adapters.new"
    draft.write_text(Desired(revision=revision, aliases=aliases, **rules).model_dump_json(by_alias=True))
    draft.replace(folder / "adapters.json")


async def answered(client: aiohttp.ClientSession, server: Server, wanted: dict[str, int]) -> None:
    """Wait until the limited client is answered like this, and see that it stays so."""
    found: dict[str, int] = {}
    async with asyncio.timeout(20):
        while found != wanted:
            await asyncio.sleep(0.1)
            found = {model: await status_of(client, server, model) for model in wanted}
    await asyncio.sleep(2)
    assert {model: await status_of(client, server, model) for model in wanted} == wanted


async def status_of(client: aiohttp.ClientSession, server: Server, model: str) -> int:
    body, headers = {"model": model, "messages": []}, {"Authorization": "Bearer key-of-web"}
    async with client.post(server.url + CHAT, json=body, headers=headers) as answer:
        return answer.status
