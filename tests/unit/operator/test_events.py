"""Events: valid for every name, nothing twice, never a flood, and none lost when the operator stops."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tunery_api.kinds import Kind
from tunery_operator.errors import ApiFailure
from tunery_operator.kube.event_body import build_event
from tunery_operator.kube.event_limit import BURST, REFILL_SECONDS, REPEAT_SECONDS, RESERVE, TIMES, EventLimit
from tunery_operator.kube.events import IN_FLIGHT, EventPoster
from tunery_operator.views.event import Event
from tunery_operator.views.owner import Key, Owner

from kit.operator.api import eventually

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def owner(name: str = "a") -> Owner:
    return Owner(Key(Kind.LORAJOB, "ns", name), f"uid-{name}", 1, {})


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


def test_what_was_told_lately_is_not_told_again() -> None:
    now = 0.0
    limit = EventLimit(lambda: now)
    flips = [event("Training", "pod a on node n") if step % 2 else event("Evaluating") for step in range(400)]
    assert [limit.refused("u", flip) for flip in flips] == [None, None] + ["repeated"] * 398
    assert limit.refused("other", event("Training", "pod a on node n")) is None
    now = REPEAT_SECONDS
    assert limit.refused("u", event("Training", "pod a on node n")) is None


@pytest.mark.parametrize("reason", ["Retried", "Resumed"])
def test_after_a_persons_hand_all_is_told_once_more(reason: str) -> None:
    limit = EventLimit(lambda: 0.0)
    told = ["PreflightRunning", reason, "PreflightRunning", "PreflightRunning", reason]
    assert [limit.refused("u", event(item)) for item in told] == [None, None, None, "repeated", None]


@pytest.mark.parametrize(
    ("reason", "warning"),
    [("AttemptFailed", True), ("PodStarted", False), ("NewBest", False), ("AdapterServed", False)],
)
def test_two_things_of_one_reason_are_two_events(reason: str, warning: bool) -> None:
    """An attempt after the first has another pod, a sweep another best trial, a server one more adapter."""
    limit = EventLimit(lambda: 0.0)
    assert limit.refused("u", event(reason, "a", warning)) is None
    assert limit.refused("u", event(reason, "b", warning)) is None
    assert limit.refused("u", event(reason, "b", warning)) == "repeated"


BOTH, PARCELS = ("AdapterServed", "served: quickstart@0e, support-bot@f0"), ("AdapterServed", "served: parcels@4a")
PARCELS_GONE, BOT_GONE = ("AdapterRemoved", "not served: parcels"), ("AdapterRemoved", "not served: support-bot")
READY, STOPPED = ("ServerReady", "1/1 replicas answer"), ("Stopped", "spec.replicas is 0")
FAILED = ("AdapterFailed", "StorageAccessDenied: parcels: no")


@pytest.mark.parametrize(
    "story",
    [
        (READY, BOTH, PARCELS, PARCELS_GONE, PARCELS, BOT_GONE, PARCELS_GONE),
        (READY, STOPPED, READY, STOPPED),
        (PARCELS, FAILED, PARCELS, FAILED, PARCELS, FAILED, PARCELS),
        (PARCELS, PARCELS_GONE, FAILED, PARCELS_GONE, FAILED),
    ],
)
def test_what_was_undone_meanwhile_is_told_again(story: tuple[tuple[str, str], ...]) -> None:
    limit = EventLimit(lambda: 0.0)
    assert [limit.refused("u", event(*told, warning=told is FAILED)) for told in story] == [None] * len(story)


def test_an_adapter_that_fails_and_heals_again_and_again_is_told_of_a_few_times_with_how_often_it_was() -> None:
    now = 0.0
    limit = EventLimit(lambda: now)
    failed, served = event(FAILED[0], FAILED[1] * 50, warning=True), event(*PARCELS)
    notes = []
    for told in (failed, served) * 50:
        if limit.refused("u", told) is None:
            notes.append(limit.counted("u", told).note)
    assert len(notes) == 2 * TIMES
    assert notes[:2] == [failed.note, served.note]
    assert notes[3] == f"{served.note} (2 times in 10 minutes)"
    assert notes[-1] == f"{served.note} (5 times in 10 minutes; it is not told again before they are over)"
    built = build_event(owner("s"), event(FAILED[0], notes[-2], warning=True), NOW, "host")["message"]
    assert built.endswith("(5 times in 10 minutes; it is not told again before they are over)"), "however long it is"
    now = REPEAT_SECONDS
    assert limit.refused("u", failed) is None
    assert limit.counted("u", failed) == failed


def test_one_object_cannot_flood() -> None:
    now = 0.0
    limit = EventLimit(lambda: now)
    answers = [limit.refused("u", event("AttemptFailed", f"pod {index}", warning=True)) for index in range(BURST + 5)]
    assert answers == [None] * BURST + ["limit"] * 5
    now = REFILL_SECONDS
    assert limit.refused("u", event("AttemptFailed", "later", warning=True)) is None


def test_how_an_object_ended_is_told_however_much_was_before_and_cannot_flood_either() -> None:
    now = 0.0
    limit = EventLimit(lambda: now)
    before = [limit.refused("u", event("AttemptFailed", f"pod {index}", warning=True)) for index in range(BURST + 1)]
    assert before[-1] == "limit"
    told = ("AdapterUploaded", "Evaluated", "Bored", "Succeeded")
    assert [limit.refused("u", event(reason, ends=True)) for reason in told] == [None] * len(told)
    assert limit.refused("u", event("Retried")) == "limit"
    more = [limit.refused("u", event("Failed", f"{index}", ends=True)) for index in range(RESERVE)]
    assert more == [None] * (RESERVE - len(told)) + ["limit"] * len(told)
    now = REFILL_SECONDS
    assert limit.refused("u", event("Training")) == "limit", "what was told of the end is made up for first"
    now = REFILL_SECONDS * (RESERVE + 1)
    assert limit.refused("u", event("Training")) is None


def test_few_are_in_flight_and_all_are_posted_before_the_operator_stops() -> None:
    hold = threading.Event()
    server = Server(lambda: void(hold.wait(10)))
    poster = EventPoster(server)  # type: ignore[arg-type]
    for index in range(40):
        poster.post(owner(f"o{index}"), [event("Training")])
    eventually("all threads are at work", lambda: server.active == IN_FLIGHT)
    hold.set()
    poster.close(10)
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
    poster = EventPoster(server)  # type: ignore[arg-type]
    poster.post(owner(), [event("Training")])
    poster.close(10)
    assert [body["reason"] for body in server.bodies] == ["Training"]
