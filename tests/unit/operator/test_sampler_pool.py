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


def request(completed: int, sampler: SamplerType = SamplerType.TPE, **fields: Any) -> SuggestionRequest:
    """Return the request for one trial after this many complete ones."""
    trials = tuple(
        Observation(number=number, state=ObservationState.COMPLETE, value=1.0, values={RATE.path: "0.001"})
        for number in range(completed)
    )
    return SuggestionRequest(
        sampler=sampler, space=(RATE,), seed=1, startup=8, trials=trials, **{"numbers": (completed,), **fields}
    )


def key(name: str) -> Key:
    return Key(Kind.LORASWEEP, "ns", name)


class Optuna:
    """Stand-in for Optuna: it answers one request for each release of the semaphore `let`."""

    def __init__(self) -> None:
        self.computed: list[int] = []
        self.let = threading.Semaphore(0)

    def __call__(self, request: SuggestionRequest) -> SuggestionReply:
        self.computed.append(len(request.trials))
        assert self.let.acquire(timeout=10)
        return SuggestionReply(suggestions=(Suggestion(number=len(request.trials), origin="TPE", values={}),))


def test_a_request_is_computed_once_and_its_answer_enqueues_the_sweep() -> None:
    optuna, enqueued = Optuna(), list[Key]()
    sampler = SamplerPool(enqueued.append, optuna)
    for _ in range(3):
        with pytest.raises(SamplerBusy):
            sampler.suggest(request(8), key("a"), "uid")
    optuna.let.release()
    eventually("it is enqueued", lambda: enqueued == [key("a")])
    assert [each.number for each in sampler.suggest(request(8), key("a"), "uid").suggestions] == [8]
    assert optuna.computed == [8]
    with pytest.raises(SamplerBusy):
        sampler.suggest(request(8), key("a"), "uid")
    optuna.let.release()
    eventually("an answer is given once", lambda: optuna.computed == [8, 8])


def test_the_answer_to_another_request_is_not_used() -> None:
    optuna, enqueued = Optuna(), list[Key]()
    sampler = SamplerPool(enqueued.append, optuna)
    for completed in (8, 9):
        with pytest.raises(SamplerBusy):
            sampler.suggest(request(completed), key("a"), "uid")
    optuna.let.release(2)
    eventually("both have answers", lambda: len(enqueued) == 2)
    assert [each.number for each in sampler.suggest(request(9), key("a"), "uid").suggestions] == [9]


def test_two_are_computed_at_a_time_and_the_others_in_order() -> None:
    optuna = Optuna()
    sampler = SamplerPool(compute=optuna)
    for completed in range(8, 14):
        with pytest.raises(SamplerBusy):
            sampler.suggest(request(completed), key(f"{completed}"), f"{completed}")
        if completed == 7 + MAX_PROCESSES:
            eventually("each process has a request", lambda: len(optuna.computed) == MAX_PROCESSES)
    assert sorted(optuna.computed) == [8, 9]
    for more in range(3, 7):
        optuna.let.release()
        eventually("the next is computed", lambda more=more: len(optuna.computed) == more)
    assert optuna.computed[2:] == [10, 11, 12, 13]
    optuna.let.release(6)


@pytest.mark.parametrize(
    "sent",
    [request(7), request(30, SamplerType.RANDOM), request(30, SamplerType.GRID), request(5, numbers=())],
    ids=["startup", "random", "grid", "nothing-to-weigh"],
)
def test_what_takes_no_process_is_answered_at_once(sent: SuggestionRequest) -> None:
    assert SamplerPool(compute=lambda _: SuggestionReply()).suggest(sent, key("a"), "uid") == SuggestionReply()


def test_a_failure_is_raised_once_and_the_request_computed_again() -> None:
    enqueued, requests = list[Key](), list[SuggestionRequest]()

    def fails(request: SuggestionRequest) -> SuggestionReply:
        requests.append(request)
        raise SuggestionFailed("it was killed")

    sampler = SamplerPool(enqueued.append, fails)
    for times in (1, 2):
        with pytest.raises(SamplerBusy):
            sampler.suggest(request(8), key("a"), "uid")
        eventually("it has failed", lambda times=times: len(enqueued) == times)
        with pytest.raises(SuggestionFailed, match="it was killed"):
            sampler.suggest(request(8), key("a"), "uid")
    assert len(requests) == 2


def test_once_closed_it_computes_nothing_and_enqueues_nothing() -> None:
    optuna, enqueued = Optuna(), list[Key]()
    sampler = SamplerPool(enqueued.append, optuna)
    with pytest.raises(SamplerBusy):
        sampler.suggest(request(8), key("a"), "uid")
    eventually("it is computed", lambda: optuna.computed)
    sampler.close()
    with pytest.raises(SamplerBusy):
        sampler.suggest(request(9), key("a"), "uid")
    optuna.let.release(2)
    assert optuna.computed == [8]
    assert not enqueued


def _metrics() -> list[float]:
    names = ("tunery_suggest_seconds_count", "tunery_suggest_seconds_sum", "tunery_suggest_errors_total")
    return [REGISTRY.get_sample_value(name) or 0.0 for name in names]


@pytest.mark.parametrize(("fails", "counted"), [(False, [1, 2, 0]), (True, [1, 2, 1])])
def test_metrics_count_each_answer_and_each_that_did_not_come(fails: bool, counted: list[float]) -> None:
    def compute(_: SuggestionRequest) -> SuggestionReply:
        if fails:
            raise SuggestionFailed("no Optuna")
        return SuggestionReply()

    clock: Callable[[], float] = iter(range(0, 80, 2)).__next__
    before, sampler = _metrics(), SamplerPool(compute=compute, clock=clock)
    try:
        sampler.suggest(request(5, SamplerType.RANDOM), key("a"), "uid")
    except SuggestionFailed:
        assert fails
    assert [after - earlier for after, earlier in zip(_metrics(), before, strict=True)] == counted
