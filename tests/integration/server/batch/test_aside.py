"""Lines whose models are not served now: they wait aside, however many, while all others are answered."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard

from integration.server.batch.test_ends import operator
from tunery_api.reasons import ExitCode, FailureReason
from tunery_api.runspec import RunResult, TrainerStatus
from tunery_common.errors import TuneryError
from tunery_server.batch import aside
from tunery_server.batch.answers import Answer, Trouble
from tunery_server.batch.asking import Conveyor, Source
from tunery_server.batch.keeping import PartSize
from tunery_server.batch.lines import InputLines, Line, LinesAgain, Place
from tunery_server.batch.parts import Record
from tunery_server.batch.requests import Request, parse
from tunery_server.batch.server import Absent, Server

from kit.server.batch import HURRIED, TONE, TONE_SHA, Table, jsonl, request, table
from kit.server.gateway import BASE

PATIENT = replace(HURRIED, outage=60.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each model was asked for, answered or not."""
    found: Counter[str] = Counter()
    post = Server._post

    async def counted(server: Server, line: Any, request: Any, name: str) -> Any:
        found[request.model] += 1
        return await post(server, line, request, name)

    monkeypatch.setattr(Server, "_post", counted)
    return found


def mixed(count: int, every: int, *models: str) -> bytes:
    """Return lines of the base, every so manieth of which asks for one of the models in turn."""
    late = (models[number // every % len(models)] if number % every == every - 1 else BASE for number in range(count))
    return jsonl(request(number, model=model) for number, model in enumerate(late))


def names(here: Table) -> list[str]:
    return [line["custom_id"] for line in here.lines()]


async def until_answered(here: Table, count: int) -> None:
    async with asyncio.timeout(30):
        while len(here.oracle.asked) < count:
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, 20])
async def test_however_many_lines_are_late_all_others_are_answered_and_who_watches_is_told(
    every: int, tmp_path: Path
) -> None:
    told: list[TrainerStatus] = []
    late = 400 // every
    async with operator(told) as variables, table(tmp_path) as here:
        here.site.routes.hold("tone", "AdapterMissing", "it has no manifest")
        here.pace = replace(here.pace, patience=PATIENT, part=PartSize(lines=40, seconds=0.3))
        program = await here.start(here.put(mixed(400, every, "tone")), variables)
        await until_answered(here, 400 - late)
        words = f"waits for the model tone, {late} lines so far: AdapterMissing: tone is not served now: it has no"
        async with asyncio.timeout(10):
            while not any((status.doing or "").startswith(words) for status in told):
                await asyncio.sleep(0.05)
        here.site.routes.serve("tone", TONE, TONE_SHA)
        assert await program.end() == ExitCode.OK, program.log
        assert names(here) == [f"row-{number}" for number in range(400)]
        assert set(here.oracle.asked.values()) == {1}
    assert told[-1].doing is None
    assert [status.doing for status in told if status.doing and "tone" not in status.doing] == []


@pytest.mark.slow
async def test_a_batch_of_which_all_lines_are_late_waits_and_asks_one_of_them_now_and_then(
    tmp_path: Path, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "MOST", 50)
    async with table(tmp_path) as here:
        here.site.routes.hold("tone", "AdapterMissing", "it has no manifest")
        here.pace = replace(here.pace, patience=PATIENT, part=PartSize(lines=10, seconds=0.2))
        running = asyncio.create_task(here.run(here.put(mixed(200, 1, "tone"))))
        await asyncio.sleep(2)
        used = time.process_time()
        await asyncio.sleep(3)
        assert time.process_time() - used < 1, "it waits, and does not spin"
        assert asked.total() <= 4 + 5
        assert sum(mark.lines for mark in here.marks()) <= 50 + 4 + 10, "no more of the input is read"
        here.site.routes.serve("tone", TONE, TONE_SHA)
        await running
        assert names(here) == [f"row-{number}" for number in range(200)]
        assert set(here.oracle.asked.values()) == {1}
        assert here.oracle.most == 4


@pytest.mark.slow
@pytest.mark.parametrize("packed", ["jsonl", "jsonl.gz", "jsonl.zst"])
async def test_models_that_come_and_go_lose_and_double_nothing(
    packed: str, tmp_path: Path, asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "MOST_HELD", 300)
    pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.ZstdCompressor().compress}[packed]
    chance = random.Random(5)
    async with table(tmp_path) as here:
        here.oracle.seconds = 0.01
        here.pace = replace(here.pace, patience=PATIENT, part=PartSize(lines=10, seconds=0.1))
        monkeypatch.setattr("tunery_server.batch.server.retry_after", lambda _: None)
        running = asyncio.create_task(here.run(here.put(pack(mixed(300, 2, "tone", "t2", "t3")), f"in.{packed}")))
        served = True
        while not running.done():
            for name in ("tone", "t2", "t3"):
                served = chance.random() < 0.4
                if served:
                    here.site.routes.serve(name, TONE, TONE_SHA)
                else:
                    here.site.routes.hold(name, "AdapterLoading", "others have its place")
            await asyncio.sleep(0.1)
        await running
        assert names(here) == [f"row-{number}" for number in range(300)]
        assert set(here.oracle.asked.values()) == {1}
        assert asked.total() > 300


@dataclass
class LackingAtFirst:
    """A server that lacks the model for the first requests, each after so many turns of the loop, and then has it."""

    absent: int
    turns_absent: int
    turns: int
    asked: list[int] = field(default_factory=list)

    async def ask(self, line: Line, request: Request) -> Answer:
        self.asked.append(line.index)
        absent = len(self.asked) <= self.absent
        for _ in range(self.turns_absent if absent else self.turns):
            await asyncio.sleep(0)
        if absent:
            raise Absent(Trouble("AdapterLoading", "others have its place", outage=True))
        return Answer(line.index, line.number, ok=True, data=b"{}")

    def seconds_left(self, model: str, waited: float) -> float:
        return 60.0

    def give_up(self, model: str, trouble: Trouble) -> None:
        raise AssertionError(model)

    def failed(self, line: Line, request: Request, trouble: Trouble) -> Answer:
        raise AssertionError(trouble)


@dataclass
class Ends:
    """Takes note of the lines that came to their end."""

    ended: list[int] = field(default_factory=list)
    storing = behind = False

    def take(self, answer: Answer) -> None:
        if not answer.waits:
            self.ended.append(answer.index)


@pytest.mark.parametrize("absent", [1, 2, 3])
@pytest.mark.parametrize("concurrency", [2, 3, 5])
@pytest.mark.parametrize("count", [3, 6, 12])
async def test_a_line_that_is_put_aside_is_asked_by_one_worker_whenever_its_model_comes_back(
    count: int, concurrency: int, absent: int, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(mixed(count, 1, "tone"))
    for turns_absent, turns in itertools.product((0, 1, 2, 4), repeat=2):
        lines, server, ends = (
            InputLines(tmp_path / "in.jsonl", "in"),
            LackingAtFirst(absent, turns_absent, turns),
            Ends(),
        )
        waiting = aside.Aside(server, lines, 0.0, 0.0)
        asking = partial(ask_line, waiting)
        await Conveyor(asking, Source(iter(lines), waiting), ends, asyncio.Event()).run(concurrency, 1.0)
        assert sorted(ends.ended) == list(range(count)), (turns_absent, turns)
        assert len(server.asked) == count + absent


async def ask_line(waiting: aside.Aside, line: Line) -> Answer | None:
    return await waiting.ask(line, parse(line.raw, None))


def stored(here: Table) -> dict[str, int]:
    """Return how often each question was asked whose answer is in a complete part."""
    place = here.place(f"parts-{here.uid}")
    lines = (line for mark in here.marks() for line in zstandard.decompress(place.read_bytes(mark.file)).splitlines())
    numbers = (record.number for record in map(Record.of, lines) if not record.waits)
    questions = (str(request(number - 1)["body"]["messages"]) for number in numbers)
    return {question: here.oracle.asked[question] for question in questions}


@pytest.mark.slow
async def test_killed_while_lines_wait_a_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    chance = random.Random(3)
    once: dict[str, int] = {}
    async with table(tmp_path) as here:
        here.oracle.seconds = 0.01
        here.pace = replace(here.pace, patience=PATIENT, part=PartSize(lines=10, seconds=0.2))
        uri = here.put(mixed(300, 3, "tone", "t2"))
        here.site.routes.hold("t2", "AdapterMissing", "it has no manifest")
        for kill in range(6):
            if kill % 2:
                here.site.routes.serve("tone", TONE, TONE_SHA)
            else:
                here.site.routes.hold("tone", "AdapterLoading", "others have its place")
            before = len(here.oracle.asked)
            program = await here.start(uri)
            async with asyncio.timeout(30):
                while len(here.oracle.asked) < min(before + chance.randrange(20, 60), 200 + 50 * (kill % 2)):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(chance.uniform(0, 0.4))
            await program.kill()
            once = stored(here) | once
        here.site.routes.serve("t2", TONE, TONE_SHA)
        here.site.routes.serve("tone", TONE, TONE_SHA)
        await here.run(uri)
        assert names(here) == [f"row-{number}" for number in range(300)]
        assert len(once) > 100
        assert {question: here.oracle.asked[question] for question in once} == once, "no stored answer is asked again"
        assert here.parts == []


async def test_what_waited_is_stored_by_the_clock_also_where_others_of_its_part_still_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_server.batch.server.retry_after", lambda _: None)
    async with table(tmp_path) as here:
        running = waits_for_two(here, every=1)
        await until_waiting(here, 100)
        here.site.routes.serve("t2", TONE, TONE_SHA)
        await until_waiting(here, 20)
        here.site.routes.serve("t3", TONE, TONE_SHA)
        await running
        assert names(here) == [f"row-{number}" for number in range(100)]
        assert set(here.oracle.asked.values()) == {1}


@pytest.mark.slow
async def test_lines_of_a_part_that_is_gone_are_asked_again_at_once_also_while_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunery_server.batch.server.retry_after", lambda _: None)
    async with table(tmp_path) as here:
        running = waits_for_two(here, every=2)
        await until_waiting(here, 50)
        folder = here.place("parts-u-1")
        folder.store.delete(folder.key(next(name for name in here.parts if name.endswith(".zst"))))
        here.site.routes.serve("t2", TONE, TONE_SHA)
        await until_waiting(here, 10)
        here.site.routes.serve("t3", TONE, TONE_SHA)
        await running
        assert names(here) == [f"row-{number}" for number in range(100)]
        assert here.oracle.asked.total() <= 100 + 9


def waits_for_two(here: Table, every: int) -> asyncio.Task[RunResult]:
    """Start a batch of a hundred lines in parts of ten, each `every`th for one of two models that are away."""
    for model in ("t2", "t3"):
        here.site.routes.hold(model, "AdapterMissing", "it has no manifest")
    here.pace = replace(here.pace, patience=PATIENT, part=PartSize(lines=10, seconds=0.2))
    return asyncio.create_task(here.run(here.put(mixed(100, every, *["t2"] * 4, "t3"))))


async def until_waiting(here: Table, count: int) -> None:
    """Wait until all of the hundred lines are stored in parts, and `count` of them wait."""
    async with asyncio.timeout(20):
        while True:
            marks = here.marks()
            if (sum(mark.lines for mark in marks), sum(mark.waiting for mark in marks)) == (100, count):
                return
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_a_model_that_is_given_up_makes_errors_of_its_lines_and_a_retry_asks_them_alone(tmp_path: Path) -> None:
    async with table(tmp_path) as here:
        here.site.routes.hold("tone", "AdapterMissing", "it has no manifest")
        here.pace = replace(here.pace, patience=replace(HURRIED, outage=1.0))
        uri = here.put(mixed(300, 3, "tone"))
        with pytest.raises(TuneryError, match="100 of the first 300 lines ended in an error") as caught:
            await here.run(uri, maxErrors=50)
        assert caught.value.reason is FailureReason.REQUESTS_FAILED
        assert "line 3: AdapterMissing: tone is not served now" in caught.value.message
        here.site.routes.serve("tone", TONE, TONE_SHA)
        await here.run(uri, maxErrors=50)
        assert names(here) == [f"row-{number}" for number in range(300)]
        assert set(here.oracle.asked.values()) == {1}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_lines_are_read_again_by_their_places_in_any_order(packed: str, tmp_path: Path) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packed]
    path = tmp_path / f"in{packed}"
    data = b"\xef\xbb\xbf{}\n\n" + b"".join(b'{"n": %d}\n' % number * (number % 3) for number in range(40)) + b"last"
    path.write_bytes(pack(data))
    lines = InputLines(path, "in")
    found = list(lines)
    again = LinesAgain(lines)
    for line in [*found, *reversed(found), *random.Random(1).sample(found, len(found))]:
        assert again.read(Place.of(line)) == line
    again.close()  # what is read ahead is not read anew
    path.write_bytes(pack(data.replace(b"7", b"8")))
    with pytest.raises(TuneryError, match="was changed while it was read"):
        again.read(Place.of(next(line for line in found if b"7" in line.raw)))
    again.close()
    path.write_bytes(pack(data)[:-6])
    with pytest.raises(TuneryError, match="was changed while it was read"):
        again.read(Place.of(found[-1]))
    again.close()
