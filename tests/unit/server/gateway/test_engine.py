"""The engine behind the gateway: its failures, as clients are told; its health and its metrics, as the cluster is."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from tunery_api.redact import register_secret
from tunery_server.__main__ import Replica
from tunery_server.adapters.loop import Loader
from tunery_server.gateway import engine_metrics, proxy
from tunery_server.gateway.app import HEALTH_AGE
from tunery_server.gateway.auth import ApiKeys
from tunery_server.gateway.engine_metrics import public

from kit.server.gateway import BASE, BOT, FakeEngine, Handler, Site, event, open_site, write_keys


def answering(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Handler:
    """Return a handler that answers with this."""

    async def handle(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=raw, headers=headers or {"Content-Type": "application/json"})

    return handle


async def refused(site: Site, **given: Any) -> tuple[int, str]:
    """Ask, and return status and message of the refusal."""
    answer = await site.ask({"model": "support-bot", "messages": []} | given)
    return answer.status, answer.error["message"]


async def test_what_the_engine_says_of_a_request_reaches_the_client_as_it_is(tmp_path: Path) -> None:
    said = {
        "error": {"message": "max_tokens must be at least 1", "type": "BadRequestError", "param": None, "code": 400}
    }
    async with open_site(tmp_path) as site:
        site.engine.handler = answering(400, said)
        answer = await site.ask()
        assert (answer.status, answer.json) == (400, said)
        assert answer.headers["X-Tunery-Adapter"] == BOT


async def test_what_the_engine_says_of_itself_is_short_and_without_credentials(tmp_path: Path) -> None:
    register_secret("a-registered-secret")
    words = "CUDA error at /opt/x with a-registered-secret and hf_abcdefghijkl " + "trace " * 5000
    async with open_site(tmp_path) as site:
        for body in ({"error": {"message": words}}, words.encode(), {"detail": words}, [words]):
            site.engine.handler = answering(500, body)
            status, message = await refused(site)
            assert status == 500
            assert "CUDA error" in message
            assert len(message.encode()) <= 512
            assert "a-registered-secret" not in message
            assert "hf_abcdefghijkl" not in message
        site.engine.handler = answering(503, b"", {"Content-Type": "text/html"})
        assert await refused(site) == (503, "The engine failed: it does not say why")


async def test_an_adapter_that_the_engine_has_lost_is_told_as_not_served(tmp_path: Path) -> None:
    """The engine was started again, and the loader does not know yet."""
    async with open_site(tmp_path) as site:
        site.engine.handler = answering(404, {"error": {"message": "no such model"}})
        answer = await site.ask()
        assert (answer.status, answer.error["code"]) == (503, "EngineFailed")
        assert "Retry-After" in answer.headers
        assert (await site.ask({"model": BASE})).status == 404


async def test_a_replica_is_ready_once_the_operator_knows_what_it_serves(tmp_path: Path) -> None:
    """Else its status would say of a replica that comes back what that said while it came up: Loading."""
    async with open_site(tmp_path) as site:
        site.gateway.told = lambda: False
        answer = await site.get("/readyz")
        assert (answer.status, answer.body) == (503, b"the operator is being told what is served")
        assert (await site.ask()).status == 200, "who asks is answered all the same"
        site.gateway.told = lambda: True
        assert (await site.get("/readyz")).status == 200


async def test_while_nobody_gets_in_the_operator_is_not_told_that_requests_may_come(tmp_path: Path) -> None:
    """Else a replica whose keys come would be ready while its status says that they are missing."""
    keys = write_keys(tmp_path / "keys")
    async with open_site(tmp_path) as site:
        site.gateway.keys, loader = ApiKeys(keys, itertools.count(0, 5).__next__), cast(Loader, site.loader)
        replica = Replica(loader, site.gateway)
        assert (replica.state().reason, replica.ready()) == ("SecretNotFound", False)
        write_keys(tmp_path / "keys", alice="key-of-alice")
        assert (replica.state().reason, replica.ready()) == (None, True)


SHUTDOWN = "cannot schedule new futures after shutdown"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_engine_that_is_being_stopped_is_no_failure_and_sends_clients_elsewhere(
    stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_site(tmp_path) as site:
        said = {"error": {"message": SHUTDOWN, "type": "Internal Server Error", "param": None, "code": 500}}
        site.engine.handler = answering(500, said)
        answer = await site.ask({"model": "support-bot", "stream": stream})
        assert (answer.status, answer.error["code"]) == (503, "EngineFailed")
        assert "is being stopped" in answer.error["message"]
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["Connection"] == "close"
        assert (await site.get("/readyz")).body == b"the engine is being stopped"
        assert (await site.get("/healthz/engine")).status == 200, "the kubelet is not to end it once more"
        site.engine.handler = None
        answer = await site.ask()
        assert (answer.status, answer.headers.get("Connection")) == (200, None)
        assert (await site.get("/readyz")).status == 200
        site.engine.handler = answering(500, said)
        await site.ask()
        monkeypatch.setattr("tunery_server.gateway.dying.STANDS_SECONDS", 0.0)
        assert (await site.get("/readyz")).status == 200


async def test_a_request_whose_engine_dies_is_told_so_on_its_last_connection(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        words = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        site.engine.handler = answering(500, {"error": {"message": words, "code": 500}})
        answer = await site.ask()
        assert (answer.status, answer.error["code"]) == (503, "EngineDied")
        assert answer.headers["Connection"] == "close"
        assert "Retry-After" in answer.headers


@pytest.mark.parametrize("body", [{"error": {"message": f"no: {SHUTDOWN}"}}, {"error": SHUTDOWN}, [SHUTDOWN], b"{"])
async def test_other_words_of_an_engine_are_not_taken_for_its_end(body: Any, tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        site.engine.handler = answering(500, body)
        answer = await site.ask()
        assert (answer.status, answer.error["code"]) == (500, "engine_error")
        assert "Connection" not in answer.headers
        assert (await site.get("/readyz")).status == 200


async def test_an_engine_that_leads_elsewhere_or_answers_without_end_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_server.gateway.answers.MAX_ANSWER", 1000)
    async with open_site(tmp_path) as site:
        site.engine.handler = answering(307, b"", {"Location": "http://elsewhere.example/"})
        assert (await refused(site))[0] == 502
        site.engine.handler = answering(200, b"x" * 1001)
        assert (await refused(site))[0] == 502
        site.engine.handler = answering(200, b"<html>", {"Content-Type": "text/html"})
        assert (await site.ask()).headers["Content-Type"] == "application/json"


async def test_while_the_engine_is_gone_requests_end_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with open_site(tmp_path, start=False) as site:
        started = time.monotonic()
        for stream in (False, True) * 5:
            answer = await site.ask({"model": "support-bot", "stream": stream})
            assert (answer.status, answer.error["code"]) == (503, "EngineFailed")
            assert "Retry-After" in answer.headers
        assert time.monotonic() - started < 2
        own = [record for record in caplog.records if record.name.startswith("tunery_server")]
        assert len(own) == 1
        await site.engine.start()
        assert (await site.ask()).status == 200
        await site.engine.stop()
        assert (await site.ask()).status == 503
        assert len([record for record in caplog.records if record.name.startswith("tunery_server")]) == 2
        assert site.routes.in_flight() == 0


async def test_an_engine_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "FIRST_SECONDS", 0.2)
    async with open_site(tmp_path) as site:
        site.engine.handler = hanging
        assert (await refused(site))[0] == 503
        await asyncio.wait_for(site.engine.aborted.wait(), 1)


async def hanging(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError(request)


async def test_a_connection_that_the_engine_closed_meanwhile_costs_no_request(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        asked = 0

        async def closing(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            nonlocal asked
            asked += 1
            if asked == 2:  # as where the request crosses the end of an idle connection
                assert request.transport is not None
                request.transport.abort()
            return await FakeEngine.default(site.engine, request, body)

        site.engine.handler = closing
        assert [(await site.ask()).status for _ in range(3)] == [200, 200, 200]
        assert asked == 4


async def test_probes_say_what_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery_server.gateway.app.HEALTH_AGE", 0)
    async with open_site(tmp_path, start=False) as site:
        started = time.monotonic()
        assert (await site.get("/healthz/engine")).status == 503
        assert (await site.get("/readyz")).body == b"the engine does not answer"
        assert (await site.get("/livez")).status == 200
        assert time.monotonic() - started < 1
        await site.engine.start()
        assert (await site.get("/healthz/engine")).status == 200
        assert (await site.get("/readyz")).status == 200
        site.loader.is_ready, site.loader.message = False, "support-bot is being loaded"
        answer = await site.get("/readyz")
        assert (answer.status, answer.body) == (503, b"support-bot is being loaded")
        assert (await site.get("/healthz/engine")).status == 200
        site.loader.is_ready = True
        site.engine.healthy = False
        assert (await site.get("/healthz/engine")).status == 503
        site.engine.healthy = True
        site.gateway.ending = True
        assert (await site.get("/readyz")).body == b"told to stop"
        assert (await site.ask()).status == 200


async def test_an_engine_that_loads_does_not_hold_its_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunery_server.gateway.app.HEALTH_SECONDS", 0.2)
    async with open_site(tmp_path) as site:
        site.engine.slow_health = 60
        started = time.monotonic()
        answers = await asyncio.gather(*(site.get("/healthz/engine") for _ in range(20)))
        assert {answer.status for answer in answers} == {503}
        assert time.monotonic() - started < HEALTH_AGE


async def test_the_metrics_of_gateway_and_engine_are_one_page(tmp_path: Path) -> None:
    async with open_site(tmp_path, write_keys(tmp_path / "keys", alice="key-of-alice")) as site:
        before = time.time()
        await site.ask(headers={"Authorization": "Bearer key-of-alice"})
        await site.ask({"model": "random"}, headers={"Authorization": "Bearer key-of-alice"})
        answer = await site.get("/metrics")
        text = answer.body.decode()
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        for line in (
            'tunery_adapter_requests_total{adapter="support-bot",client="alice",code="200"} 1.0',
            'tunery_adapter_requests_total{adapter="",client="alice",code="404"} 1.0',
            'tunery_adapter_tokens_total{adapter="support-bot",client="alice",kind="prompt"} 7.0',
            'tunery_adapter_tokens_total{adapter="support-bot",client="alice",kind="completion"} 3.0',
            'tunery_adapter_served{adapter="support-bot"} 1.0',
            "tunery_requests_in_flight 0.0",
            'vllm:lora_requests_info{running_lora_adapters="support-bot,tone",waiting_lora_adapters=""} 1.0',
            'vllm:request_success_total{finished_reason="stop",model_name="support-bot"} 4.0',
            'vllm:num_requests_waiting{model_name="SmolLM2-135M"} 2.0',
        ):
            assert line in text.splitlines()
        used = await site.metric('tunery_adapter_last_used_timestamp_seconds{adapter="support-bot"}')
        assert used is not None
        assert before <= used <= time.time()
        assert "forged" not in text
        assert "random" not in text


async def test_metrics_of_what_is_served_no_more_go(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site:
        await site.ask()
        site.routes.hold("support-bot", "Loading", "is being loaded")
        assert b'adapter="support-bot"' in (await site.get("/metrics")).body
        site.routes.drop("support-bot")
        assert b'adapter="support-bot"' not in (await site.get("/metrics")).body
        for number in range(100):
            site.routes.serve(f"bot-{number}", f"bot-{number}@{number:012}", f"{number:064}")
            await site.ask({"model": f"bot-{number}"})
            site.routes.drop(f"bot-{number}")
        assert len(site.gateway.metrics._requests) <= 2


async def test_what_the_engine_cannot_tell_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_metrics, "MAX_BYTES", 10_000)
    async with open_site(tmp_path) as site:
        site.engine.metrics = "vllm:x 1\n" * 2000
        assert b"vllm" not in (await site.get("/metrics")).body
        await site.engine.stop()
        text = (await site.get("/metrics")).body
        assert b"tunery_requests_in_flight" in text


def test_two_versions_of_one_adapter_are_one_series() -> None:
    lines = [f'vllm:x{{model_name="bot@{digit * 12}",le="1"}} 5' for digit in "ab"]
    assert public("\n".join([*lines, 'vllm:y{m="a@b"} 1'])) == 'vllm:x{model_name="bot",le="1"} 5\nvllm:y{m="a@b"} 1\n'


@pytest.mark.slow
async def test_tokens_are_counted_for_who_asked_over_many_mixed_requests(tmp_path: Path) -> None:
    keys = {"alice": "key-of-alice", "bob": "key-of-bob"}
    told: Counter[tuple[str, str, str]] = Counter()
    async with open_site(tmp_path, write_keys(tmp_path / "keys", **keys)) as site:

        async def ask(number: int) -> None:
            client, model = ("alice", "bob")[number % 2], ("support-bot", BASE)[number % 3 == 0]
            body = {"model": model, "stream": number % 5 == 0, "max_tokens": number}
            if number % 10 == 0:
                body["stream_options"] = {"include_usage": True}
            answer = await site.ask(body, headers={"Authorization": f"Bearer {keys[client]}"})
            assert answer.status == 200, answer.body
            usage = usage_of(number)
            seen = [json.loads(found) for found in re.findall(rb'"usage": ?({.*?})', answer.body)]
            assert seen == ([] if number % 5 == 0 and number % 10 else [usage]), "a stream tells it where that is asked"
            for kind in ("prompt", "completion"):
                told[model, client, kind] += usage[f"{kind}_tokens"]

        def usage_of(number: int) -> dict[str, int]:
            return {"prompt_tokens": 3 * number + 1, "completion_tokens": number}

        async def counting(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            usage = usage_of(body["max_tokens"])
            if not body["stream"]:
                return web.json_response({"choices": [{}], "usage": usage})
            data = event({"choices": [{}]}) + event({"choices": [], "usage": usage})
            return web.Response(body=data, headers={"Content-Type": "text/event-stream"})

        site.engine.handler = counting
        await asyncio.gather(*(ask(number) for number in range(1000)))
        for (model, client, kind), tokens in told.items():
            series = f'tunery_adapter_tokens_total{{adapter="{model}",client="{client}",kind="{kind}"}}'
            assert await site.metric(series) == tokens
