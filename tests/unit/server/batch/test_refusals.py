"""What a batch refuses before it asks, what it does with lines that fail, and how long it waits for a server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunery_api.failures import sentences
from tunery_api.names import PROGRESS_URL_ENV
from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_server.batch.check import Problems, check
from tunery_server.batch.lines import MAX_LINE, InputLines
from tunery_server.batch.requests import BadLine, parse
from tunery_server.gateway.dying import DIED, ENDS

from kit.server.batch import HURRIED, Table, jsonl, request, table
from kit.server.gateway import write_keys


def line(**more: Any) -> bytes:
    return json.dumps(request(0) | more).encode()


BAD = {
    b"{": "is not JSON",
    b"[]": "is not a JSON object",
    b'{"x": "\xff"}': "is not UTF-8",
    b"[" * 200_000: "is nested too deeply",
    b'{"a": NaN}': "NaN is no number of JSON",
    line(custom_id=""): "custom_id must be a text",
    line(custom_id=7): "custom_id must be a text",
    line(custom_id="x" * 513): "has 513 characters",
    line(method="GET"): 'method must be POST, not "GET"',
    line(url="/v1/embeddings"): 'not "/v1/embeddings"',
    line(url=["/v1"]): "url must be one of",
    line(body="x"): "body must be an object",
    line(body={}): "body.model is missing",
    line(body={"model": ""}): "body.model must be a text",
    line(body={"model": "\ud800"}): "body.model is no text: it has half a surrogate pair",
    line(body={"model": "tone", "stream": True}): "body.stream must be false",
    b" " * (MAX_LINE + 1): "has more than 10 MiB",
}


@pytest.mark.parametrize(("raw", "text"), BAD.items(), ids=list(BAD.values()))
def test_a_line_that_is_no_request_is_told_why(raw: bytes, text: str) -> None:
    with pytest.raises(BadLine, match=text.replace("[", r"\[")):
        parse(raw, None)


async def refused(here: Table, uri: str, **more: Any) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        await here.run(uri, **more)
    return caught.value


async def test_all_bad_lines_are_told_before_the_first_is_asked(tmp_path: Path) -> None:
    good = [json.dumps(request(number)).encode() for number in range(3)]
    bad = [line(custom_id=f"bad-{number}", method="GET") for number in range(30)]
    long = b'{"custom_id": "' + b"x" * MAX_LINE + b'"}'
    data = b"\n".join([good[0], *bad, good[1], long, good[0], good[2]])
    async with table(tmp_path) as here:
        error = await refused(here, here.put(data))
        assert error.reason is FailureReason.INPUT_INVALID
        assert "32 lines of pvc://data/in.jsonl cannot be asked: line 2: method must be POST" in error.message
        assert "line 21:" in error.message
        assert "line 22:" not in error.message
        stored = [json.loads(each) for each in here.place("parts-u-1").read_bytes("invalid-lines.jsonl").splitlines()]
        assert len(stored) == 32
        assert {"line": 33, "problem": "has more than 10 MiB"} in stored
        assert {"line": 34, "problem": "custom_id is that of line 1"} in stored
        assert error.facts["invalidLines"].endswith("invalid-lines.jsonl")
        assert not here.oracle.asked
        # Mended, it goes.
        here.put(b"\n".join(good))
        await here.run("pvc://data/in.jsonl")
        assert here.parts == []


async def test_bad_lines_and_models_are_told_in_one_file_in_the_order_of_the_lines(tmp_path: Path) -> None:
    lines = [
        request(0),
        request(1, model="toen"),
        request(0),
        {"x": 1},
        request(4, model="toen"),
        request(5, model="7"),
    ]
    async with table(tmp_path) as here:
        error = await refused(here, here.put(jsonl(lines)))
        assert error.reason is FailureReason.INPUT_INVALID
        assert error.message == (
            "spec.input.uri: 5 lines of pvc://data/in.jsonl cannot be asked: "
            "line 2: no model 'toen' at the server support; did you mean 'tone'?; "
            "line 3: custom_id is that of line 1; line 4: custom_id must be a text that is not empty; "
            "line 6: no model '7' at the server support; …"
        )
        stored = [json.loads(each) for each in here.place("parts-u-1").read_bytes("invalid-lines.jsonl").splitlines()]
        assert [each["line"] for each in stored] == [2, 3, 4, 5, 6]
        assert stored[3]["problem"] == stored[0]["problem"], "every line of an unknown model stands there"


def test_names_that_repeat_are_listed_in_the_order_of_their_lines(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(jsonl([*map(request, range(300)), {"x": 1}, *map(request, range(300))]))
    problems = Problems(tmp_path)
    check(InputLines(tmp_path / "in", "in"), None, tmp_path, problems)
    assert "301 lines of in cannot be asked: line 301: custom_id must be" in problems.failure("in").message
    stored = [json.loads(each)["line"] for each in problems.file.read_text().splitlines()]
    assert stored == list(range(301, 602))


@pytest.mark.parametrize("reached", [False, True], ids=["the server is away", "the key is wrong"])
async def test_where_the_server_cannot_be_asked_bad_lines_are_told_and_that_models_were_not(
    reached: bool, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys", other="right") if reached else None
    async with table(tmp_path, keys=keys) as here:
        if not reached:
            await here.site.runner.cleanup()
        error = await refused(here, here.put(jsonl([{"x": 1}, request(1, model="nobody")])))
        assert error.reason is FailureReason.INPUT_INVALID
        assert "1 line of pvc://data/in.jsonl cannot be asked: line 1: custom_id must be" in error.message
        said = error.message.partition("; the models were not checked: ")[2]
        assert said.startswith("spec.apiKeySecretRef is not set" if reached else f"{here.site.url}/v1/models cannot be")


async def test_a_model_that_the_key_may_not_ask_for_stands_among_other_bad_lines(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", batch="secret-key").model_copy(update={"field": "spec.apiKeySecretRef"})
    async with table(tmp_path, keys=keys) as here:
        here.keys = keys
        here.site.routes.allow({"batch": ["tone"]})
        error = await refused(here, here.put(jsonl([request(2), request(1), {"x": 1}])))
        assert error.reason is FailureReason.INPUT_INVALID
        assert (
            "line 2: the model 'support-bot' is not open to this API key by spec.access.clients of the server support"
        ) in error.message


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("pvc://data/none.jsonl", "has nothing at 'none.jsonl'"),
        ("pvc://data/empty.jsonl", "has no line"),
        ("pvc://data/folder", "is not one file"),
    ],
)
async def test_an_input_that_is_not_there_is_told(uri: str, text: str, tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.put(b"\n\n", "empty.jsonl")
        (tmp_path / "data" / "folder").mkdir()
        error = await refused(here, uri)
        assert text in error.message
        assert "dataset" not in sentences(error.remedies)


@pytest.mark.slow
async def test_unknown_models_are_told_before_the_first_line_and_one_that_loads_is_waited_for(tmp_path: Path) -> None:
    lines = [
        request(0),
        request(1, model="nobody"),
        request(2),
        request(3, model="team/late"),
        request(4, model="x y/é"),
    ]
    async with table(tmp_path) as here:
        here.site.routes.hold("team/late", "Loading", "is being loaded")
        error = await refused(here, here.put(jsonl(lines)))
        assert error.reason is FailureReason.INPUT_INVALID
        assert "line 2: no model 'nobody' at the server support; line 5: " in error.message
        assert "late" not in error.message
        assert not here.oracle.asked
        uri = here.put(jsonl([request(0), request(3, model="team/late")]))

        async def load() -> None:
            while not here.oracle.asked:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            here.site.routes.serve("team/late", "team/late@" + "5" * 12, "5" * 64)

        loading = asyncio.create_task(load())
        await here.run(uri)
        await loading
        assert [each["tunery"]["adapter"] for each in here.lines()] == [None, "team/late"]


async def test_lines_may_fail_up_to_the_limit_and_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.broken = {str(request(number)["body"]["messages"]) for number in (3, 17)}
        result = await here.run(here.put(jsonl(request(number) for number in range(25))), maxErrors=2)
        errors = here.lines("errors.jsonl")
        assert [each["custom_id"] for each in errors] == ["row-3", "row-17"]
        assert errors[0]["error"] == {"code": "too_long", "message": "too long"}
        assert errors[0]["response"]["status_code"] == 400
        assert [each["custom_id"] for each in here.lines()] == [f"row-{n}" for n in range(25) if n not in (3, 17)]
        assert result.answers is not None
        assert (result.answers.answered, result.answers.errors) == (23, 2)


async def test_more_errors_than_may_be_publish_nothing_and_a_retry_asks_them_alone(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        uri = here.put(jsonl(request(number) for number in range(45)))
        broken = [str(request(number)["body"]["messages"]) for number in (3, 4, 41)]
        here.oracle.broken = set(broken)
        error = await refused(here, uri, maxErrors=1)
        assert error.reason is FailureReason.REQUESTS_FAILED
        assert error.message == (
            "3 of the first 45 lines ended in an error, spec.maxErrors is 1: line 4: too_long: too long; "
            "line 5: too_long: too long; line 42: too_long: too long"
        )
        assert error.reached is not None
        assert error.reached.answers.errors == 3  # type: ignore[union-attr]
        assert here.listed("out-u-1") == []
        here.oracle.broken = {broken[1]}
        result = await here.run(uri, maxErrors=1)
        assert {count for content, count in here.oracle.asked.items() if content not in broken} == {1}
        assert {here.oracle.asked[content] for content in broken} == {2}
        assert [each["custom_id"] for each in here.lines()] == [f"row-{n}" for n in range(45) if n != 4]
        assert [each["custom_id"] for each in here.lines("errors.jsonl")] == ["row-4"]
        assert result.answers is not None
        assert (result.answers.answered, result.answers.errors, result.answers.prompt_tokens) == (44, 1, 220)
        assert sum(by.lines for by in result.answers.answered_by) == 44


async def test_a_file_of_failures_ends_early(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.broken = {str(request(number)["body"]["messages"]) for number in range(1000)}
        error = await refused(here, here.put(jsonl(request(number) for number in range(1000))))
        assert error.reason is FailureReason.REQUESTS_FAILED
        assert 101 <= sum(here.oracle.asked.values()) < 200


async def test_bad_answers_are_asked_again_and_at_last_are_errors(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.trouble = [500, 429, 503, 502]
        await here.run(here.put(jsonl([request(1)])), concurrency=1)
        assert len(here.lines()) == 1
        here.uid = "u-2"
        here.oracle.trouble = [500, 500, 500]
        error = await refused(here, here.put(jsonl([request(1)])))
        assert error.reason is FailureReason.REQUESTS_FAILED
        assert "line 1: engine_error: The engine failed: a bad day" in error.message


async def test_an_engine_that_is_being_stopped_is_waited_for_and_one_that_dies_of_a_line_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_server.batch.server.retry_after", lambda _: 0.05)
    async with table(tmp_path) as here:
        here.oracle.words = next(iter(ENDS))
        here.oracle.trouble = [500] * 3 * HURRIED.failures
        await here.run(here.put(jsonl([request(1)])), concurrency=1)
        assert len(here.lines()) == 1
        assert here.oracle.asked.total() == 3 * HURRIED.failures + 1
        here.uid = "u-2"
        here.oracle.words = next(iter(DIED))
        here.oracle.trouble = [500] * 3 * HURRIED.failures
        error = await refused(here, here.put(jsonl([request(1)])))
        assert error.reason is FailureReason.REQUESTS_FAILED
        assert "line 1: EngineDied: The engine has died while it had this request" in error.message
        assert len(here.oracle.trouble) == 2 * HURRIED.failures


@pytest.mark.slow
async def test_a_model_that_stays_away_fails_its_lines_and_not_the_others(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.seconds = 0.05
        lines = [request(number, model="gone" if number % 20 == 5 else "tone") for number in range(200)]
        here.site.routes.hold("gone", "AdapterCorrupt", "its digest differs")
        here.pace = replace(here.pace, patience=replace(here.pace.patience, outage=0.5))
        result = await here.run(here.put(jsonl(lines)), maxErrors=10)
        assert result.answers is not None
        assert (result.answers.answered, result.answers.errors) == (190, 10)
        assert here.lines("errors.jsonl")[0]["error"]["code"] == "AdapterCorrupt"


@pytest.mark.slow
async def test_a_server_that_restarts_fails_no_line_and_one_that_stays_away_the_attempt(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.seconds = 0.05
        uri = here.put(jsonl(request(number) for number in range(120)))
        running = asyncio.create_task(here.run(uri))
        for _ in range(2):
            while len(here.oracle.asked) < 20:
                await asyncio.sleep(0.02)
            await here.site.engine.stop()
            await asyncio.sleep(0.4)
            await here.site.engine.start()
        assert (await running).answers.answered == 120  # type: ignore[union-attr]
        assert len(here.lines()) == 120
        here.uid = "u-2"
        here.pace = replace(here.pace, patience=replace(here.pace.patience, outage=1.0))
        running = asyncio.create_task(here.run(uri))
        while len(here.parts) < 4:
            await asyncio.sleep(0.02)
        await here.site.runner.cleanup()
        with pytest.raises(TuneryError, match="has not answered any request") as caught:
            await running
        assert caught.value.reason is FailureReason.SERVER_UNAVAILABLE
        assert caught.value.reached.answers.answered > 10  # type: ignore[union-attr]
        assert len(here.parts) >= 4


async def test_a_key_that_can_be_none_is_refused_before_the_server_is_asked(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys", batch="two words").model_copy(update={"field": "spec.apiKeySecretRef"})
    async with table(tmp_path) as here:
        here.keys = keys
        error = await refused(here, here.put(jsonl([request(0)])))
        assert error.reason is FailureReason.SECRET_NOT_FOUND
        assert "the key batch of the Secret keys has a character that no API key has" in error.message
        assert "two words" not in f"{error.message} {sentences(error.remedies)}"


@pytest.mark.slow
async def test_an_operator_that_takes_no_reports_disturbs_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with table(tmp_path) as here:
        monkeypatch.setenv(PROGRESS_URL_ENV, f"{here.site.url}/v1/no-such-place")
        await here.run(here.put(jsonl(request(number) for number in range(3))))
        assert len(here.lines()) == 3
