"""However a batch is ended, and whenever: the next attempt goes on, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import ProgressUpdate, TrainerStatus
from tunery_api.status import Phase
from tunery_server.batch import progress
from tunery_server.batch.keeping import PartSize

from kit.server.batch import HURRIED, TONE, TONE_SHA, Table, jsonl, request, table
from kit.server.gateway import BASE
from tools.cluster.s3 import S3Server

LINES, PART, CONCURRENCY = 400, 10, 4
KILLS = 12


async def undisturbed(here: Table, uri: str) -> bytes:
    """Return the output of a run that nobody ends; it is of another object, so that names of requests differ."""
    here.uid = "calm"
    await here.run(uri)
    return here.read("output.jsonl")


def without_names(output: bytes) -> list[object]:
    """Return the lines but for what is told of the object."""
    lines = [json.loads(line) for line in output.splitlines()]
    for line in lines:
        assert line["response"].pop("request_id") == line.pop("id")
    return lines


@pytest.mark.slow
async def test_killed_at_any_instant_it_goes_on_where_it_was(tmp_path: Path, s3_server: S3Server, bucket: str) -> None:
    chance = random.Random(7)
    async with table(tmp_path, s3_server, bucket) as here:
        uri = here.put(jsonl(request(number) for number in range(LINES)))
        calm = await undisturbed(here, uri)
        here.uid, here.oracle.seconds = "u-1", 0.01
        here.oracle.asked.clear()
        kills = 0
        while True:
            program, asked = await here.start(uri), here.oracle.asked.total()
            if kills < KILLS:
                # Some are killed as they start, most while they ask; each leaves a little for the next.
                least = chance.choice([0, 1, 5, 15, 25, 35])
                while here.oracle.asked.total() < asked + least and program.process.returncode is None:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(chance.uniform(0, 0.05))
                if program.process.returncode is None:
                    await program.kill()
                    kills += 1
                    continue
            assert await program.end() == ExitCode.OK, program.log
            break
        assert kills >= 10
        assert without_names(here.read("output.jsonl")) == without_names(calm)
        assert len(here.oracle.asked) == LINES
        # A part that was not stored, what was in flight, and what was answered out of turn.
        assert here.oracle.asked.total() - LINES <= kills * (2 * PART + 2 * CONCURRENCY)
        assert here.parts == []
        assert program.words.output is not None
        assert program.words.answers is not None
        assert program.words.answers.answered == LINES


@pytest.mark.slow
async def test_a_line_whose_model_is_not_served_holds_back_no_answer_that_a_kill_would_lose(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.site.routes.hold("tone", "AdapterCorrupt", "its digest differs")
        here.pace = replace(here.pace, patience=replace(HURRIED, outage=60), part=PartSize(lines=10, seconds=0.3))
        lines = [request(number, model="tone" if number in (0, 47) else BASE) for number in range(100)]
        uri = here.put(jsonl(lines))
        program = await here.start(uri)
        async with asyncio.timeout(20):
            while (stored := sum(mark.lines - mark.waiting for mark in here.marks())) < 98:
                await asyncio.sleep(0.05)
        await program.kill()
        assert (stored, here.oracle.asked.total()) == (98, 98)
        here.site.routes.serve("tone", TONE, TONE_SHA)
        await here.run(uri)
        assert [line["custom_id"] for line in here.lines()] == [f"row-{number}" for number in range(100)]
        assert set(here.oracle.asked.values()) == {1}


@pytest.mark.slow
async def test_answers_that_another_batch_keeps_from_being_published_are_counted(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        uri = here.put(jsonl(request(number) for number in range(40)))
        here.output, here.oracle.seconds = "shared", 0.05
        program = await here.start(uri, concurrency=1)
        while len(here.oracle.asked) < 2:
            await asyncio.sleep(0.01)
        here.uid = "u-2"
        await here.run(uri, concurrency=32)
        assert await program.end() == ExitCode.USER_ERROR, program.log
        assert program.words.failure is not None
        assert program.words.failure.reason is FailureReason.OUTPUT_EXISTS
        assert program.words.answers is not None
        assert (program.words.answers.lines, program.words.answers.answered) == (40, 40)


async def test_told_to_stop_it_keeps_what_is_answered_and_asks_nothing_twice(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        uri = here.put(jsonl(request(number) for number in range(200)))
        here.oracle.seconds = 0.02
        program = await here.start(uri)
        while len(here.oracle.asked) < 43:
            await asyncio.sleep(0.01)
        assert await program.end(signal.SIGTERM) == ExitCode.TERMINATED, program.log
        assert program.words.answers is not None
        assert program.words.failure is None
        assert program.words.answers.answered == here.oracle.asked.total() >= 43
        assert "Told to stop" in program.log
        again = await here.start(uri)
        assert await again.end() == ExitCode.OK, again.log
        assert set(here.oracle.asked.values()) == {1}
        assert len(here.lines()) == 200


@pytest.mark.slow
async def test_an_answer_that_does_not_come_is_not_waited_for_at_a_stop(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        uri = here.put(jsonl(request(number) for number in range(20)))
        here.oracle.seconds = 60
        program = await here.start(uri)
        while len(here.oracle.asked) < 4:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            assert await program.end(signal.SIGTERM) == ExitCode.TERMINATED, program.log
        assert here.oracle.asked.total() == 4


@pytest.mark.slow
async def test_the_last_words_of_a_failure_name_the_reason_and_end_with_its_code(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        program = await here.start(here.put(b"{}"))
        assert await program.end() == ExitCode.USER_ERROR
        assert program.words.failure is not None
        assert program.words.failure.reason is FailureReason.INPUT_INVALID
        assert program.log.splitlines()[-2].startswith("InputInvalid: spec.input.uri: 1 line of pvc://data/in.jsonl")


@asynccontextmanager
async def operator(told: list[TrainerStatus]) -> AsyncIterator[dict[str, str]]:
    """Take reports into `told`, and yield the variables that name where to."""

    async def take(asked: web.Request) -> web.Response:
        told.append(ProgressUpdate.model_validate_json(await asked.read()).trainer_status)
        return web.json_response({"intervalSeconds": 1})

    app = web.Application()
    app.router.add_post("/report", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield {"KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{runner.addresses[0][1]}/report"}
    finally:
        await runner.cleanup()


@pytest.mark.slow
async def test_a_model_that_the_server_lacks_is_told_while_it_is_waited_for(tmp_path: Path) -> None:
    told: list[TrainerStatus] = []
    lines = [request(0), request(1, model="nobody"), request(2, model="nor-this")]
    async with operator(told) as variables, table(tmp_path) as here:
        began = time.monotonic()
        here.pace = replace(here.pace, patience=replace(HURRIED, unknown_model=3.0))
        program = await here.start(here.put(jsonl(lines)), variables)
        assert await program.end() == ExitCode.USER_ERROR
    assert time.monotonic() - began < 10
    words = "waits up to 3 seconds for the server support to know the model 'nobody' of line 2 and 1 more"
    assert [status.phase for status in told if status.doing == words][:1] == [Phase.STARTING]
    assert words in program.log


@pytest.mark.slow
async def test_after_a_kill_who_watches_is_told_what_was_kept_before_the_first_line_is_asked(tmp_path: Path) -> None:
    told: list[TrainerStatus] = []
    async with operator(told) as variables, table(tmp_path) as here:
        uri = here.put(jsonl(request(number) for number in range(200)))
        here.oracle.seconds = 0.02
        program = await here.start(uri)
        while len(here.marks()) < 2:
            await asyncio.sleep(0.01)
        await program.kill()
        kept = sum(mark.lines for mark in here.marks())
        here.site.routes.drop("tone")  # so that it does not come to asking
        here.pace = replace(here.pace, patience=replace(HURRIED, unknown_model=1.5))
        program = await here.start(uri, variables)
        assert await program.end() == ExitCode.USER_ERROR
    first = next(status for status in told[:-1] if status.answers)
    assert first.phase is Phase.STARTING
    assert first.answers is not None
    assert first.answers.answered == kept >= 20


@pytest.mark.slow
async def test_who_watches_is_told_how_far_it_is(tmp_path: Path) -> None:
    told: list[TrainerStatus] = []
    async with operator(told) as variables, table(tmp_path) as here:
        here.oracle.seconds = 0.4
        program = await here.start(here.put(jsonl(request(number) for number in range(100))), variables)
        assert await program.end() == ExitCode.OK, program.log
    answering = [status for status in told if status.phase is Phase.ANSWERING and status.step]
    assert len(answering) >= 2
    assert all(status.total_steps == 100 and status.answers for status in answering)
    steps = [status.step for status in told if status.step is not None]
    assert steps == sorted(steps)
    assert any(status.estimated_remaining_seconds and status.tokens_per_second for status in answering)
    last = told[-1]
    assert (last.phase, last.progress_percentage, last.estimated_remaining_seconds) == (Phase.SUCCEEDED, 100, 0)
    assert last.answers == program.words.answers
    assert progress.line(answering[0]).startswith(f"{answering[0].step} of 100 lines (")


@pytest.mark.slow
async def test_another_input_uses_no_part_of_the_first(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.broken = {str(request(39)["body"]["messages"])}
        uri = here.put(jsonl(request(number) for number in range(40)))
        program = await here.start(uri)
        assert await program.end() == ExitCode.USER_ERROR
        assert len(here.parts) == 9
        here.put(jsonl([request(100), *(request(number) for number in range(30))]))
        await here.run(uri)
        assert [line["custom_id"] for line in here.lines()] == ["row-100", *(f"row-{n}" for n in range(30))]
        assert here.oracle.asked[str(request(5)["body"]["messages"])] == 2
        assert here.parts == []


@pytest.mark.slow
def test_two_hundred_thousand_lines_take_little_memory(tmp_path: Path) -> None:
    """Of a pod that is given 1 GiB; 60 MiB are the interpreter and its libraries, 64 at most answers to be stored."""
    command = [sys.executable, "-m", "kit.server.batch_memory", str(tmp_path), "200000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = json.loads(done.stdout)
    assert (took["whole"], took["lines"]) == (True, 200_000)
    assert took["bytes"] > 200_000_000
    assert took["published"] < 250
    shutil.rmtree(tmp_path)
