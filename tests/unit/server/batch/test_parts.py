"""The books of a batch: whatever parts are there, every line is asked once and stands once in the output."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage import LocalStore, PutResult, StorePath, open_store
from tunery_common.storage.credentials import ambient
from tunery_server.batch import asking, keeping
from tunery_server.batch.answers import Answer, tally_of, waiting
from tunery_server.batch.asking import Conveyor, Source
from tunery_server.batch.keeping import Keeper, Kept, PartSize
from tunery_server.batch.lines import Line
from tunery_server.batch.parts import Parts
from tunery_server.batch.repeated import Repeated


def place(folder: Path) -> StorePath:
    return open_store((folder / "store" / "parts").as_uri(), ambient(), "x")


def answer(index: int, ok: bool = True) -> Answer:
    version = ("tone", "7" * 64) if ok else None
    return Answer(index, index + 1, ok, b'{"n":%d}' % index, version, int(ok), 2 * int(ok))


def lines(count: int) -> list[Line]:
    return [Line(index, index + 1, b"{}") for index in range(count)]


@settings(max_examples=40)
@given(
    count=st.integers(1, 25),
    ends=st.lists(st.tuples(st.integers(0, 40), st.sets(st.integers(0, 24))), max_size=4),
    size=st.integers(1, 9),
    late=st.sets(st.integers(0, 24), max_size=6),
)
def test_attempts_that_end_anywhere_leave_each_line_once(
    count: int,
    ends: list[tuple[int, set[int]]],
    size: int,
    late: set[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each attempt ends after so many ends, those of some lines later than others; the last one answers all."""
    where = place(tmp_path_factory.mktemp("parts"))
    for limit, failing in [*ends, (2 * count, set[int]())]:
        parts = Parts(where, "batch")
        kept = Kept.of(parts, parts.load())
        before = {line.index for line in lines(count)} - {line.index for line in kept.left(lines(count))}
        assert kept.tally.done == len(before)
        keeper = Keeper(parts, kept, PartSize(lines=size))
        left = list(kept.left(lines(count)))
        passed = [
            waiting(line) if line.index in late else answer(line.index, line.index not in failing) for line in left
        ]
        passed += [answer(line.index, line.index not in failing) for line in left if line.index in late]
        for end in passed[:limit]:
            keeper.take(end)
        keeper.end()
        asyncio.run(keeper.keep(lambda _: None))
        if keeper.tally.errors:
            parts.next_round()
    marks = sorted(keeper.marks.values(), key=lambda mark: mark.first)
    records = [record for mark in marks for record in parts.read(mark)]
    assert [record.number for record in records] == list(range(1, count + 1))
    assert all(record.ok for record in records)
    assert [record.data for record in records] == [answer(index).data for index in range(count)]
    assert keeper.tally == tally_of(answer(index) for index in range(count))
    parts.clear()
    assert where.store.list(where.prefix) == []


class Killed(Exception):
    """The process is gone."""


class Dying(LocalStore):
    """A store whose process is killed at one of its writes: before it, or once it is done."""

    left: float = float("inf")

    def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> PutResult:
        self._die()
        put = super().put_bytes(key, data, if_none_match=if_none_match)
        self._die()
        return put

    def delete(self, key: str) -> None:
        self._die()
        super().delete(key)

    def _die(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def attempt(where: StorePath, failing: set[int], count: int) -> Keeper:
    """Go through one attempt on `count` lines; raises Killed."""
    parts = Parts(where, "batch")
    kept = Kept.of(parts, parts.load())
    keeper = Keeper(parts, kept, PartSize(lines=3))
    for line in kept.left(lines(count)):
        keeper.take(answer(line.index, line.index not in failing))
    keeper.end()
    asyncio.run(keeper.keep(lambda _: None))
    if keeper.tally.errors:
        parts.next_round()
    return keeper


@pytest.mark.parametrize("first", [{1, 4, 5}, set[int]()])
def test_death_at_any_write_loses_and_doubles_nothing(first: set[int], tmp_path: Path) -> None:
    """Two attempts, the lines of `first` failing in the first, are killed at each of their writes by turns."""
    (tmp_path / "store").mkdir()
    deaths = 0
    for kill in range(200):
        store = Dying(tmp_path / "store", "file:///store", "x")
        where = StorePath(store, f"parts-{kill}")
        store.left, died = kill, False
        for failing in (first, set[int]()):
            try:
                attempt(where, failing, 11)
            except Killed:
                died = True
                break
        deaths += died
        store.left = float("inf")
        keeper = attempt(where, set(), 11)
        if keeper.tally.errors:  # those of the round that was not ended
            keeper = attempt(where, set(), 11)
        marks = sorted(keeper.marks.values(), key=lambda mark: mark.first)
        records = [record for mark in marks for record in Parts(where, "batch").read(mark)]
        assert [record.data for record in records] == [answer(index).data for index in range(11)]
        assert keeper.tally == tally_of(answer(index) for index in range(11))
        if not died:
            break
    assert deaths >= 16


async def until_waiting(keeper: Keeper, *counts: int) -> None:
    """Wait until so many lines of the parts wait, as they are stored."""
    async with asyncio.timeout(5):
        while tuple(mark.waiting for mark in keeper.marks.values()) != counts:
            await asyncio.sleep(0.01)


async def test_ends_that_came_later_are_stored_by_the_clock_few_parts_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(keeping, "_MOST_TASKS", 4)
    parts = Parts(place(tmp_path), "b")
    keeper, most = Keeper(parts, Kept.of(parts, []), PartSize(lines=2, seconds=0.0)), 0
    kept = asyncio.create_task(keeper.keep(lambda _: None))
    for line in lines(12):
        keeper.take(waiting(line))
    await until_waiting(keeper, 2, 2, 2, 2, 2, 2)
    for index in range(0, 12, 2):
        keeper.take(answer(index))
    async with asyncio.timeout(5):
        while not all(mark.waiting == 1 for mark in keeper.marks.values()):
            most = max(most, len(keeper._tasks))
            await asyncio.sleep(0)
    assert most == 2, "nothing is behind for it"
    assert [mark.waiting for mark in Parts(parts.place, "b").load()] == [1] * 6
    keeper.end()
    await kept


class Down(LocalStore):
    """A store that fails so many writes."""

    left: int = 0

    def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> PutResult:
        if self.left:
            self.left -= 1
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "it does not answer")
        return super().put_bytes(key, data, if_none_match=if_none_match)


@pytest.mark.parametrize("ago", [None, 0.0, keeping.STOPPED_SECONDS])
async def test_once_told_to_stop_a_storage_is_tried_for_as_long_as_the_pod_may_stay(
    ago: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_PAUSE_SECONDS", 0.0)
    (tmp_path / "store").mkdir()
    store = Down(tmp_path / "store", "file:///store", "x")
    store.left = 3
    parts, told = Parts(StorePath(store, "parts"), "b"), math.inf if ago is None else time.monotonic() - ago
    keeper = Keeper(parts, Kept.of(parts, []), PartSize(), told_at=lambda: told)
    keeper.take(answer(0))
    keeper.end()
    if ago == keeping.STOPPED_SECONDS:
        with pytest.raises(TuneryError, match="it does not answer"):
            await keeper.keep(lambda _: None)
        assert store.left == 2
    else:
        await keeper.keep(lambda _: None)
        assert [mark.lines for mark in parts.load()] == [1]


class Silent(LocalStore):
    """A store that answers no write for as long as the test lasts."""

    asked: threading.Event
    over: threading.Event

    def put_bytes(self, key: str, data: bytes, *, if_none_match: bool = False) -> PutResult:
        self.asked.set()
        self.over.wait(60)
        raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, "too late")


@pytest.mark.parametrize("stopped", [True, False], ids=["once told to stop", "else"])
async def test_a_storage_that_does_not_even_refuse_is_waited_for_no_longer_than_one_that_does(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "STOPPED_SECONDS" if stopped else "_STORE_SECONDS", 0.3)
    (tmp_path / "store").mkdir()
    store, told = Silent(tmp_path / "store", "file:///store", "x"), math.inf
    store.asked, store.over = threading.Event(), threading.Event()
    parts = Parts(StorePath(store, "parts"), "b")
    keeper = Keeper(parts, Kept.of(parts, []), PartSize(), told_at=lambda: told)
    keeper.take(answer(0))
    keeper.end()
    kept = asyncio.create_task(keeper.keep(lambda _: None))
    assert await asyncio.to_thread(store.asked.wait, 5)
    told = time.monotonic() if stopped else told
    try:
        with pytest.raises(TuneryError, match=r"cannot be stored: the storage did not answer within \d+ s") as caught:
            async with asyncio.timeout(5):
                await kept
        assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    finally:
        store.over.set()


def test_a_part_without_its_mark_or_of_another_batch_is_none(tmp_path: Path) -> None:
    where = place(tmp_path)
    mine, other = Parts(where, "mine"), Parts(where, "other")
    mark = mine.save([answer(0), answer(1)])
    other.save([answer(2)])
    where.store.put_bytes(where.key("part-000000000005-aaaaaaaaaaaa.jsonl.zst"), b"cut")
    other.next_round()
    assert Parts(where, "mine").load() == [mark]
    assert len(where.store.list(where.prefix)) == 2


def test_of_parts_that_overlap_one_counts(tmp_path: Path) -> None:
    where = place(tmp_path)
    for indices in (range(4), range(2, 6), range(4, 8), range(9, 10)):
        Parts(where, "b").save([answer(index) for index in indices])
    parts = Parts(where, "b")
    kept = Kept.of(parts, parts.load())
    assert [(mark.first, mark.end) for mark in kept.marks] == [(0, 4), (4, 8), (9, 10)]
    assert [line.index for line in kept.left(lines(12))] == [8, 10, 11]


def test_a_damaged_part_is_told_and_its_lines_are_asked_again(tmp_path: Path) -> None:
    where = place(tmp_path)
    parts = Parts(where, "b")
    mark = parts.save([answer(0), answer(1)])
    where.store.put_bytes(where.key(mark.file), b"other")
    with pytest.raises(TuneryError, match="is not what was stored: its 2 lines are asked again") as caught:
        list(parts.read(mark))
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    assert Parts(where, "b").load() == []


@dataclass
class Listed:
    """Keeps the places of ends; none of them is stored until `storing` is false again."""

    places: list[int]
    storing: bool = False
    behind: bool = False

    def take(self, end: Answer) -> None:
        if not end.waits:
            self.places.append(end.index)


@given(count=st.integers(0, 80), concurrency=st.integers(1, 12), seed=st.integers(0, 5))
def test_ends_come_in_the_order_of_the_lines(count: int, concurrency: int, seed: int) -> None:
    taken: list[int] = []
    chance, now, most = random.Random(seed), Counter[str](), 0

    async def ask(line: Line) -> Answer:
        nonlocal most
        now["asked"] += 1
        most = max(most, now["asked"])
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        now["asked"] -= 1
        return answer(line.index)

    async def run() -> bool:
        conveyor = Conveyor(ask, Source(iter(lines(count))), Listed(taken), asyncio.Event())
        await conveyor.run(concurrency, 1.0)
        return conveyor.whole

    assert asyncio.run(run())
    assert taken == list(range(count))
    assert most <= concurrency


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "answered at last"])
def test_lines_that_wait_for_long_hold_back_no_end_behind_them(stopped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WINDOW", 5)
    monkeypatch.setattr(asking, "_LOOK_SECONDS", 0.01)
    taken, late = Listed([]), set[int]()

    async def run() -> None:
        stop, served = asyncio.Event(), asyncio.Event()

        async def ask(line: Line) -> Answer:
            if line.index in (0, 7):
                await served.wait()
            return answer(line.index)

        conveyor = Conveyor(ask, Source(iter(lines(20))), taken, stop, lambda line: line.index in late)
        running = asyncio.create_task(conveyor.run(4, 0.0))
        await asyncio.sleep(0.1)
        assert taken.places == [], "the first line may end any moment"
        late.update({0})
        async with asyncio.timeout(5):
            while len(taken.places) < 6:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert taken.places == [1, 2, 3, 4, 5, 6]
        (stop if stopped else served).set()
        await running
        assert conveyor.whole is not stopped

    asyncio.run(run())
    assert taken.places[:6] == [1, 2, 3, 4, 5, 6]
    assert len(taken.places) == len(set(taken.places))
    if stopped:  # what was answered behind the seventh is kept, too
        assert set(taken.places) > {8, 9, 10}
        assert not {0, 7} & set(taken.places)
    else:
        assert set(taken.places) == set(range(20))


@pytest.mark.parametrize("storing", [True, False], ids=["being stored", "of a part that is mended"])
def test_no_more_is_held_than_has_room_unless_only_more_makes_room(
    storing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ends of a part that is mended are stored together, however large they are."""
    monkeypatch.setattr(asking, "MOST_BYTES", 10 * len(answer(0).data))
    taken = Listed([], storing)

    async def ask(line: Line) -> Answer:
        return answer(line.index)

    async def run() -> int:
        conveyor = Conveyor(ask, Source(iter(lines(100))), taken, asyncio.Event())
        running = asyncio.create_task(conveyor.run(4, 1.0))
        await asyncio.wait({running}, timeout=0.2)
        held = len(taken.places)
        while not running.done():
            conveyor.stored(len(answer(0).data))
            await asyncio.sleep(0)
        await running
        return held

    held = asyncio.run(run())
    assert taken.places == list(range(100))
    assert 10 <= held <= 10 + 4 if storing else held == 100


@given(ids=st.lists(st.text(max_size=3), max_size=60))
def test_repeated_names_are_found_with_their_first_line(
    ids: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    repeated = Repeated(tmp_path_factory.mktemp("ids") / "ids")
    expected, first = set[tuple[int, int]](), dict[str, int]()
    for number, name in enumerate(ids):
        repeated.add(name, number)
        if name in first:
            expected.add((number, first[name]))
        first.setdefault(name, number)
    assert set(repeated.found()) == expected
    repeated.close()
