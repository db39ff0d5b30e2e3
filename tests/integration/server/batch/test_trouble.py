"""A batch whose input, parts or storage are not as they were a moment ago: what can be gone on with, and what not."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.redact import redact
from tunery_common.errors import TuneryError
from tunery_common.storage import LocalStore, PutResult
from tunery_server.batch import check
from tunery_server.batch.answers import Answer
from tunery_server.batch.check import MOST_MODELS, MOST_PROBLEMS
from tunery_server.batch.keeping import STOPPED_SECONDS
from tunery_server.batch.parts import Mark, Parts
from tunery_server.batch.stopping import StopSignal

from kit.server.batch import Table, jsonl, request, table


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Which writes fail: how many more, by a word of their key; `list` are the listings."""
    left: dict[str, int] = {}
    plain_put, plain_file, plain_list = LocalStore.put_bytes, LocalStore.upload_file, LocalStore.list

    def check(key: str) -> None:
        for word in left:
            if word in key and left[word]:
                left[word] -= 1
                raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, f"{key}: the storage does not answer")

    def put_bytes(store: LocalStore, key: str, *values: Any, **more: Any) -> PutResult:
        check(key)
        return plain_put(store, key, *values, **more)

    def upload_file(store: LocalStore, path: Path, key: str, *values: Any, **more: Any) -> Any:
        check(key)
        return plain_file(store, path, key, *values, **more)

    def list_(store: LocalStore, prefix: str, *values: Any, **options: Any) -> Any:
        check(f"list {prefix}")
        return plain_list(store, prefix, *values, **options)

    monkeypatch.setattr(LocalStore, "put_bytes", put_bytes)
    monkeypatch.setattr(LocalStore, "upload_file", upload_file)
    monkeypatch.setattr(LocalStore, "list", list_)
    monkeypatch.setattr("tunery_server.batch.keeping._PAUSE_SECONDS", 0.02)
    return left


async def refused(here: Table, uri: str, **more: Any) -> TuneryError:
    with pytest.raises(TuneryError) as caught:
        await here.run(uri, **more)
    return caught.value


async def test_a_storage_that_fails_for_a_moment_loses_no_part(tmp_path: Path, flaky: dict[str, int]) -> None:
    async with table(tmp_path) as here:
        flaky["part-"] = 3
        here.oracle.seconds = 0.02
        await here.run(here.put(jsonl(request(number) for number in range(60))))
        assert flaky == {"part-": 0}
        assert len(here.lines()) == 60
        assert set(here.oracle.asked.values()) == {1}


async def test_a_storage_that_fails_once_all_is_asked_loses_no_part(tmp_path: Path, flaky: dict[str, int]) -> None:
    async with table(tmp_path) as here:
        flaky["part-"] = 3
        await here.run(here.put(jsonl(request(number) for number in range(8))))
        assert flaky == {"part-": 0}
        assert len(here.lines()) == 8
        assert set(here.oracle.asked.values()) == {1}


async def test_parts_that_cannot_be_removed_stay_and_the_batch_has_succeeded(
    tmp_path: Path, flaky: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    async with table(tmp_path) as here:
        here.oracle.broken = {str(request(0)["body"]["messages"])}
        uri = here.put(jsonl(request(number) for number in range(3)))
        await refused(here, uri)
        here.oracle.broken = set()

        def fail() -> None:
            flaky["list parts-u-1"] = 9

        here.site.engine.handler = _then(here.oracle, fail)
        result = await here.run(uri)
        assert result.output is not None
        assert "the parts below" in caplog.text
        flaky.clear()
        assert here.parts != []


def _then(oracle: Any, done: Any) -> Any:
    async def answer(asked: Any, body: Any) -> Any:
        got = await oracle(asked, body)
        done()
        return got

    return answer


async def test_bad_lines_are_told_though_their_list_cannot_be_stored(tmp_path: Path, flaky: dict[str, int]) -> None:
    async with table(tmp_path) as here:
        flaky["invalid-lines"] = 9
        error = await refused(here, here.put(b"\n".join([b"{"] * 200)))
        assert error.reason is FailureReason.INPUT_INVALID
        assert "200 lines of pvc://data/in.jsonl cannot be asked: line 1: is not JSON" in error.message
        assert error.facts == {}


async def test_told_to_stop_bad_lines_are_told_though_a_storage_hangs_that_is_to_have_their_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, stop = threading.Event(), StopSignal()
    monkeypatch.setattr(LocalStore, "upload_file", lambda *_: over.wait(60))
    async with table(tmp_path) as here:
        try:
            stop.told_at = time.monotonic() - STOPPED_SECONDS
            async with asyncio.timeout(10):
                error = await refused(here, here.put(b"{"), stop=stop)
        finally:
            over.set()
        assert error.reason is FailureReason.INPUT_INVALID
        assert "line 1: is not JSON" in error.message
        assert error.facts == {}


SAME = json.dumps(request(0)).encode()
TOO_MANY = {
    "no requests": (b"a", MOST_PROBLEMS),
    "one name": (SAME, 2 * MOST_PROBLEMS),
    "a model that is not there": (b"", MOST_PROBLEMS),
}


@pytest.mark.slow
@pytest.mark.parametrize(("same", "most"), TOO_MANY.values(), ids=list(TOO_MANY))
async def test_of_a_small_file_of_millions_of_bad_lines_so_many_are_told_at_once(
    same: bytes, most: int, tmp_path: Path
) -> None:
    unknown = (request(number, model="nobody") for number in range(3 * MOST_PROBLEMS))
    data = b"\n".join([same] * 3_000_000) if same else jsonl(unknown)
    async with table(tmp_path) as here:
        began = time.monotonic()
        error = await refused(here, here.put(zstandard.ZstdCompressor().compress(data), "in.jsonl.zst"))
        assert time.monotonic() - began < 20
        assert error.reason is FailureReason.INPUT_INVALID
        told = (
            r": ([0-9,]+) lines of \S+ cannot be asked, and more may: not all behind line (\d+) are named: line [12]: "
        )
        count, line = re.findall(told, error.message)[0]
        assert MOST_PROBLEMS // 2 < int(count.replace(",", "")) <= MOST_PROBLEMS
        assert MOST_PROBLEMS <= int(line) <= most
        stored = here.place("parts-u-1").read_bytes("invalid-lines.jsonl")
        assert stored.count(b"\n") == int(count.replace(",", ""))
        assert error.facts["invalidLines"].endswith("parts-u-1/invalid-lines.jsonl")
        assert not (tmp_path / "work-u-1" / "check" / "ids").exists()


async def test_twenty_lines_are_named_however_long_what_is_wrong_with_each_is(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        lines = [request(number, model=f"{number}{'x' * 250}") for number in range(18)]
        error = await refused(here, here.put(jsonl([*lines, {"x": 1}, {"custom_id": "y"}])))
        message = redact(error.message)
        assert message == error.message, "nothing is cut off"
        assert [f"line {number}: no model '{number - 1}x" in message for number in range(1, 19)] == [True] * 18
        assert "line 19: custom_id must be a text" in message
        assert "line 20: method must be POST, not null" in message


async def test_of_names_that_repeat_the_first_lines_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MOST_PROBLEMS", 100)
    async with table(tmp_path) as here:
        error = await refused(here, here.put(jsonl([request(number) for number in range(1000)] * 2)))
        assert "100 lines of pvc://data/in.jsonl cannot be asked" in error.message
        assert (
            "and more may: not all behind line 1100 are named: line 1001: custom_id is that of line 1" in error.message
        )
        stored = here.place("parts-u-1").read_bytes("invalid-lines.jsonl").splitlines()
        assert [json.loads(line)["line"] for line in stored] == list(range(1001, 1101))
        assert error.facts["invalidLines"].endswith("parts-u-1/invalid-lines.jsonl")


async def test_parts_that_are_not_what_was_stored_are_asked_again_in_the_same_attempt(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.broken = {str(request(25)["body"]["messages"])}
        uri = here.put(jsonl(request(number) for number in range(30)))
        await refused(here, uri)
        here.oracle.broken = set()
        folder = here.place("parts-u-1")
        for name in [each for each in sorted(here.parts) if each.endswith(".zst")][:2]:
            folder.store.put_bytes(folder.key(name), b"x")
        await here.run(uri)
        assert [line["custom_id"] for line in here.lines()] == [f"row-{number}" for number in range(30)]
        assert here.oracle.asked.total() == 30 + 1 + 20


async def test_a_storage_that_keeps_no_part_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Parts.save

    def damaged(parts: Parts, answers: Sequence[Answer]) -> Mark:
        mark = save(parts, answers)
        parts.place.store.delete(parts.place.key(mark.file))
        return mark

    monkeypatch.setattr(Parts, "save", damaged)
    async with table(tmp_path) as here:
        error = await refused(here, here.put(jsonl(request(number) for number in range(10))))
        assert error.reason is FailureReason.STORAGE_UNAVAILABLE
        assert "is not what was stored: its 10 lines are asked again" in error.message
        assert "Stop what else writes, changes or deletes files below" in error.remedies[0].text
        assert here.oracle.asked.total() == 4 * 10


async def test_notes_that_are_nonsense_are_those_of_nobody(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.broken = {str(request(5)["body"]["messages"])}
        uri = here.put(jsonl(request(number) for number in range(20)))
        await refused(here, uri)
        folder = here.place("parts-u-1")
        for name in here.parts:
            if name.endswith(".json"):
                folder.store.put_bytes(folder.key(name), b"[7]")
        here.oracle.broken = set()
        await here.run(uri)
        assert len(here.lines()) == 20
        assert here.parts == []


@pytest.mark.parametrize(
    "later", [jsonl(request(number) for number in range(50, 70)), b"{\n" * 20], ids=["other", "bad"]
)
async def test_an_input_that_changes_while_it_is_answered_publishes_nothing(later: bytes, tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        uri = here.put(jsonl(request(number, padding="x" * 100_000) for number in range(20)))

        def change() -> None:
            here.put(later)

        here.site.engine.handler = _then(here.oracle, change)
        error = await refused(here, uri, concurrency=1)
        assert error.reason is FailureReason.INPUT_INVALID
        assert "was changed while it was read" in error.message
        assert here.listed("out-u-1") == []


async def test_more_models_than_any_server_has_are_refused(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        lines = (request(number, model=f"m{number}") for number in range(MOST_MODELS + 1))
        error = await refused(here, here.put(jsonl(lines)))
        assert f"more than {MOST_MODELS} different models are asked for" in error.message
        assert not here.oracle.asked


@pytest.mark.slow
async def test_told_twice_to_stop_it_ends_at_once(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.oracle.seconds = 60
        here.pace = replace(here.pace, grace_seconds=60.0)
        program = await here.start(here.put(jsonl(request(number) for number in range(20))))
        while len(here.oracle.asked) < 4:
            await asyncio.sleep(0.01)
        program.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            while "Told to stop" not in program.log:
                await asyncio.sleep(0.01)
            assert await program.end(signal.SIGTERM) == ExitCode.TERMINATED, program.log
        assert program.words.answers is not None
        assert program.words.answers.answered == 0
