"""The sampler of all sweeps: no reconcile waits for it, and an answer enqueues its sweep."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tunery_api.kinds import Kind
from tunery_api.lorasweep import SamplerType
from tunery_operator.controllers.sampler_pool import MAX_PROCESSES, SamplerPool
from tunery_operator.errors import SamplerBusy
from tunery_operator.observed.metadata import Key
from tunery_search.dimensions import Numeric
from tunery_search.history import Observation, ObservationState, Suggestion, SuggestionReply, SuggestionRequest
from tunery_search.sampler import SuggestionFailed

from kit.operator.api import eventually

RATE = Numeric("training.learningRate", 1e-5, 1e-2, log=True)


def question(told: int, sampler: SamplerType = SamplerType.TPE, **fields: Any) -> SuggestionRequest:
    """Return the question for one more trial than so many that are complete."""
    trials = tuple(
        Observation(number=number, state=ObservationState.COMPLETE, value=1.0, values={RATE.path: "0.001"})
        for number in range(told)
    )
    return SuggestionRequest(
        sampler=sampler, space=(RATE,), seed=1, startup=8, trials=trials, **{"numbers": (told,), **fields}
    )


def key(name: str) -> Key:
    return Key(Kind.LORASWEEP, "ns", name)


class Optuna:
    """Answers one question after the other, each when it is let."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.let = threading.Semaphore(0)

    def __call__(self, ask: SuggestionRequest) -> SuggestionReply:
        self.asked.append(len(ask.trials))
        assert self.let.acquire(timeout=10)
        return SuggestionReply(suggestions=(Suggestion(number=len(ask.trials), origin="TPE", values={}),))


def test_a_question_is_asked_once_and_its_answer_enqueues_the_sweep() -> None:
    optuna, enqueued = Optuna(), list[Key]()
    sampler = SamplerPool(enqueued.append, optuna)
    for _ in range(3):
        with pytest.raises(SamplerBusy):
            sampler.suggest(question(8), key("a"), "uid")
    optuna.let.release()
    eventually("it is enqueued", lambda: enqueued == [key("a")])
    assert [each.number for each in sampler.suggest(question(8), key("a"), "uid").suggestions] == [8]
    assert optuna.asked == [8]
    with pytest.raises(SamplerBusy):
        sampler.suggest(question(8), key("a"), "uid")
    optuna.let.release()
    eventually("an answer is given once", lambda: optuna.asked == [8, 8])


def test_the_answer_to_another_question_is_not_taken() -> None:
    optuna, enqueued = Optuna(), list[Key]()
    sampler = SamplerPool(enqueued.append, optuna)
    for told in (8, 9):
        with pytest.raises(SamplerBusy):
            sampler.suggest(question(told), key("a"), "uid")
    optuna.let.release(2)
    eventually("both have answers", lambda: len(enqueued) == 2)
    assert [each.number for each in sampler.suggest(question(9), key("a"), "uid").suggestions] == [9]


def test_two_are_asked_at_a_time_and_the_others_in_their_order() -> None:
    optuna = Optuna()
    sampler = SamplerPool(ask=optuna)
    for told in range(8, 14):
        with pytest.raises(SamplerBusy):
            sampler.suggest(question(told), key(f"{told}"), f"{told}")
        if told == 7 + MAX_PROCESSES:
            eventually("each process has a question", lambda: len(optuna.asked) == MAX_PROCESSES)
    assert sorted(optuna.asked) == [8, 9]
    for more in range(3, 7):
        optuna.let.release()
        eventually("the next is asked", lambda more=more: len(optuna.asked) == more)
    assert optuna.asked[2:] == [10, 11, 12, 13]
    optuna.let.release(6)


@pytest.mark.parametrize(
    "asked",
    [question(7), question(30, SamplerType.RANDOM), question(30, SamplerType.GRID), question(5, numbers=())],
    ids=["startup", "random", "grid", "nothing-to-weigh"],
)
def test_what_takes_no_process_is_answered_at_once(asked: SuggestionRequest) -> None:
    assert SamplerPool(ask=lambda _: SuggestionReply()).suggest(asked, key("a"), "uid") == SuggestionReply()


def test_a_failure_is_raised_once_and_the_question_asked_again() -> None:
    enqueued, asked = list[Key](), list[SuggestionRequest]()

    def fails(ask: SuggestionRequest) -> SuggestionReply:
        asked.append(ask)
        raise SuggestionFailed("it was killed")

    sampler = SamplerPool(enqueued.append, fails)
    for times in (1, 2):
        with pytest.raises(SamplerBusy):
            sampler.suggest(question(8), key("a"), "uid")
        eventually("it has failed", lambda times=times: len(enqueued) == times)
        with pytest.raises(SuggestionFailed, match="it was killed"):
            sampler.suggest(question(8), key("a"), "uid")
    assert len(asked) == 2


def test_once_closed_it_asks_nothing_and_enqueues_nothing() -> None:
    optuna, enqueued = Optuna(), list[Key]()
    sampler = SamplerPool(enqueued.append, optuna)
    with pytest.raises(SamplerBusy):
        sampler.suggest(question(8), key("a"), "uid")
    eventually("it is asked", lambda: optuna.asked)
    sampler.close()
    with pytest.raises(SamplerBusy):
        sampler.suggest(question(9), key("a"), "uid")
    optuna.let.release(2)
    assert optuna.asked == [8]
    assert not enqueued


def _metrics() -> list[float]:
    names = ("tunery_suggest_seconds_count", "tunery_suggest_seconds_sum", "tunery_suggest_errors_total")
    return [REGISTRY.get_sample_value(name) or 0.0 for name in names]


@pytest.mark.parametrize(("fails", "counted"), [(False, [1, 2, 0]), (True, [1, 2, 1])])
def test_metrics_count_each_answer_and_each_that_did_not_come(fails: bool, counted: list[float]) -> None:
    def ask(_: SuggestionRequest) -> SuggestionReply:
        if fails:
            raise SuggestionFailed("no Optuna")
        return SuggestionReply()

    clock: Callable[[], float] = iter(range(0, 80, 2)).__next__
    before, sampler = _metrics(), SamplerPool(ask=ask, clock=clock)
    try:
        sampler.suggest(question(5, SamplerType.RANDOM), key("a"), "uid")
    except SuggestionFailed:
        assert fails
    assert [after - earlier for after, earlier in zip(_metrics(), before, strict=True)] == counted
