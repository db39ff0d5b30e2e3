"""Whose turn it is at the sampler: what takes no process never waits, a long question leaves a place to short ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tunery_api.lorasweep import SamplerType
from tunery_operator.errors import SamplerBusy
from tunery_operator.reconcile.sampler import AT_A_TIME, LARGE, Sampler
from tunery_operator.reconcile.turns import LONGEST_SECONDS, Turns
from tunery_search.dimensions import Numeric
from tunery_search.protocol import Answer, Ask, ToldState, ToldTrial
from tunery_search.sampler import SuggestionFailed

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
    threads = [
        threading.Thread(target=sampler.suggestions, args=(each, f"under way {index}"))
        for index, each in enumerate(asks)
    ]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=10)
    try:
        yield sampler
    finally:
        let.set()
        for thread in threads:
            thread.join(10)


def test_fifty_that_ask_all_the_time_are_all_served_before_one_is_served_twice() -> None:
    now, takes = 0.0, 2.5
    turns = Turns(AT_A_TIME, lambda: now)
    # Steps of a tenth of a second; each asks when it was told to, and again as soon as it was served.
    due, ends, served = dict.fromkeys((f"s{number}" for number in range(50)), 0.0), list[float](), list[str]()
    while len(served) < 100:
        for _ in [end for end in ends if end <= now]:
            ends.pop(0)
            turns.give(large=False, seconds=takes)
        for name in sorted(due, key=lambda name: due[name]):
            if due[name] > now:
                continue
            try:
                turns.take(name, large=False)
                served.append(name)
                ends.append(now + takes)
                due[name] = now + takes
            except SamplerBusy as busy:
                due[name] = now + min(busy.retry_after, LONGEST_SECONDS)
            if len(served) == 50:
                first = now
        now = round(now + 0.1, 1)
    assert len(set(served[:50])) == 50
    assert first <= 1.25 * 50 * takes / AT_A_TIME
    assert len(set(served[50:])) >= 48, "and again in about that order"


def test_who_does_not_come_keeps_its_place_and_holds_nobody_up() -> None:
    now = 100.0
    turns = Turns(1, lambda: now)
    turns.take("runs", large=False)
    for name in ("first", "second"):
        with pytest.raises(SamplerBusy):
            turns.take(name, large=False)
    turns.give(large=False, seconds=1.0)
    with pytest.raises(SamplerBusy):
        turns.take("second", large=False)
    now += 2.0
    turns.take("second", large=False)
    with pytest.raises(SamplerBusy):
        turns.take("new", large=False)
    turns.give(large=False, seconds=1.0)
    turns.take("first", large=False)
    now += 100.0
    turns.give(large=False, seconds=1.0)
    turns.take("other", large=False)


def test_one_more_than_there_are_places_comes_again_later() -> None:
    with answering(*[SHORT] * AT_A_TIME) as sampler, pytest.raises(SamplerBusy):
        sampler.suggestions(SHORT, "new")
    assert sampler.suggestions(SHORT, "new") == Answer()


def test_a_second_long_question_waits_and_a_short_one_has_its_place() -> None:
    with answering(LONG) as sampler:
        with pytest.raises(SamplerBusy):
            sampler.suggestions(LONG, "new")
        assert sampler.suggestions(SHORT, "new") == Answer()
    assert sampler.suggestions(LONG, "new") == Answer()


def test_a_long_question_that_finds_no_place_keeps_none_from_the_next() -> None:
    with answering(*[SHORT] * AT_A_TIME) as sampler, pytest.raises(SamplerBusy):
        sampler.suggestions(LONG, "new")
    assert sampler.suggestions(LONG, "new") == Answer()


@pytest.mark.parametrize(
    "asked",
    [question(7), question(30, SamplerType.RANDOM), question(30, SamplerType.GRID), question(5, numbers=())],
    ids=["startup", "random", "grid", "nothing-to-weigh"],
)
def test_what_takes_no_process_never_waits(asked: Ask) -> None:
    with answering(*[SHORT] * AT_A_TIME) as sampler:
        assert sampler.suggestions(asked, "new") == Answer()


def test_metrics_tell_of_each_answer_and_of_each_that_did_not_come() -> None:
    def told() -> list[float]:
        names = ("tunery_suggest_seconds_count", "tunery_suggest_seconds_sum", "tunery_suggest_errors_total")
        return [REGISTRY.get_sample_value(name) or 0.0 for name in names]

    def fails(_: Ask) -> Answer:
        raise SuggestionFailed("no Optuna")

    before, clock = told(), iter(range(0, 80, 2)).__next__
    Sampler(lambda _: Answer(), clock).suggestions(question(5, SamplerType.RANDOM), "s")
    answered = told()
    assert [after - earlier for after, earlier in zip(answered, before, strict=True)] == [1, 2, 0]
    with pytest.raises(SuggestionFailed):
        Sampler(fails, clock).suggestions(question(5, SamplerType.RANDOM), "s")
    assert [after - earlier for after, earlier in zip(told(), answered, strict=True)] == [1, 2, 1]
