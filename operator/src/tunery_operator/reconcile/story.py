"""The frame of both stories: find the object, let its story go a step further, and report what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.reasons import FailureReason
from tunery_operator.errors import (
    ApiFailure,
    FieldContested,
    NameTaken,
    OperatorError,
    PredecessorRemains,
    PreflightsFull,
    Rejected,
)
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.children import follow, own_leftovers
from tunery_operator.reconcile.ending import after_the_end
from tunery_operator.reconcile.outcome import DONE, Outcome
from tunery_operator.reconcile.refusals import refusal_of
from tunery_operator.reconcile.report import report
from tunery_operator.reconcile.subject import Subject, find_subject
from tunery_operator.reconcile.world import World
from tunery_operator.status.compute import SCHEDULING
from tunery_operator.status.phase import WAITING_FOR_SLOT
from tunery_operator.status.podview import PodView
from tunery_operator.status.snapshot import Attempt, Refusal, Snapshot

_PLACED: Final = tuple(f"spec.template.spec.{field}" for field in ("affinity", "nodeSelector", "tolerations"))
"""What of a Job comes from spec.scheduling alone, or from the platform's own settings, which the chart checks."""

Spec = TypeVar("Spec", LoRAJobSpec, AdapterMergeSpec)


@dataclass(frozen=True, slots=True)
class Story(Generic[Spec]):
    """What the two kinds do each in its own way."""

    parse: Callable[[dict[str, Any]], Spec]
    """Raises InvalidSpec."""
    gather: Callable[[World, Subject], Snapshot]
    """Returns what is in the cluster."""
    advance: Callable[[World, Subject, Spec, Snapshot], Snapshot]
    """Makes what comes next, and returns what is in the cluster then."""
    children: Callable[[Key], tuple[str, ...]]
    """The names of the Jobs whose pods must end before a new one is made."""


def go_on(world: World, key: Key, story: Story[Spec]) -> Outcome:
    """Bring one object a step further; gives the same answer however often it is asked."""
    outcome = _go_on(world, key, story)
    owed = world.cache.take_owed()
    return replace(outcome, wake=outcome.wake | owed) if owed else outcome


def _go_on(world: World, key: Key, story: Story[Spec]) -> Outcome:
    subject = find_subject(world, key)
    if subject is None or subject.finished:
        world.retries.reset(key)
        return DONE if subject is None else after_the_end(world, subject)
    gathered = story.gather(world, subject)
    snapshot, retry_in = _take_step(world, subject, story, gathered)
    if retry_in is None and _is_begun(subject, gathered, snapshot) and world.is_pressed():
        # In a burst, Jobs before words: the next look, which is not fresh any more, tells of this one.
        return Outcome(0.0)
    known = {attempt.job.uid for attempt in (snapshot.preflight, snapshot.work) if attempt is not None}
    remaining = [pod for name in story.children(key) for pod in own_leftovers(world, subject.owner, name)]
    world.cache.mark_fresh(key)
    others = [pod for pod in remaining if pod.job_uid not in known]
    others.extend(_ended_with(gathered, known))
    return report(world, subject, replace(snapshot, leftovers=tuple(others)), retry_in)


def _ended_with(before: Snapshot, known: set[str]) -> Iterator[PodView]:
    """Yield the pods that had ended of Jobs which this step has removed: the ledger may not have their end yet."""
    for attempt in (before.preflight, before.work):
        if attempt is not None and attempt.job.uid not in known:
            yield from (pod for pod in attempt.pods if pod.finished)


def _is_begun(subject: Subject, before: Snapshot, after: Snapshot) -> bool:
    """Tell whether this look has made the first Job of an object of which nothing was told yet."""
    none = before.preflight is None and before.work is None
    return not subject.status and none and (after.preflight is not None or after.work is not None)


def _take_step(world: World, subject: Subject, story: Story[Spec], snapshot: Snapshot) -> tuple[Snapshot, float | None]:
    """Return the snapshot after one step, with whatever stood in its way; and when to try that again, in seconds."""
    key = subject.owner.key
    try:
        stepped = _step(world, subject, story, snapshot)
    except (ApiFailure, FieldContested, PredecessorRemains, PreflightsFull) as error:
        wait = world.retries.next(key)
        return _hindered(snapshot, error), max(wait, error.retry_after or 0.0)
    except NameTaken as error:
        stepped = replace(snapshot, conflict=str(error))
    world.retries.reset(key)
    return stepped, None


def _hindered(snapshot: Snapshot, error: OperatorError) -> Snapshot:
    if isinstance(error, ApiFailure):
        return replace(snapshot, refusal=refusal_of(error))
    if isinstance(error, FieldContested):
        return replace(snapshot, refusal=Refusal(FailureReason.FIELD_CONTESTED, str(error)))
    if isinstance(error, PreflightsFull):
        return replace(snapshot, waiting_for=str(error), waiting_reason=WAITING_FOR_SLOT)
    return replace(snapshot, waiting_for=str(error))


def _step(world: World, subject: Subject, story: Story[Spec], snapshot: Snapshot) -> Snapshot:
    """Go one step further; a spec that was accepted before is judged no more.

    What today's rules or settings would refuse in it is waited for, and the Job that it has is followed on.
    """
    accepted = subject.accepted() or snapshot.work is not None or snapshot.preflight is not None
    try:
        return story.advance(world, subject, story.parse(subject.body), snapshot)
    except InvalidSpec as error:
        if not accepted:
            return replace(snapshot, errors=error.errors)
        return _follow_only(world, replace(snapshot, unplannable=error.errors))
    except Rejected as error:
        if not accepted:
            return replace(snapshot, errors=(FieldError(_field_of(subject, error), str(error)),))
        return replace(snapshot, refusal=Refusal(FailureReason.CREATE_REFUSED, str(error)))


def _field_of(subject: Subject, error: Rejected) -> str:
    """Return the field of ours that a Job's wrong fields come from, as far as that is sure."""
    asked = bool((subject.body.get("spec") or {}).get("scheduling"))
    return SCHEDULING if asked and all(field.startswith(_PLACED) for field in error.fields) else "spec"


def _follow_only(world: World, snapshot: Snapshot) -> Snapshot:
    def carry_over(attempt: Attempt | None) -> Attempt | None:
        if attempt is None or attempt.job.finished:
            return attempt
        return follow(world, snapshot.owner, attempt, suspend=snapshot.suspend)

    return replace(snapshot, preflight=carry_over(snapshot.preflight), work=carry_over(snapshot.work))
