"""Report: compute the status, write it if it changed, then tell the events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tunery_api.status import ConditionType
from tunery_operator.errors import StaleObject
from tunery_operator.kube.apply import delete_object
from tunery_operator.kube.status import status_change, write_status
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.outcome import DONE, Outcome
from tunery_operator.reconcile.subject import Subject
from tunery_operator.reconcile.world import World
from tunery_operator.status.clock import parse_time
from tunery_operator.status.compute import compute_status
from tunery_operator.status.events import transitions
from tunery_operator.status.snapshot import Snapshot

PROGRESS_SECONDS: Final = 5.0
_PREFLIGHT: Final = ConditionType.PREFLIGHT
_FREQUENT: Final = frozenset({"progress", "metrics", "checkpoint"})
"""Fields that a pod changes every few seconds: written at most once in PROGRESS_SECONDS."""


def report(world: World, subject: Subject, snapshot: Snapshot) -> Outcome:
    """Bring the object's status up to date; look again at once where that opens the next step."""
    status = compute_status(snapshot)
    change = status_change(subject.body, status)
    if not change:
        return DONE
    wait = _seconds_to_wait(world, subject, change)
    if wait > 0:
        return Outcome(wait)
    woken = _write(world, subject, change)
    world.events.post(subject.owner, transitions(subject.status, status))
    after = 0.0 if _opens_next_step(subject, status) else seconds_to_live(world, subject, status)
    return Outcome(after, woken)


def _write(world: World, subject: Subject, change: dict[str, Any]) -> frozenset[Key]:
    """Write the status, and return the objects that waited for its phase to change."""
    key = subject.owner.key
    try:
        body = write_status(world.client, subject.owner, subject.version, change)
    except StaleObject:
        world.cache.stale.add(key)
        raise
    world.cache.written[key] = world.monotonic()
    return frozenset(world.cache.see_owner(key.kind, body) - {key})


def _seconds_to_wait(world: World, subject: Subject, change: Mapping[str, Any]) -> float:
    if not change.keys() <= _FREQUENT:
        return 0.0
    written = world.cache.written.get(subject.owner.key)
    return 0.0 if written is None else written + PROGRESS_SECONDS - world.monotonic()


def _opens_next_step(subject: Subject, status: Mapping[str, Any]) -> bool:
    """Tell whether preflight has just passed: the train Job comes only after that was written down."""
    return not subject.holds(_PREFLIGHT) and any(
        c["type"] == _PREFLIGHT.value and c["status"] == "True" and c["reason"] == "PreflightPassed"
        for c in status["conditions"]
    )


def seconds_to_live(world: World, subject: Subject, status: Mapping[str, Any]) -> float | None:
    """Return how long a finished object still lives; None: until someone deletes it."""
    ended = parse_time(status.get("completionTime"))
    ttl = (subject.body.get("spec") or {}).get("ttlSecondsAfterFinished")
    if ended is None or not isinstance(ttl, int):
        return None
    return ttl - (world.now() - ended).total_seconds()


def expire(world: World, subject: Subject) -> Outcome:
    """Delete a finished object whose time is over, or come back when it is."""
    seconds = seconds_to_live(world, subject, subject.status)
    if seconds is None:
        return DONE
    if seconds > 0:
        return Outcome(seconds)
    delete_object(world.client, subject.owner, subject.version)
    return DONE
