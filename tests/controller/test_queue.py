"""The work queue: one at a time for each key, again when dirty, later when it failed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from tunery_operator.errors import OperatorError, OwnerGone, StaleObject
from tunery_operator.plan.model import Key, Kind
from tunery_operator.queue import WorkQueue
from tunery_operator.reconcile.outcome import DONE, Outcome

A, B, C = (Key(Kind.LORAJOB, "ns", name) for name in "abc")


async def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not check():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_one_reconcile_for_each_key_at_a_time_and_again_when_dirty() -> None:
    calls, active, most = [], 0, 0
    hold, lock = threading.Event(), threading.Lock()

    def reconcile(key: Key) -> Outcome:
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

    def reconcile(key: Key) -> Outcome:
        calls.append(key)
        return DONE

    queue = WorkQueue(reconcile, 1)
    queue.add([A, B])
    queue.add([C], fresh=True)
    assert queue.depth == 3
    assert queue.oldest_age > 0
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

    def reconcile(key: Key) -> Outcome:
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

    def reconcile(key: Key) -> Outcome:
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

    def reconcile(key: Key) -> Outcome:
        calls.append(key)
        return Outcome(0.02, frozenset({B})) if calls == [A] else DONE

    queue = WorkQueue(reconcile, 1)
    queue.open()
    queue.add([A])
    await until(lambda: sorted(calls) == [A, A, B])
    await queue.close(1)
