"""Whose turn it is at the sampler: what takes no process never waits, a long question leaves a place to short ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tunery_api.lorasweep import SamplerType
from tunery_api.search.dimensions import Numeric
from tunery_api.search.protocol import Answer, Ask, ToldState, ToldTrial
from tunery_operator.errors import SamplerBusy
from tunery_operator.reconcile.sampler import AT_A_TIME, LARGE, LONGEST_SECONDS, Sampler

RATE = Numeric("training.learningRate", 1e-5, 1e-2, log=True)


def question(told: int, sampler: SamplerType = SamplerType.TPE, **fields: Any) -> Ask:
    """Return the question for one more trial than so many that are complete."""
    trials = tuple(
        ToldTrial(number=number, state=ToldState.COMPLETE, value=1.0, values={RATE.path: "0.001"})
        for number in range(told)
    )
    return Ask(sampler=sampler, space=(RATE,), seed=1, startup=8, trials=trials, **{"numbers": (told,), **fields})


LONG = question(LARGE + 1)
SHORT = question(8)


@contextmanager
def answering(*asks: Ask, clock: Callable[[], float] = time.monotonic) -> Iterator[Sampler]:
    """Have questions under way, each in a thread of its own; whatever else is asked is answered at once."""
    begun, let = threading.Semaphore(0), threading.Event()

    def ask(_: Ask) -> Answer:
        if threading.current_thread() in threads:
            begun.release()
            assert let.wait(10)
        return Answer()

    sampler = Sampler(ask, clock)
    threads = [threading.Thread(target=sampler.suggestions, args=(each,)) for each in asks]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=10)
    try:
        yield sampler
    finally:
        let.set()
        for thread in threads:
            thread.join(10)


def test_those_that_find_no_place_come_again_one_after_the_other() -> None:
    now = 100.0
    with answering(*[SHORT] * AT_A_TIME, clock=lambda: now) as sampler:

        def told() -> float:
            with pytest.raises(SamplerBusy) as refused:
                sampler.suggestions(SHORT)
            return refused.value.retry_after

        assert [told() for _ in range(4)] == [0.5, 1.0, 1.5, 2.0]
        now += 1.0
        assert told() == 1.5
        assert max(told() for _ in range(100)) == LONGEST_SECONDS
        now += 100.0
        assert told() == 0.5


def test_one_more_than_there_are_places_comes_again_later() -> None:
    with answering(*[SHORT] * AT_A_TIME) as sampler, pytest.raises(SamplerBusy):
        sampler.suggestions(SHORT)
    assert sampler.suggestions(SHORT) == Answer()


def test_a_second_long_question_waits_and_a_short_one_has_its_place() -> None:
    with answering(LONG) as sampler:
        with pytest.raises(SamplerBusy):
            sampler.suggestions(LONG)
        assert sampler.suggestions(SHORT) == Answer()
    assert sampler.suggestions(LONG) == Answer()


def test_a_long_question_that_finds_no_place_keeps_none_from_the_next() -> None:
    with answering(*[SHORT] * AT_A_TIME) as sampler, pytest.raises(SamplerBusy):
        sampler.suggestions(LONG)
    assert sampler.suggestions(LONG) == Answer()


@pytest.mark.parametrize(
    "asked",
    [question(7), question(30, SamplerType.RANDOM), question(30, SamplerType.GRID), question(5, numbers=())],
    ids=["startup", "random", "grid", "nothing-to-weigh"],
)
def test_what_takes_no_process_never_waits(asked: Ask) -> None:
    with answering(*[SHORT] * AT_A_TIME) as sampler:
        assert sampler.suggestions(asked) == Answer()
