"""The progress endpoint under attack: junk costs nothing, slow connections end, good reports are accepted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tunery_api.kinds import Kind
from tunery_api.runspec import TrainerStatus
from tunery_operator.observed.metadata import Key
from tunery_operator.progress.auth import read_claim
from tunery_operator.progress.server import MIN_SECONDS, Limits, Pace, read_report
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.priority_queue import Priority

from kit.operator.reporting import Pods, Reviews, Site, certificates, pod, token
from kit.operator.server_bodies import replica, see_replicas

REPORT = {"trainerStatus": {"progressPercentage": 1, "step": 1}}
QUICK = Limits(handshake=0.5, idle=1.0)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("tls"))


def site(tls: Path, limits: Limits | None = None, pods: int = 1, **more: Any) -> Site:
    return Site(tls, Pods({pod(index) for index in range(pods)}), limits or Limits(), **more)


async def report(at: Site, bearer: str, body: Any = REPORT, session: aiohttp.ClientSession | None = None) -> Answer:
    """Post a report, over a connection of its own unless a session is given."""
    own = session or aiohttp.ClientSession()
    try:
        headers = {"Authorization": f"Bearer {bearer}"}
        async with own.post(at.url, json=body, headers=headers, ssl=at.trust) as answer:
            return Answer(answer.status, answer.headers.get("Retry-After"), await answer.json())
    finally:
        if session is None:
            await own.close()


class Answer:
    """An HTTP answer."""

    def __init__(self, status: int, retry_after: str | None, body: Any) -> None:
        self.status, self.retry_after, self.body = status, retry_after, body


async def half_open(at: Site, head: bytes) -> asyncio.StreamReader:
    """Return the reading end of a TLS connection that has sent only `head`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port, ssl=at.trust)
    writer.write(head)
    await writer.drain()
    reader.writer = writer  # type: ignore[attr-defined] # keeps the connection open
    return reader


async def at_most(seconds: float, read: Awaitable[bytes]) -> bytes | None:
    """Return what was read, None where the peer cut the connection off."""
    try:
        async with asyncio.timeout(seconds):
            return await read
    except ConnectionError:
        return None


async def until(check: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_a_good_report_names_the_interval(tls: Path) -> None:
    async with site(tls) as at:
        answer = await report(at, token(pod()))
        assert (answer.status, answer.body) == (200, {"message": "ok", "intervalSeconds": 3})
        assert at.queue.priorities == [Priority.LOW]


async def test_half_a_head_ends_at_its_deadline_and_holds_nobody_up(tls: Path) -> None:
    async with site(tls, QUICK) as at:
        slow = await asyncio.gather(*(half_open(at, b"POST / HTTP/1.1\r\nHost: x\r\n") for _ in range(150)))
        began = time.monotonic()
        assert (await report(at, token(pod()))).status == 200
        assert time.monotonic() - began < 5
        async with asyncio.timeout(20):
            ends = await asyncio.gather(*(reader.read() for reader in slow), return_exceptions=True)
        assert all(end == b"" or isinstance(end, ConnectionError) for end in ends)
        await until(lambda: at.server.connections() == 0)


async def test_a_head_that_drips_and_a_body_that_never_ends_end_too(tls: Path) -> None:
    async with site(tls, QUICK) as at:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(pod())}\r\nContent-Length: 100\r\n\r\n"
        body = await half_open(at, head.encode())
        dripping = await half_open(at, b"POST / HTTP/1.1\r\n")

        async def drip() -> None:
            while True:
                dripping.writer.write(b"X-A: b\r\n")  # type: ignore[attr-defined]
                await asyncio.sleep(0.1)

        task = asyncio.create_task(drip())
        async with asyncio.timeout(20):
            await asyncio.gather(body.read(), dripping.read(), return_exceptions=True)
        task.cancel()


async def test_a_thousand_idle_connections_cost_little_memory_and_keep_no_pod_from_reporting(tls: Path) -> None:
    async with site(tls, Limits(handshake=2.0)) as at:
        assert (await report(at, token(pod()))).status == 200
        before = resident_bytes()
        silent = [await asyncio.open_connection("127.0.0.1", at.port) for _ in range(1000)]
        await until(lambda: at.server.connections() >= at.server._limits.handshakes)
        assert resident_bytes() - before < 60 * 2**20
        await asyncio.sleep(MIN_SECONDS)
        assert (await report(at, token(pod()))).status == 200
        async with asyncio.timeout(20):
            await asyncio.gather(*(reader.read() for reader, _ in silent), return_exceptions=True)
        await until(lambda: at.server.connections() == 0)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_there_is_a_cap_on_all_connections(tls: Path) -> None:
    async with site(tls, Limits(connections=3)) as at:
        held = [await half_open(at, b"") for _ in range(3)]
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await report(at, token(pod()))
        held[0].writer.close()  # type: ignore[attr-defined]
        await until(lambda: at.server.connections() == 2)
        assert (await report(at, token(pod()))).status == 200


async def test_a_connection_is_kept_alive_and_ends_when_idle(tls: Path) -> None:
    async with site(tls, Limits(idle=1.5), pods=20) as at, aiohttp.ClientSession() as session:
        for index in range(20):
            assert (await report(at, token(pod(index)), session=session)).status == 200
        assert at.server.connections() == 1
        await until(lambda: at.server.connections() == 0)


async def test_junk_tokens_cost_no_review(tls: Path) -> None:
    async with site(tls) as at, aiohttp.ClientSession() as session:
        strangers = [token(pod(1000 + index)) for index in range(100)]
        others = [token(pod(), audience="api", signature=f"s{index}") for index in range(100)]
        over = [token(pod(), seconds=-1, signature=f"s{index}") for index in range(100)]
        words = [f"{index}.{'x' * (index % 4)}.junk" for index in range(100)]
        answers = [(await report(at, junk, session=session)).status for junk in strangers + others + over + words]
        assert answers == [403] * 100 + [401] * 300
        assert at.reviews.count == 0


async def test_a_replica_that_is_faster_than_its_proof_is_asked_to_come_again(tls: Path) -> None:
    async with site(tls) as at:
        at.pods.unproven.add(pod(7))
        answer = await report(at, token(pod(7)))
        assert (answer.status, answer.retry_after) == (503, "1")
        assert at.reviews.count == 0, "and costs nothing"


async def test_a_forged_token_is_refused_and_never_makes_a_good_one_forgotten(tls: Path) -> None:
    async with site(tls) as at, aiohttp.ClientSession() as session:
        good = token(pod())
        assert (await report(at, good, session=session)).status == 200
        forged = [token(pod(), signature=f"forged-{index}") for index in range(20)]
        assert {(await report(at, one, session=session)).status for one in forged} == {401}
        assert at.reviews.count == 21
        await asyncio.sleep(MIN_SECONDS)
        assert (await report(at, good, session=session)).status == 200
        assert at.reviews.count == 21


async def test_a_review_that_confirms_no_audience_proves_nothing(tls: Path) -> None:
    async with site(tls, reviews=Reviews(audiences=())) as at, aiohttp.ClientSession() as session:
        assert (await report(at, token(pod()), session=session)).status == 401


async def test_many_reports_with_one_new_token_cost_one_review(tls: Path) -> None:
    async with site(tls, reviews=Reviews(seconds=0.3)) as at, aiohttp.ClientSession() as session:
        same = token(pod())
        answers = await asyncio.gather(*(report(at, same, session=session) for _ in range(10)))
        assert sorted(answer.status for answer in answers) == [200] + [429] * 9
        assert at.reviews.count == 1


@pytest.mark.slow
async def test_an_api_server_that_hangs_costs_a_report_and_nothing_else(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_operator.progress.auth.REVIEW_SECONDS", 0.2)
    async with site(tls, pods=20, reviews=Reviews(seconds=1.0)) as at, aiohttp.ClientSession() as session:
        answers = await asyncio.gather(*(report(at, token(pod(index)), session=session) for index in range(20)))
        assert {(answer.status, answer.retry_after) for answer in answers} == {(503, "2")}


@pytest.mark.parametrize("led_before", [False, True])
async def test_a_stand_by_sends_pods_to_the_leader(tls: Path, led_before: bool) -> None:
    async with site(tls, leads=led_before) as at, aiohttp.ClientSession() as session:
        if led_before:
            assert (await report(at, token(pod()), session=session)).status == 200
            at.leads = False
        answer = await report(at, token(pod()), session=session)
        assert (answer.status, answer.retry_after) == (503, "1")
        await until(lambda: at.server.connections() == 0)


async def test_garbage_is_no_error_of_ours(tls: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with site(tls, QUICK) as at:
        for garbage in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\n" + b"a" * 20_000):
            async with asyncio.timeout(10):
                await asyncio.gather((await half_open(at, garbage)).read(), return_exceptions=True)
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(10):
            await asyncio.gather(reader.read(), return_exceptions=True)
        broken = f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(pod())}\r\nContent-Length: 9\r\n\r\n{{"
        body = await half_open(at, broken.encode())
        body.writer.close()  # type: ignore[attr-defined]
        await until(lambda: at.server.connections() == 0)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_interval_grows_with_the_pods() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for count, interval in ((1, 3), (600, 3), (601, 4), (2000, 10), (70_000, 300)):
        for index in range(count):
            pace.admits(f"pod-{index}")
        assert pace.interval() == interval
    now = 1000.0
    assert pace.admits("pod-0")
    assert pace.interval() == 3, "pods that report no more do not count"


async def test_the_interval_of_servers_replicas_grows_with_their_number(tls: Path) -> None:
    cache = Cache()
    said = {"replicaStatus": {"revision": 1, "engineReady": True}}
    async with Site(tls, Pods(set()), cache=cache) as at:
        for count, interval in ((1, 5), (500, 5), (501, 6), (1000, 10), (1600, 15)):
            see_replicas(cache, count)
            answer = await report(at, token(replica(count - 1)), said)
            assert (answer.status, answer.body) == (200, {"intervalSeconds": interval}), count


@pytest.mark.parametrize(
    "junk", ["", "a.b", "a.b.c", "a.W10.c", "a.eyJhdWQiOiAxfQ.c", "ä.ö.ü", "a." + "W" * 9000 + ".c"]
)
def test_what_is_no_token_claims_nothing(junk: str) -> None:
    assert read_claim(junk) is None


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("2026-01-31T11:59:59.123+00:00", True),
        ("2026-01-31T12:59:59+02:00", True),
        ("yesterday", False),
        ("2026-01-31T11:59:59", False),
        ("2026-01-31", False),
        ("2026-02-30T00:00:00Z", False),
        ((NOW + timedelta(days=1)).isoformat(), False),
        (None, False),
    ],
)
def test_an_invalid_or_future_time_becomes_the_operators(text: str | None, kept: bool) -> None:
    assert read({"lastUpdatedTime": text}).last_updated_time == (text if kept else "2026-01-31T12:00:00Z")


def test_a_report_loses_only_its_invalid_fields() -> None:
    """NaN of a diverged run, and numbers that no API server reads, hide nothing else."""
    huge = 10**300
    clean = read(
        {
            "progressPercentage": 7,
            "percent": 101,
            "step": huge,
            "totalSteps": 100,
            "epoch": "nan",
            "tokensPerSecond": "fast",
            "metrics": [{"name": "loss", "value": "nan"}, {"name": "lr", "value": "1e-5"}],
            "checkpoint": {"uri": "s3://a/b", "step": huge},
            "findings": [{"type": "LossRising", "severity": "Problem", "step": huge}],
            "evaluations": [{"step": 5, "loss": "1.5"}, {"step": 6, "loss": "nan"}],
        }
    )
    assert clean.to_json_dict() == {
        "progressPercentage": 7,
        "totalSteps": 100,
        "metrics": [{"name": "lr", "value": "1e-5"}],
        "findings": [],
        "evaluations": [{"step": 5, "loss": "1.5"}],
        "lastUpdatedTime": "2026-01-31T12:00:00Z",
    }


def test_texts_are_short_and_show_no_credential() -> None:
    leaky = "x s3://user:hunter2secret@bucket " * 12
    clean = read({"doing": leaky, "checkpointError": leaky, "device": leaky[:100], "curve": leaky})
    for text in (clean.doing, clean.checkpoint_error, clean.device, clean.curve):
        assert text is not None
        assert "hunter2secret" not in text
    assert len(clean.doing or "") <= 400


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"trainerStatus": 1}', "[" * 100_000, '{"trainerStatus": []}'])
def test_what_is_no_report_is_rejected(body: str) -> None:
    assert read_report(body.encode(), NOW) is None


@pytest.mark.parametrize("value", [{}, [], [[]], [{}], {"a": {}}, "", 1.5, True, None])
def test_a_field_of_any_type_makes_no_report_fail(value: object) -> None:
    for field in TrainerStatus.model_fields.values():
        clean = read({str(field.alias): value, "totalSteps": 100})
        assert clean.total_steps == 100 or field.alias == "totalSteps"


def read(status: dict[str, Any]) -> TrainerStatus:
    clean = read_report(json.dumps({"trainerStatus": status}).encode(), NOW)
    assert clean is not None
    return clean


async def test_what_a_pod_reports_is_for_its_own_object(tls: Path) -> None:
    async with site(tls, pods=2) as at:
        assert (await report(at, token(pod(1)))).status == 200
        assert list(at.pods.states) == [Key(Kind.LORAJOB, "ns", "job-1")]
