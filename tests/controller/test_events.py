"""Events: valid for every name, nothing twice, never a flood, and none lost when the operator stops."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from controller.api import eventually
from tunery_api.kinds import Kind
from tunery_operator.errors import ApiFailure
from tunery_operator.kube.event_body import build_event
from tunery_operator.kube.event_limit import BURST, REFILL_SECONDS, REPEAT_SECONDS, EventLimit
from tunery_operator.kube.events import IN_FLIGHT, EventPoster
from tunery_operator.views.event import Event
from tunery_operator.views.owner import Key, Owner

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def owner(name: str = "a") -> Owner:
    return Owner(Key(Kind.LORAJOB, "ns", name), f"uid-{name}", 1, {})


def event(reason: str, note: str = "text", warning: bool = False) -> Event:
    return Event(reason, note, warning, "2026-01-31T12:00:00Z")


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
    flips = [event("Training", f"step {step}") if step % 2 else event("Evaluating") for step in range(400)]
    assert [limit.refused("u", flip) for flip in flips] == [None, None] + ["repeated"] * 398
    assert limit.refused("other", event("Training")) is None
    now = REPEAT_SECONDS
    assert limit.refused("u", event("Training")) is None


@pytest.mark.parametrize("reason", ["Retried", "Resumed"])
def test_after_a_persons_hand_all_is_told_once_more(reason: str) -> None:
    limit = EventLimit(lambda: 0.0)
    told = ["PreflightRunning", reason, "PreflightRunning", "PreflightRunning", reason]
    assert [limit.refused("u", event(item)) for item in told] == [None, None, None, "repeated", None]


def test_two_failures_of_one_reason_are_two_events() -> None:
    limit = EventLimit(lambda: 0.0)
    assert limit.refused("u", event("AttemptFailed", "pod a", warning=True)) is None
    assert limit.refused("u", event("AttemptFailed", "pod b", warning=True)) is None
    assert limit.refused("u", event("AttemptFailed", "pod b", warning=True)) == "repeated"


def test_one_object_cannot_flood() -> None:
    now = 0.0
    limit = EventLimit(lambda: now)
    answers = [limit.refused("u", event("AttemptFailed", f"pod {index}", warning=True)) for index in range(BURST + 5)]
    assert answers == [None] * BURST + ["limit"] * 5
    now = REFILL_SECONDS
    assert limit.refused("u", event("AttemptFailed", "later", warning=True)) is None


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
