"""The program of a batch, and the server that it asks: what goes wrong has a reason, a sentence and an exit code."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import RunResult, Task
from tunery_common.errors import TuneryError
from tunery_common.termination import TERMINATION_PATH_ENV
from tunery_server.batch import program
from tunery_server.batch.lines import Line
from tunery_server.batch.requests import Request
from tunery_server.batch.server import Access, Server, Stopped

from kit.server.batch import HURRIED

RUN = {
    "identity": {"kind": "BatchInference", "namespace": "team", "name": "nightly", "uid": "u-1"},
    "outputUri": "s3://bucket/out",
    "image": "server@sha256:1",
}
SPEC = {"serverRef": {"name": "support"}, "input": {"uri": "s3://bucket/in.jsonl"}}


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where last words go; the handlers of signals are as before afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setenv(TERMINATION_PATH_ENV, str(tmp_path / "words"))
    yield tmp_path / "words"
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("task", [Task.BATCH, Task.REPORT])
@pytest.mark.parametrize(
    ("document", "reason", "text"),
    [
        (None, "InternalError", "run.json cannot be read"),
        ("{", "InternalError", "run.json cannot be read"),
        ({}, "InternalError", "is not what the operator writes"),
        (RUN, "InternalError", "run.json holds no BatchInference"),
        (
            RUN | {"batchInference": SPEC | {"temperature": 1}},
            "InvalidSpec",
            "this server image cannot run it: spec.temperature: ",
        ),
    ],
)
def test_a_run_that_cannot_begin_says_why(
    document: Any, reason: str, text: str, task: Task, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = words.parent / "run.json"
    if document is not None:
        whole = document if isinstance(document, str) else json.dumps(document | {"workDir": str(words.parent)})
        run.write_text(whole if document else "{}")
    code = program.main(run, task=task)
    failure = RunResult.model_validate_json(words.read_bytes()).failure
    assert failure is not None
    assert (failure.reason, code) == (reason, ExitCode.BUG if reason == "InternalError" else ExitCode.USER_ERROR)
    assert text in failure.message
    error = capsys.readouterr().err
    assert error.splitlines()[-2].startswith(f"{reason}: ")
    assert ("Traceback" in error) == (reason == "InternalError")
    if reason == "InvalidSpec":
        assert "use a server image of the operator's version" in failure.remedies[0].text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FailureReason.DISK_FULL),
        (OSError(errno.EACCES, "Permission denied"), FailureReason.INTERNAL_ERROR),
        (MemoryError(), FailureReason.OUT_OF_MEMORY),
        (KeyError("x"), FailureReason.INTERNAL_ERROR),
        (TuneryError(FailureReason.INPUT_INVALID, "no"), FailureReason.INPUT_INVALID),
    ],
)
def test_what_nobody_foresaw_has_a_reason_too(error: Exception, reason: FailureReason) -> None:
    assert program.explain(error).reason is reason


Answers = list[Callable[[web.Request], Any]]


class Odd:
    """A server that gives the answers of its list in turn, the last one again and again."""

    def __init__(self) -> None:
        self.answers: Answers = []
        self.asked = 0
        self.access = Access("", lambda: "key", "u-1", replace(HURRIED, outage=0.4))

    def says(self, *documents: Any, status: int = 200) -> None:
        """Answer with these from now on; bytes are given as they are."""
        self.answers = [_saying(document, status) for document in documents]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer = found(request)
        return await answer if asyncio.iscoroutine(answer) else answer


def _saying(document: Any, status: int) -> Callable[[web.Request], web.Response]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return lambda _: web.Response(body=data, status=status, content_type="application/json")


@pytest.fixture
async def odd() -> AsyncIterator[tuple[Odd, Server, asyncio.Event]]:
    """Yields a server, who asks it, and what stops the asking."""
    found, stop = Odd(), asyncio.Event()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.access = replace(found.access, url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    server = Server(found.access, stop)
    yield found, server, stop
    await server.close()
    await runner.cleanup()


LINE = Line(0, 1, b"{}")
ASKED = Request("a", "/v1/chat/completions", "tone", b"{}")


def error_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data)["error"]
    return found


async def test_a_list_of_models_that_is_none_ends_the_asking(odd: tuple[Odd, Server, asyncio.Event]) -> None:
    site, server, _ = odd
    site.says({"data": [{"id": "tone"}, {"id": 7}, "x"]})
    assert await server.models() == {"tone"}
    for wrong in ({"models": []}, [], b"<html>"):
        site.says(wrong)
        with pytest.raises(TuneryError, match="answered 200 and no list of models") as caught:
            await server.models()
        assert caught.value.reason is FailureReason.SERVER_UNAVAILABLE


async def test_a_server_that_is_not_up_yet_is_waited_for_and_no_longer_than_its_patience(
    odd: tuple[Odd, Server, asyncio.Event],
) -> None:
    site, server, _ = odd
    site.answers = [_saying({}, 503), _saying({}, 429), _saying({"data": []}, 200)]
    assert await server.models() == set()
    site.says({}, status=503)
    with pytest.raises(TuneryError, match="/v1/models cannot be asked: it answers 503"):
        await server.models()
    site.says({}, status=500)
    with pytest.raises(TuneryError, match="/v1/models/tone cannot be asked: it answers 500"):
        await server.standing("tone")
    site.answers = [lambda request: request.transport.close()]  # type: ignore[union-attr]
    with pytest.raises(TuneryError, match="/v1/models/tone cannot be asked: Server"):
        await server.standing("tone")


async def test_what_lines_wait_for_is_told_while_the_server_answers_none(
    odd: tuple[Odd, Server, asyncio.Event],
) -> None:
    site, server, _ = odd
    site.says({"error": {"message": "no room", "code": "busy"}}, status=429)
    asking = asyncio.create_task(server.ask(LINE, ASKED))
    while site.asked < 2:
        await asyncio.sleep(0.01)
    words = server.words(0.0)
    assert words is not None
    assert words.endswith("/v1 to answer: busy: no room")
    assert server.words(60.0) is None
    site.says({"choices": []})
    assert (await asking).ok
    assert server.words(0.0) is None


async def test_told_to_stop_nobody_waits_on_for_a_server(odd: tuple[Odd, Server, asyncio.Event]) -> None:
    site, server, stop = odd
    site.says({}, status=503)
    stop.set()
    for question in (server.models(), server.ask(LINE, ASKED)):
        with pytest.raises(Stopped):
            await question
    assert site.asked == 2


async def test_answers_that_are_none_are_errors_of_their_line(
    odd: tuple[Odd, Server, asyncio.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, server, _ = odd
    site.says([1])
    assert error_of((await server.ask(LINE, ASKED)).data)["code"] == "invalid_answer"
    assert site.asked == HURRIED.failures
    site.says(b"<html>no</html>", status=502)
    assert error_of((await server.ask(LINE, ASKED)).data) == {"code": "http_502", "message": "the server answered 502"}
    monkeypatch.setattr("tunery_server.batch.server.MAX_ANSWER", 1 << 20)
    site.asked = 0
    site.says({"text": "x" * (1 << 20)})
    assert error_of((await server.ask(LINE, ASKED)).data)["code"] == "answer_too_large"
    assert site.asked == 1, "it would be as large again"


async def test_an_answer_that_takes_too_long_is_an_error_of_its_line(
    odd: tuple[Odd, Server, asyncio.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, _, stop = odd
    site.answers = [lambda _: asyncio.sleep(0.3)]
    monkeypatch.setattr("tunery_server.batch.server._TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    hurried = Server(site.access, stop)
    assert error_of((await hurried.ask(LINE, ASKED)).data)["code"] == "timeout"
    await hurried.close()
    assert site.asked == HURRIED.failures


async def test_a_key_that_may_not_is_told_at_once(odd: tuple[Odd, Server, asyncio.Event]) -> None:
    site, server, _ = odd
    site.says({"data": []})
    await server.models()
    site.says({"error": {"message": "not yours"}}, status=403)
    for question in (server.models(), server.standing("tone"), server.ask(LINE, ASKED)):
        with pytest.raises(TuneryError, match="answers 403: not yours") as caught:
            await question
        assert caught.value.reason is FailureReason.SERVER_ACCESS_DENIED
