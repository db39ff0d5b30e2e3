"""The server of results: who gets an answer, what is listed, and which bytes a range has."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from tunery_api.fetching import GroupResults
from tunery_api.manifest import MANIFEST_NAME
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import RunSpec
from tunery_common.errors import TuneryError
from tunery_server.results import app as results_app
from tunery_server.results.app import ByteRange, ResultsServer, parse_range
from tunery_server.results.listing import Listing, read_listing
from tunery_server.results.program import HOST, Limits, serve

from kit.server.results import BEARER, REPORT, TOKEN, fetch_run, local, publish_result, sha256

WEIGHTS = "adapter_model.safetensors"
FILE = f"/v1/files/adapter/{WEIGHTS}"
SIZE = 200_000
Client = TestClient[Any, Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the object has published, and its reports folder has one file of it and one that is no report."""
    reports = tmp_path / "reports/uid-1"
    reports.mkdir(parents=True)
    (reports / "data-report.json").write_bytes(REPORT)
    (reports / "notes.txt").write_text("not a report")
    (tmp_path / "secret.txt").write_text("not a result")
    publish_result(tmp_path / "made", local(tmp_path / "out"))
    return tmp_path


def spec(root: Path, **fetch: Any) -> RunSpec:
    return fetch_run(root.as_uri(), **fetch)


def server_of(run: RunSpec) -> ResultsServer:
    assert run.fetch is not None
    return ResultsServer(run, run.fetch.token_sha256)


@pytest.fixture
async def client(root: Path) -> AsyncIterator[Client]:
    async with TestClient(TestServer(server_of(spec(root)).app())) as client:
        yield client


async def listed(client: Client) -> dict[str, GroupResults]:
    answer = await client.get("/v1/results", headers=BEARER)
    assert answer.status == 200
    return {each["group"]: GroupResults.model_validate(each) for each in await answer.json()}


# Who


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"Authorization": "Bearer"}, id="empty"),
        pytest.param({"Authorization": "Bearer another"}, id="another"),
        pytest.param({"Authorization": f"Basic {TOKEN}"}, id="basic"),
        pytest.param({"Authorization": TOKEN}, id="no-scheme"),
        pytest.param({"Authorization": f"Bearer {sha256(TOKEN.encode())}"}, id="the-digest-itself"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/results", FILE, "/", "/v1/files/adapter/../../etc/passwd"])
async def test_without_the_token_every_path_is_401(client: Client, path: str, headers: dict[str, str]) -> None:
    answer = await client.get(path, headers=headers)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await answer.json())["reason"] == "Unauthorized"


async def test_requests_without_the_token_keep_no_server_open(root: Path) -> None:
    now = 0.0
    run = spec(root)
    server = ResultsServer(run, str(run.fetch and run.fetch.token_sha256), clock=lambda: now)
    async with TestClient(TestServer(server.app())) as client:
        now = 60.0
        await client.get("/v1/results")
        assert server.idle_seconds() == 60
        await client.get("/v1/results", headers=BEARER)
        assert server.idle_seconds() == 0


# What


async def test_the_list_has_the_manifest_and_its_files_and_the_reports(client: Client, root: Path) -> None:
    groups = await listed(client)
    adapter, reports = groups["adapter"], groups["reports"]
    assert adapter.uri == (root / "out").as_uri()
    names = ["README.md", "adapter_config.json", WEIGHTS, "curve.jsonl", "training_curves.png"]
    assert [file.path for file in adapter.files] == [MANIFEST_NAME, *names]
    for file in adapter.files:
        data = (root / "out" / file.path).read_bytes()
        assert (file.size, file.sha256) == (len(data), sha256(data))
    found = {file.path: (file.size, file.sha256) for file in reports.files}
    assert found["data-report.json"] == (len(REPORT), None)
    assert set(found) == {"curve.jsonl", "training_curves.png", "data-report.json"}
    assert adapter.reason is None
    assert reports.reason is None


async def test_each_listed_file_is_served(client: Client, root: Path) -> None:
    folders = {"adapter": [root / "out"], "reports": [root / "out", root / "reports/uid-1"]}
    for group in (await listed(client)).values():
        for file in group.files:
            answer = await client.get(f"/v1/files/{group.group}/{file.path}", headers=BEARER)
            paths = (folder / file.path for folder in folders[group.group])
            stored = next(path.read_bytes() for path in paths if path.exists())
            assert (answer.status, await answer.read()) == (200, stored)
            assert (answer.headers["Accept-Ranges"], answer.content_length) == ("bytes", file.size)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("adapter/missing.bin", id="missing"),
        pytest.param("reports/notes.txt", id="stored-but-no-report"),
        pytest.param("adapter/../secret.txt", id="dots"),
        pytest.param("adapter/%2e%2e/secret.txt", id="escaped-dots"),
        pytest.param("adapter/..%2Fsecret.txt", id="escaped-slash"),
        pytest.param("adapter//etc/passwd", id="absolute"),
        pytest.param("adapter/%2Fetc%2Fpasswd", id="escaped-absolute"),
        pytest.param(f"another/{WEIGHTS}", id="group"),
        pytest.param("adapter/.tunery-claim", id="own"),
    ],
)
async def test_what_is_not_listed_is_not_served(client: Client, path: str) -> None:
    url = client.make_url("/").with_path(f"/v1/files/{path}", encoded=True)
    async with aiohttp.ClientSession() as session, session.get(url, headers=BEARER) as answer:
        body = await answer.json()
        assert answer.status == 404
        assert body["reason"] in ("StorageNotFound", "NotFound")


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("DELETE", 405), ("HEAD", 405)])
async def test_nothing_is_written(client: Client, method: str, status: int) -> None:
    assert (await client.request(method, FILE, headers=BEARER)).status == status


async def test_an_object_without_a_result_has_its_reports(root: Path) -> None:
    run = spec(root).model_copy(update={"output_uri": (root / "nothing").as_uri()})
    adapter, reports = read_listing(run).groups
    assert (adapter.files, adapter.reason) == ([], FailureReason.ADAPTER_MISSING)
    assert adapter.message == f"LoRAJob team-a/support-bot has published nothing at {(root / 'nothing').as_uri()}"
    assert [file.path for file in reports.files] == ["data-report.json"]


async def test_an_object_without_anything_says_so_in_both_groups(tmp_path: Path) -> None:
    run = spec(tmp_path)
    groups = read_listing(run).groups
    assert [group.reason for group in groups] == [FailureReason.ADAPTER_MISSING, FailureReason.STORAGE_NOT_FOUND]
    assert all(group.message for group in groups)


async def test_the_result_of_another_object_is_not_served(tmp_path: Path) -> None:
    publish_result(tmp_path / "made", local(tmp_path / "out"), "uid-2")
    adapter, reports = read_listing(spec(tmp_path)).groups
    assert (adapter.files, adapter.reason) == ([], FailureReason.ADAPTER_MISSING)
    assert "the result of another object" in str(adapter.message)
    assert reports.files == []


async def test_a_result_that_was_replaced_since_is_not_served(root: Path) -> None:
    adapter, reports = read_listing(spec(root, result_uri=(root / "out").as_uri(), manifest_sha256="ab" * 32)).groups
    assert (adapter.files, adapter.reason) == ([], FailureReason.ADAPTER_CORRUPT)
    assert (reports.files, reports.reason) == ([], FailureReason.ADAPTER_CORRUPT)


async def test_what_is_published_later_is_listed_and_served_then(tmp_path: Path) -> None:
    async with TestClient(TestServer(server_of(spec(tmp_path)).app())) as client:
        answer = await client.get(FILE, headers=BEARER)
        assert (answer.status, (await answer.json())["reason"]) == (404, "AdapterMissing")
        publish_result(tmp_path / "made", local(tmp_path / "out"))
        answer = await client.get(FILE, headers=BEARER)
        assert (answer.status, len(await answer.read())) == (200, SIZE)
        assert WEIGHTS in [file.path for file in (await listed(client))["adapter"].files]


# Which bytes


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        (None, 10, None),
        ("bytes=0-0", 10, ByteRange(0, 1)),
        ("bytes=3-", 10, ByteRange(3, 7)),
        ("bytes=3-99", 10, ByteRange(3, 7)),
        ("bytes=-4", 10, ByteRange(6, 4)),
        ("bytes=-99", 10, ByteRange(0, 10)),
    ],
)
def test_a_range_is_within_the_file(header: str | None, size: int, expected: ByteRange | None) -> None:
    request = make_mocked_request("GET", "/", headers={"Range": header} if header else {})
    assert parse_range(request, size) == expected


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=0-", 0),
        ("bytes=-0", 10),
        ("bytes=5-4", 10),
        ("bytes=0-1,4-5", 10),
        ("bytes=-", 10),
        ("rows=0-1", 10),
        ("bytes=a-b", 10),
    ],
)
def test_any_other_range_is_rejected(header: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_range(make_mocked_request("GET", "/", headers={"Range": header}), size)


async def test_ranges_put_together_are_the_file(client: Client, root: Path) -> None:
    parts = []
    for start in range(0, SIZE, 70_000):
        end = min(start + 70_000, SIZE) - 1
        answer = await client.get(FILE, headers={**BEARER, "Range": f"bytes={start}-{end}"})
        assert (answer.status, answer.headers["Content-Range"]) == (206, f"bytes {start}-{end}/{SIZE}")
        parts.append(await answer.read())
    assert b"".join(parts) == (root / "out" / WEIGHTS).read_bytes()


async def test_a_range_behind_the_end_is_416_with_the_size(client: Client) -> None:
    answer = await client.get(FILE, headers={**BEARER, "Range": f"bytes={SIZE}-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert (await answer.json())["reason"] == "RangeNotSatisfiable"


# Failures


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (FailureReason.STORAGE_NOT_FOUND, 404),
        (FailureReason.ADAPTER_MISSING, 404),
        (FailureReason.STORAGE_ACCESS_DENIED, 403),
        (FailureReason.SECRET_NOT_FOUND, 403),
        (FailureReason.ADAPTER_CORRUPT, 409),
        (FailureReason.STORAGE_UNAVAILABLE, 502),
        (FailureReason.DISK_FULL, 500),
    ],
)
async def test_each_failure_has_its_status(
    client: Client, monkeypatch: pytest.MonkeyPatch, reason: FailureReason, status: int
) -> None:
    def fail(*_: object) -> None:
        raise TuneryError(reason, "the cause")

    monkeypatch.setattr(Listing, "open", fail)
    answer = await client.get(FILE, headers=BEARER)
    assert (answer.status, await answer.json()) == (status, {"reason": reason.value, "message": "the cause"})


async def test_a_bug_is_500_and_its_text_stays_in_the_log(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise KeyError("a secret detail")

    monkeypatch.setattr(results_app, "read_listing", fail)
    answer = await client.get("/v1/results", headers=BEARER)
    assert (answer.status, (await answer.json())["reason"]) == (500, "InternalError")
    assert "secret detail" not in await answer.text()


async def test_a_file_that_is_lost_halfway_ends_the_connection(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Listing.open

    def open_file(listing: Listing, group: str, path: str) -> Any:
        place, entry = opened(listing, group, path)

        class Breaking:
            def stream(self, *_: object) -> Any:
                yield b"x" * 1000
                raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "reset by peer")

        return place._replace(store=Breaking()), entry  # type: ignore[arg-type]

    monkeypatch.setattr(Listing, "open", open_file)
    answer = await client.get(FILE, headers=BEARER)
    assert answer.status == 200
    with pytest.raises(aiohttp.ClientError):
        await answer.read()


# The end


async def test_it_ends_with_success_when_no_client_asks_any_more(root: Path, unused_tcp_port: int) -> None:
    serving = asyncio.create_task(serve(spec(root), Limits(unused_tcp_port, idle_seconds=1.5)))
    async with aiohttp.ClientSession(headers=BEARER) as session:
        for _ in range(5):
            await asyncio.sleep(0.5)
            async with session.get(f"http://{HOST}:{unused_tcp_port}/v1/results") as answer:
                assert answer.status == 200
    assert not serving.done(), "each request keeps it open"
    assert await asyncio.wait_for(serving, 5) is ExitCode.OK


async def test_it_ends_at_once_on_sigterm(root: Path, unused_tcp_port: int) -> None:
    serving = asyncio.create_task(serve(spec(root), Limits(unused_tcp_port)))
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(serving, 2) is ExitCode.TERMINATED


async def test_without_a_digest_nothing_is_served(root: Path) -> None:
    with pytest.raises(TuneryError, match="no token digest"):
        await serve(spec(root).model_copy(update={"fetch": None}), Limits(0))
