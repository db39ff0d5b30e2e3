"""The frame of both stories: find the object, let its story go on, and report what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.errors import FieldError, InvalidSpec
from tunery_api.lorajob import LoRAJobSpec
from tunery_operator.errors import NameTaken, Rejected
from tunery_operator.plan.model import Key
from tunery_operator.reconcile.outcome import DONE, Outcome
from tunery_operator.reconcile.report import expire, report
from tunery_operator.reconcile.subject import Subject, find_subject, first_snapshot, invalid_snapshot
from tunery_operator.reconcile.world import World
from tunery_operator.status.snapshot import Snapshot

Spec = TypeVar("Spec", LoRAJobSpec, AdapterMergeSpec)


def go_on(
    world: World,
    key: Key,
    parse: Callable[[dict[str, Any]], Spec],
    advance: Callable[[World, Subject, Spec], Snapshot],
) -> Outcome:
    """Bring one object a step further; gives the same answer however often it is asked.

    `advance` makes what comes next and returns what is in the cluster then.
    """
    subject = find_subject(world, key)
    if subject is None:
        return DONE
    if subject.finished:
        return expire(world, subject)
    try:
        spec = parse(subject.body)
        try:
            snapshot = advance(world, subject, spec)
        except NameTaken as error:
            snapshot = replace(first_snapshot(world, subject, False, spec.resources), conflict=str(error))
    except InvalidSpec as error:
        snapshot = invalid_snapshot(world, subject, error)
    except Rejected as error:
        snapshot = invalid_snapshot(world, subject, InvalidSpec([FieldError("spec", str(error))]))
    world.cache.stale.discard(key)
    return report(world, subject, snapshot)
