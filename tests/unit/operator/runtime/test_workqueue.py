"""The work queue: one at a time for each key, again when dirty, later when it failed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_operator.errors import ApiFailure, OperatorError, OwnerGone, StaleObject
from tunery_operator.observed.metadata import Key
from tunery_operator.runtime.priority_queue import AGED_SECONDS, Priority, PriorityQueue
from tunery_operator.runtime.workqueue import DONE, MAX_BACKOFF, MAX_BUG_BACKOFF, Requeue, WorkQueue, delay

Start = Callable[..., WorkQueue]
A, B, C = (Key(Kind.LORAJOB, "ns", name) for name in "abc")


async def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not check():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


@pytest.fixture
def calls() -> list[Key]:
    """The keys that were reconciled."""
    return []


@pytest.fixture
async def start(calls: list[Key]) -> AsyncIterator[Start]:
    """A maker of queues of one worker that note what they reconcile."""
    made: list[WorkQueue] = []

    def start(first: Callable[[], Requeue] = lambda: DONE, **options: Any) -> WorkQueue:
        """Return a queue; `first` is the outcome of its first reconcile."""

        def reconcile(key: Key) -> Requeue:
            calls.append(key)
            return first() if len(calls) == 1 else DONE

        made.append(WorkQueue(reconcile, 1, **options))
        return made[-1]

    yield start
    for queue in made:
        await queue.close(1)


def raises(error: Exception) -> Requeue:
    raise error


async def test_one_reconcile_for_each_key_at_a_time_and_again_when_dirty() -> None:
    calls, active, most = [], 0, 0
    hold, lock = threading.Event(), threading.Lock()

    def reconcile(key: Key) -> Requeue:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        calls.append(key)
        hold.wait(5)
        with lock:
            active -= 1
        return DONE

    queue = WorkQueue(reconcile, 4)
    queue.open()
    queue.add([A])
    await until(lambda: calls == [A])
    queue.add([A])
    queue.add([A])
    assert queue.depth == 1
    hold.set()
    await until(lambda: calls == [A, A])
    await queue.close(1)
    assert most == 1


async def test_the_limit_holds_and_high_priority_goes_first(start: Start, calls: list[Key]) -> None:
    queue = start()
    queue.add([A, B], Priority.LOW)
    queue.add([C])
    assert queue.depth == 3
    assert queue.oldest_age == 0, "a queue that is closed keeps nobody waiting"
    queue.open()
    await until(lambda: len(calls) == 3)
    assert calls == [C, A, B]


@pytest.mark.parametrize(
    ("error", "again"),
    [(StaleObject("x"), True), (OperatorError("x"), True), (ValueError("x"), True), (OwnerGone("x"), False)],
    ids=["stale", "operator", "defect", "gone"],
)
async def test_errors_are_retried_unless_the_object_is_gone(
    start: Start, calls: list[Key], error: Exception, again: bool
) -> None:
    queue = start(lambda: raises(error))
    queue.open()
    queue.add([A])
    if again:
        await until(lambda: len(calls) == 2)
    else:
        await asyncio.sleep(1.2)
        assert len(calls) == 1


async def test_a_retry_keeps_its_priority(start: Start, calls: list[Key]) -> None:
    queue = start(lambda: raises(StaleObject("x")))
    queue.add([A, B, C], Priority.LOW)
    queue.open()
    await until(lambda: len(calls) == 4)
    assert calls == [A, B, C, A]


async def test_a_broken_key_does_not_hold_the_others() -> None:
    done: list[Key] = []

    def reconcile(key: Key) -> Requeue:
        if key == A:
            raise ValueError("always")
        done.append(key)
        return DONE

    queue = WorkQueue(reconcile, 1)
    queue.open()
    queue.add([A, B, C])
    await until(lambda: done == [B, C])
    await queue.close(1)


async def test_an_outcome_comes_back_later_and_wakes_others(start: Start, calls: list[Key]) -> None:
    queue = start(lambda: Requeue(0.02, frozenset({B})))
    queue.open()
    queue.add([A])
    await until(lambda: sorted(calls) == [A, A, B])


def keys(namespace: str, count: int) -> list[Key]:
    return [Key(Kind.LORAJOB, namespace, f"{namespace}-{index:03d}") for index in range(count)]


def drain(queue: PriorityQueue, count: int) -> list[str]:
    """Return the priorities and namespaces of the next keys."""
    popped = [queue.pop() for _ in range(count)]
    return [f"{priority.value}:{key.namespace}" for key, priority, _ in popped]


@pytest.mark.parametrize("priority", Priority)
def test_namespaces_are_served_round_robin(priority: Priority) -> None:
    queue = PriorityQueue()
    for key in [*keys("big", 100), *keys("small", 2)]:
        queue.add(key, priority)
    order = ("big", "small", "big", "small", "big", "big")
    assert drain(queue, 6) == [f"{priority.value}:{name}" for name in order]


def test_low_priority_goes_last_but_is_never_starved() -> None:
    now = 0.0
    queue = PriorityQueue(lambda: now)
    for key in keys("late", 3):
        queue.add(key, Priority.LOW)
    for key in keys("busy", 40):
        queue.add(key, Priority.HIGH)
    assert drain(queue, 15) == ["high:busy"] * 15
    now = AGED_SECONDS
    assert drain(queue, 21) == ["low:late", *["high:busy"] * 9] * 2 + ["low:late"]


def test_a_key_waits_once_at_its_highest_priority() -> None:
    queue = PriorityQueue()
    queue.add(A, Priority.LOW)
    queue.add(B, Priority.HIGH)
    queue.add(A, Priority.HIGH)
    queue.add(A, Priority.LOW)
    assert queue.depths() == {"high": 2, "low": 0}
    assert [queue.pop()[:2] for _ in range(2)] == [(B, Priority.HIGH), (A, Priority.HIGH)]
    assert not queue


async def test_the_queue_has_a_backlog_while_high_priority_keys_wait(start: Start) -> None:
    queue = start()
    queue.add([A], Priority.LOW)
    assert not queue.has_backlog()
    queue.add([B])
    assert queue.has_backlog()
    queue.open()
    await until(lambda: not queue.has_backlog())


async def test_sweeps_stay_behind_jobs_whatever_happens_to_them(start: Start, calls: list[Key]) -> None:
    sweeps = [Key(Kind.LORASWEEP, "sweeps", f"sweep-{index}") for index in range(5)]
    queue = start(is_low=lambda key: key.kind is Kind.LORASWEEP)
    queue.add(sweeps)
    queue.add([A, B])
    assert queue.depths() == {"high": 2, "low": 5}
    queue.open()
    await until(lambda: len(calls) == 7)
    assert calls == [A, B, *sweeps]


async def test_a_key_that_is_added_while_it_runs_keeps_its_highest_priority(start: Start, calls: list[Key]) -> None:
    hold = threading.Event()

    def first() -> Requeue:
        hold.wait(5)
        return DONE

    queue = start(first)
    queue.open()
    queue.add([A])
    await until(lambda: calls == [A])
    queue.add([A])
    queue.add([A], Priority.LOW)
    queue.add([B], Priority.LOW)
    hold.set()
    await until(lambda: calls == [A, A, B])


@pytest.mark.parametrize(
    ("priority", "order"), [(None, [A, A, B]), (Priority.LOW, [A, B, A])], ids=["as before", "behind others"]
)
async def test_a_reconcile_at_once_keeps_its_priority_unless_it_states_another(
    start: Start, calls: list[Key], priority: Priority | None, order: list[Key]
) -> None:
    queue = start(lambda: Requeue(0.0, priority=priority))
    queue.add([A])
    queue.add([B], Priority.LOW)
    queue.open()
    await until(lambda: calls == order)


async def test_a_closed_queue_starts_nothing_until_it_is_opened_again(start: Start, calls: list[Key]) -> None:
    queue = start()
    queue.open()
    queue.add([A])
    await until(lambda: calls == [A])
    await queue.close(1)
    queue.add([B])
    await asyncio.sleep(0.05)
    assert calls == [A]
    queue.open()
    await until(lambda: calls == [A, B])


def overloaded(seconds: float | None, status: int = 429) -> ApiFailure:
    error = ApiFailure(status, "busy")
    error.retry_after = seconds
    return error


def test_what_an_overloaded_server_asks_for_is_the_least() -> None:
    assert 7 <= delay(overloaded(7), 1) <= 9
    assert delay(overloaded(1), 6) > 1.2, "it grows while the server stays overloaded"


def test_only_a_bug_is_tried_less_often_than_every_half_minute() -> None:
    for status in (0, 400, 401, 403, 429, 500, 503):
        assert delay(overloaded(None, status), 100) <= MAX_BACKOFF
    assert delay(OperatorError("x"), 100) <= MAX_BACKOFF
    assert MAX_BACKOFF < delay(ValueError("a bug"), 100) <= MAX_BUG_BACKOFF
    assert delay(StaleObject("x"), 1) == 0
