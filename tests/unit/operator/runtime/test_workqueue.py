"""The work queue: one at a time for each key, again when dirty, later when it failed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from tunery_api.kinds import Kind
from tunery_operator.errors import ApiFailure, OperatorError, OwnerGone, StaleObject
from tunery_operator.runtime.priority_queue import AGED_SECONDS, Lane, Lanes
from tunery_operator.runtime.workqueue import DONE, MAX_REFUSAL_BACKOFF, Requeue, WorkQueue, delay
from tunery_operator.views.owner import Key

A, B, C = (Key(Kind.LORAJOB, "ns", name) for name in "abc")


async def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not check():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


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


async def test_the_limit_holds_and_fresh_objects_go_first() -> None:
    calls: list[Key] = []

    def reconcile(key: Key) -> Requeue:
        calls.append(key)
        return DONE

    queue = WorkQueue(reconcile, 1)
    queue.add([A, B])
    queue.add([C], lane=Lane.FRESH)
    assert queue.depth == 3
    assert queue.oldest_age == 0, "a queue that is closed keeps nobody waiting"
    queue.open()
    await until(lambda: len(calls) == 3)
    assert calls == [C, A, B]
    await queue.close(1)


@pytest.mark.parametrize(
    ("error", "again"),
    [(StaleObject("x"), True), (OperatorError("x"), True), (ValueError("x"), True), (OwnerGone("x"), False)],
    ids=["stale", "operator", "defect", "gone"],
)
async def test_errors_are_retried_unless_the_object_is_gone(error: Exception, again: bool) -> None:
    calls: list[Key] = []

    def reconcile(key: Key) -> Requeue:
        calls.append(key)
        if len(calls) == 1:
            raise error
        return DONE

    queue = WorkQueue(reconcile, 1)
    queue.open()
    queue.add([A])
    if again:
        await until(lambda: len(calls) == 2)
    else:
        await asyncio.sleep(1.2)
        assert len(calls) == 1
    await queue.close(1)


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


async def test_an_outcome_comes_back_later_and_wakes_others() -> None:
    calls: list[Key] = []

    def reconcile(key: Key) -> Requeue:
        calls.append(key)
        return Requeue(0.02, frozenset({B})) if calls == [A] else DONE

    queue = WorkQueue(reconcile, 1)
    queue.open()
    queue.add([A])
    await until(lambda: sorted(calls) == [A, A, B])
    await queue.close(1)


def keys(namespace: str, count: int) -> list[Key]:
    return [Key(Kind.LORAJOB, namespace, f"{namespace}-{index:03d}") for index in range(count)]


def drain(lanes: Lanes, count: int) -> list[str]:
    """Return the lanes and namespaces of the next keys."""
    popped = [lanes.pop() for _ in range(count)]
    return [f"{lane.value}:{key.namespace}" for key, lane, _ in popped]


def test_namespaces_take_turns() -> None:
    lanes = Lanes()
    for key in [*keys("big", 100), *keys("small", 2)]:
        lanes.put(key, Lane.NORMAL)
    assert drain(lanes, 6) == [f"normal:{name}" for name in ("big", "small", "big", "small", "big", "big")]


def test_nine_fresh_keys_go_before_one_that_was_looked_at_before() -> None:
    lanes = Lanes()
    for key in keys("fresh", 20):
        lanes.put(key, Lane.FRESH)
    for key in keys("known", 10):
        lanes.put(key, Lane.NORMAL)
    assert drain(lanes, 20) == [*["fresh:fresh"] * 9, "normal:known"] * 2
    assert drain(lanes, 3) == ["fresh:fresh", "fresh:fresh", "normal:known"]


async def test_the_queue_is_pressed_while_fresh_keys_wait() -> None:
    queue = WorkQueue(lambda _: DONE, 1)
    queue.add([A], lane=Lane.NORMAL)
    assert not queue.is_pressed()
    queue.add([B], lane=Lane.FRESH)
    assert queue.is_pressed()
    queue.open()
    await until(lambda: not queue.is_pressed())
    await queue.close(1)


def test_the_low_lane_goes_last_but_is_never_starved() -> None:
    now = 0.0
    lanes = Lanes(lambda: now)
    for key in keys("late", 3):
        lanes.put(key, Lane.LOW)
    for key in keys("busy", 40):
        lanes.put(key, Lane.NORMAL)
    assert drain(lanes, 15) == ["normal:busy"] * 15
    now = AGED_SECONDS
    assert drain(lanes, 21) == ["low:late", *["normal:busy"] * 9] * 2 + ["low:late"]


def test_keys_of_sweeps_and_others_that_are_known_go_by_the_time_they_waited() -> None:
    now = 0.0
    lanes = Lanes(lambda: now)
    for lane, namespace in ((Lane.ASIDE, "sweep"), (Lane.NORMAL, "known"), (Lane.ASIDE, "trial"), (Lane.LOW, "low")):
        now += 1
        lanes.put(Key(Kind.LORAJOB, namespace, "a"), lane)
    lanes.put(C, Lane.FRESH)
    assert lanes.has(aside=False)
    assert drain(lanes, 4) == [f"fresh:{C.namespace}", "aside:sweep", "normal:known", "aside:trial"]
    lanes.put(A, Lane.ASIDE)
    assert lanes.pop(aside=False)[1] is Lane.LOW
    assert not lanes.has(aside=False)
    assert lanes.has(aside=True)


async def test_sweeps_that_begin_at_once_leave_workers_to_others() -> None:
    running: set[Key] = set()
    hold = threading.Event()

    def reconcile(key: Key) -> Requeue:
        running.add(key)
        hold.wait(5)
        return DONE

    sweeps = [Key(Kind.LORASWEEP, "sweeps", f"sweep-{index}") for index in range(50)]
    queue = WorkQueue(reconcile, 16, lambda key: key.kind is Kind.LORASWEEP)
    queue.open()
    queue.add(sweeps, lane=Lane.FRESH)
    await until(lambda: len(running) == 4)
    queue.add([A, B])
    await until(lambda: {A, B} <= running)
    assert len(running) == 6
    assert queue.depth == 46
    queue.add(sweeps[:2], lane=Lane.LOW)
    hold.set()
    await until(lambda: running == {A, B, *sweeps})
    await queue.close(1)
    assert queue.depth == 0


def test_no_two_of_many_keys_of_sweeps_go_before_one_that_is_known() -> None:
    now = 0.0
    lanes = Lanes(lambda: now)
    for key in keys("sweeps", 20):
        lanes.put(key, Lane.ASIDE)
    now += 10
    for key in keys("known", 3):
        lanes.put(key, Lane.NORMAL)
    assert drain(lanes, 8) == [*["aside:sweeps", "normal:known"] * 3, *["aside:sweeps"] * 2]


@pytest.mark.parametrize("workers", [2, 3, 4])
async def test_of_a_few_workers_one_is_left_to_others(workers: int) -> None:
    running: set[Key] = set()
    hold = threading.Event()

    def reconcile(key: Key) -> Requeue:
        running.add(key)
        hold.wait(5)
        return DONE

    queue = WorkQueue(reconcile, workers, lambda key: key.kind is Kind.LORASWEEP)
    queue.open()
    queue.add([Key(Kind.LORASWEEP, "sweeps", f"sweep-{index}") for index in range(9)])
    await until(lambda: len(running) == workers - 1)
    queue.add([A])
    await until(lambda: A in running)
    hold.set()
    await until(lambda: len(running) == 10)
    await queue.close(1)


def test_a_key_waits_once_in_its_most_urgent_lane() -> None:
    lanes = Lanes()
    lanes.put(A, Lane.LOW)
    lanes.put(B, Lane.NORMAL)
    lanes.put(A, Lane.FRESH)
    lanes.put(A, Lane.NORMAL)
    assert lanes.depths() == {"fresh": 1, "normal": 1, "aside": 0, "low": 0}
    assert [lanes.pop()[:2] for _ in range(2)] == [(A, Lane.FRESH), (B, Lane.NORMAL)]
    assert not lanes


async def test_a_closed_queue_starts_nothing_until_it_is_opened_again() -> None:
    calls: list[Key] = []

    def reconcile(key: Key) -> Requeue:
        calls.append(key)
        return DONE

    queue = WorkQueue(reconcile, 1)
    queue.open()
    queue.add([A])
    await until(lambda: calls == [A])
    await queue.close(1)
    queue.add([B])
    await asyncio.sleep(0.05)
    assert calls == [A]
    queue.open()
    await until(lambda: calls == [A, B])
    await queue.close(1)


def overloaded(seconds: float | None, status: int = 429) -> ApiFailure:
    error = ApiFailure(status, "busy")
    error.retry_after = seconds
    return error


def test_what_an_overloaded_server_asks_for_is_the_least() -> None:
    assert 7 <= delay(overloaded(7), 1) <= 9
    assert delay(overloaded(1), 6) > 1.2, "it grows while the server stays overloaded"


def test_what_the_api_server_refused_is_over_for_everybody_soon_after_it_is_over() -> None:
    for status in (0, 400, 401, 403, 429, 500, 503):
        assert delay(overloaded(None, status), 100) <= MAX_REFUSAL_BACKOFF
    assert delay(ValueError("a defect"), 100) > MAX_REFUSAL_BACKOFF
    assert delay(StaleObject("x"), 1) == 0
