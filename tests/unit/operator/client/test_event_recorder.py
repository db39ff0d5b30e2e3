"""Events: valid for every name, no repeats, no flood, and none lost when the operator stops."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_operator.client.event_recorder import (
    BURST,
    IN_FLIGHT,
    REFILL_SECONDS,
    REPEAT_SECONDS,
    RESERVE,
    EventFilter,
    EventRecorder,
    build_event,
)
from tunery_operator.errors import ApiFailure
from tunery_operator.observed.event import Event
from tunery_operator.observed.metadata import Key, Owner

from kit.operator.api import eventually

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def owner(name: str = "a", generation: int = 1) -> Owner:
    return Owner(Key(Kind.LORAJOB, "ns", name), f"uid-{name}", generation, {})


def event(reason: str, note: str = "text", warning: bool = False, ends: bool = False) -> Event:
    return Event(reason, note, warning, "2026-01-31T12:00:00Z", ends)


class Server:
    """Takes events as the API server does: `answer` may hold one up, or refuse it."""

    def __init__(self, answer: Callable[[], None] = lambda: None) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.active = self.most = 0
        self._lock = threading.Lock()

    def request(self, call: Any, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.active += 1
            self.most = max(self.most, self.active)
        try:
            self.answer()
        finally:
            with self._lock:
                self.active -= 1
        with self._lock:
            self.bodies.append(body)
        return {}


@pytest.mark.parametrize(
    "name", ["a", "a" * 253, "a" * 199 + "-" + "b" * 53, "x." * 118 + "y", "a" * 235 + "-" + "b" * 17]
)
def test_every_object_has_valid_names_for_its_events(name: str) -> None:
    built = build_event(owner(name), event("Training"), NOW, "host")["metadata"]["name"]
    assert len(built) <= 253
    assert SUBDOMAIN.fullmatch(built)


def dropped(events: EventFilter, *posted: Event, generation: int = 1) -> list[str | None]:
    """Return why each of these events about one object is dropped."""
    return [events.drop_reason(owner(generation=generation), each) for each in posted]


def test_a_repeat_is_dropped_for_ten_minutes() -> None:
    now = 0.0
    events = EventFilter(lambda: now)
    phases = [event("Training", "pod a on node n") if step % 2 else event("Evaluating") for step in range(400)]
    assert dropped(events, *phases) == [None, None] + ["repeated"] * 398
    assert events.drop_reason(owner("other"), phases[0]) is None
    now = REPEAT_SECONDS
    assert dropped(events, phases[1]) == [None]


def test_a_retry_and_a_change_of_the_spec_make_all_events_news() -> None:
    events = EventFilter(lambda: 0.0)
    runs = event("PreflightRunning")
    assert dropped(events, runs, event("Retried"), runs, runs) == [None, None, None, "repeated"]
    assert dropped(events, runs, generation=2) == [None]


@pytest.mark.parametrize(
    ("reason", "warning"),
    [("AttemptFailed", True), ("PodStarted", False), ("NewBest", False), ("AdapterServed", False)],
)
def test_another_note_is_another_event(reason: str, warning: bool) -> None:
    """An attempt after the first has another pod, a sweep another best trial, a server one more adapter."""
    one, other = event(reason, "a", warning), event(reason, "b", warning)
    assert dropped(EventFilter(lambda: 0.0), one, other, other) == [None, None, "repeated"]


def test_the_newest_event_of_an_adapter_that_flaps_is_true() -> None:
    served, failed = event("AdapterServed", "served: a@4a"), event("AdapterFailed", "a: denied", warning=True)
    events = EventFilter(lambda: 0.0)
    assert dropped(events, *(served, failed) * 5) == [None] * 10
    assert dropped(events, *(served, failed) * 50).count(None) == BURST - 10


def test_one_object_cannot_flood() -> None:
    now = 0.0
    events = EventFilter(lambda: now)
    failures = [event("AttemptFailed", f"pod {index}", warning=True) for index in range(BURST + 5)]
    assert dropped(events, *failures) == [None] * BURST + ["limit"] * 5
    now = REFILL_SECONDS
    assert dropped(events, event("AttemptFailed", "later", warning=True)) == [None]


def test_the_end_of_an_object_has_a_reserve_of_its_own() -> None:
    now = 0.0
    events = EventFilter(lambda: now)
    dropped(events, *(event("AttemptFailed", f"pod {index}", warning=True) for index in range(BURST)))
    ends = [event("Failed", f"{index}", ends=True) for index in range(RESERVE + 1)]
    assert dropped(events, *ends) == [None] * RESERVE + ["limit"]
    now = REFILL_SECONDS
    assert dropped(events, event("Training")) == ["limit"], "the reserve is refilled first"
    now = REFILL_SECONDS * (RESERVE + 1)
    assert dropped(events, event("Training")) == [None]


def test_few_are_in_flight_and_all_are_posted_before_the_operator_stops() -> None:
    hold = threading.Event()
    server = Server(lambda: void(hold.wait(10)))
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    for index in range(40):
        recorder.record(owner(f"o{index}"), [event("Training")])
    eventually("all threads are at work", lambda: server.active == IN_FLIGHT)
    hold.set()
    recorder.close(10)
    assert len(server.bodies) == 40
    assert server.most == IN_FLIGHT


def void(_: bool) -> None:
    """Throw an answer away."""


def test_an_overloaded_server_is_asked_again() -> None:
    answers = iter([429, 503])

    def answer() -> None:
        status = next(answers, None)
        if status is not None:
            error = ApiFailure(status, "busy")
            error.retry_after = 0.01
            raise error

    server = Server(answer)
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    recorder.record(owner(), [event("Training")])
    recorder.close(10)
    assert [body["reason"] for body in server.bodies] == ["Training"]


def test_an_event_of_before_a_restart_is_there_already(caplog: pytest.LogCaptureFixture) -> None:
    def answer() -> None:
        raise ApiFailure(409, "events already exists")

    server = Server(answer)
    recorder = EventRecorder(server)  # type: ignore[arg-type]
    recorder.record(owner(), [event("Queued")])
    recorder.close(5)
    assert caplog.messages == []
