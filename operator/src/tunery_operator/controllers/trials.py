"""Provide the LoRAJobs of a sweep: its own trials, and the update of their statuses after their adapters were removed.

A LoRAJob that has ended is not reconciled, so its sweep updates its status before its own end is written: after a
kill between the two, the next reconcile does both again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tunery_api.failures import Subject
from tunery_api.kinds import Kind
from tunery_api.lorasweep import MAX_PARALLEL_TRIALS, LoRASweepSpec
from tunery_api.names import MANAGED_BY, MANAGED_BY_LABEL, ORIGIN_ANNOTATION, SWEEP_LABEL, TRIAL_LABEL, label_value
from tunery_api.status import FINAL_PHASES, ConditionStatus, ConditionType, Phase
from tunery_api.sweepstatus import FINAL_TRIAL_STATES, TrialState, TrialStatus
from tunery_operator.client import apply
from tunery_operator.client.apply import status_change, write_status
from tunery_operator.client.client import Json
from tunery_operator.client.permissions import LORAJOBS, get_owner
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.observe import ManagedObject, condition_of
from tunery_operator.errors import ApiFailure, OwnerGone, Rejected, StaleObject
from tunery_operator.manifests.metadata import owner_reference
from tunery_operator.observed.metadata import Key, Owner, parse_owner
from tunery_operator.planning.lorasweep import trial_name
from tunery_operator.status.sweep import after_removal
from tunery_search.trial_rows import trial_number

logger: Final = logging.getLogger(__name__)


@dataclass
class OwnTrials:
    """The LoRAJobs of a sweep, as one reconcile observed them."""

    children: dict[int, Json] = field(default_factory=dict)
    """LoRAJobs of the trials that are not final in the status, by number."""
    owner_changed: set[int] = field(default_factory=set)
    """Numbers of trials whose owner reference was changed: they count, and the sweep changes nothing of them."""
    unread: dict[int, str] = field(default_factory=dict)
    """Names, by number, of trials that could not be read: only their rows are known."""
    foreign: tuple[str, ...] = ()
    """Names of LoRAJobs that refer to the sweep as their owner, and are not its trials."""
    rejections: tuple[ApiFailure | Rejected, ...] = ()
    """Errors of the API server for trials that could not be read or adopted."""


def own_trials(
    context: ReconcileContext, obj: ManagedObject, spec: LoRASweepSpec, rows: Sequence[TrialStatus]
) -> OwnTrials:
    """Return the LoRAJobs of the trials that are not final in the status. Raises StaleObject.

    They come from the cache. A trial that the cache lacks is read, because a trial that counts as deleted stays so.
    A trial is identified by name and uid: anyone may change a label or an owner reference.
    """
    found = OwnTrials()
    for row in rows:
        if row.state not in FINAL_TRIAL_STATES:
            _add_recorded(context, obj, found, row)
    unknown = context.cache.trials(obj.owner.uid) - {row.name for row in rows}
    first = max((row.number for row in rows), default=-1) + 1
    names = _names_since(obj.owner, spec, unknown, first)
    made = _add_new(context, obj, found, names)
    found.foreign = tuple(sorted(unknown - made))
    return found


def _add_recorded(context: ReconcileContext, obj: ManagedObject, found: OwnTrials, row: TrialStatus) -> None:
    """Add the LoRAJob of a row, if it exists with the uid of the row."""
    try:
        body = _read(context, obj, row.name)
    except ApiFailure as error:
        found.unread[row.number] = row.name
        found.rejections += (error,)
        return
    if body is None or (row.uid is not None and body["metadata"]["uid"] != row.uid):
        return
    if not apply.is_child(body, obj.owner):
        if row.uid is None:
            return
        body = _adopt(context, obj, found, row.number, body)
    found.children[row.number] = with_number(body, row.number)


def _names_since(owner: Owner, spec: LoRASweepSpec, unknown: Collection[str], first: int) -> Iterator[tuple[int, str]]:
    """Yield number and name of trials that may have been created since the status was written; a final one is last."""
    for number in range(first, first + MAX_PARALLEL_TRIALS):
        name, final = (trial_name(owner.key.name, number, final=final) for final in (False, True))
        if name in unknown:
            yield number, name
        elif spec.final is not None and final in unknown:
            yield number, final
            return
        else:
            return


def _add_new(
    context: ReconcileContext, obj: ManagedObject, found: OwnTrials, names: Iterable[tuple[int, str]]
) -> frozenset[str]:
    """Add the LoRAJobs that exist as the sweep creates them, up to the first that does not; return their names."""
    made = set[str]()
    for number, name in names:
        try:
            body = _read(context, obj, name)
        except ApiFailure as error:
            found.unread[number] = name
            found.rejections += (error,)
            break
        if body is None or not is_made_for(body, obj.owner, number):
            break
        found.children[number] = body
        made.add(name)
    return frozenset(made)


def is_made_for(body: Json, owner: Owner, number: int) -> bool:
    """Return whether a LoRAJob without a row is the sweep's trial of that number, by all that a sweep sets."""
    meta = body["metadata"]
    labels = meta.get("labels") or {}
    ours = {**_labels(owner), TRIAL_LABEL: f"{number:03d}"}.items() <= labels.items()
    uri = str(((body.get("spec") or {}).get("output") or {}).get("uri"))
    place = uri.endswith(f"trials/{owner.uid}/{number:03d}")
    return ours and place and ORIGIN_ANNOTATION in (meta.get("annotations") or {}) and apply.is_child(body, owner)


def _labels(owner: Owner) -> Mapping[str, str]:
    return {MANAGED_BY_LABEL: MANAGED_BY, SWEEP_LABEL: label_value(owner.key.name)}


def with_number(body: Json, number: int) -> Json:
    """Return a LoRAJob with the label of that number."""
    if trial_number(body) == number:
        return body
    meta = body["metadata"]
    return {**body, "metadata": {**meta, "labels": {**(meta.get("labels") or {}), TRIAL_LABEL: f"{number:03d}"}}}


def active_trial_names(found: OwnTrials) -> tuple[str, ...]:
    """Return the names of the trials that may still run, also of those that are being stopped."""
    bodies = [body for _, body in sorted(found.children.items())]
    phases = {body["metadata"]["name"]: (body.get("status") or {}).get("phase") for body in bodies}
    rest = {*FINAL_PHASES, Phase.SUSPENDED}
    return (*(name for name, phase in phases.items() if phase not in rest), *found.unread.values())


def _read(context: ReconcileContext, obj: ManagedObject, name: str) -> Json | None:
    """Return a LoRAJob, or None. Raises ApiFailure."""
    key = Key(Kind.LORAJOB, obj.owner.key.namespace, name)
    body = None if context.cache.state(obj.owner.key).stale else context.cache.body(key)
    if body is None or not apply.is_child(body, obj.owner):
        body = context.client.get(LORAJOBS.get, key.namespace, name)
    return body


def _is_orphan(obj: ManagedObject, number: int, body: Json) -> bool:
    """Return whether a LoRAJob has no owner, and its labels still name the sweep and its number."""
    meta = body["metadata"]
    ours = _labels(obj.owner).items() <= (meta.get("labels") or {}).items()
    return not meta.get("ownerReferences") and ours and trial_number(body) == number


def _adopt(context: ReconcileContext, obj: ManagedObject, found: OwnTrials, number: int, body: Json) -> Json:
    """Adopt a trial whose owner reference was removed: otherwise it would train on without its sweep.

    A trial that can't be adopted is reported as one whose owner was changed. A sweep that is being deleted adopts none,
    because of --cascade=orphan. Raises StaleObject if the sweep was deleted since it was read.
    """
    owner, deleted = obj.owner, "deletionTimestamp" in obj.body["metadata"]
    key = Key(Kind.LORAJOB, owner.key.namespace, body["metadata"]["name"])
    try:
        if not deleted and _is_orphan(obj, number, body):
            _ensure_not_deleted(context, owner)
            logger.info("Adopted a trial without an owner: trial=%s sweep=%s", key, owner.key)
            change = {"metadata": {"ownerReferences": [owner_reference(owner)]}}
            body = apply.patch_child(context.client, LORAJOBS, body, change)
            context.cache.defer_keys(context.cache.put_object(Kind.LORAJOB, body) - {owner.key})
            return body
    except (ApiFailure, Rejected) as error:
        found.rejections += (error,)
    found.owner_changed.add(number)
    return body


def _ensure_not_deleted(context: ReconcileContext, owner: Owner) -> None:
    """Raise StaleObject unless the live sweep exists and is not being deleted."""
    key = owner.key
    live = context.client.get(get_owner(key.kind.plural), key.namespace, key.name)
    meta = {} if live is None else live["metadata"]
    if meta.get("uid") != owner.uid or "deletionTimestamp" in meta:
        context.cache.state(key).stale = True
        raise StaleObject(f"{key} is being deleted")


_PERMANENT: Final = range(400, 429)
"""Statuses that a retry would not change; the end of the sweep does not wait for such a trial."""


def mark_removed_trials(context: ReconcileContext, obj: ManagedObject, status: Mapping[str, Any]) -> None:
    """Update the statuses of the trials whose adapters a sweep has removed, once it has published the best one.

    A failed update is retried as long as another one succeeds: under load, a few of hundreds fail. Raises StaleObject
    or ApiFailure if all remaining ones fail.
    """
    if obj.owner.key.kind is not Kind.LORASWEEP or status["phase"] != Phase.SUCCEEDED.value:
        return
    remains = _remains(status)
    left = [row for row in status.get("trials") or () if _needs_mark(row)]
    while left:
        failed = [(row, error) for row in left if (error := _mark_removed(context, obj, row, remains)) is not None]
        if len(failed) == len(left):
            raise failed[0][1]
        left = [row for row, _ in failed]


def _remains(status: Mapping[str, Any]) -> bool | None:
    """Return whether something remains of what was to be removed; None: unknown."""
    removed = condition_of(status, ConditionType.TRIALS_REMOVED).get("status")
    return None if removed == ConditionStatus.UNKNOWN.value else removed is not None


def _needs_mark(row: Mapping[str, Any]) -> bool:
    return _has_stored(row) and row["state"] != TrialState.DELETED.value and "adapter" not in row


def _has_stored(row: Mapping[str, Any]) -> bool:
    """Return whether a trial may have stored something; a short run may have 0 whole seconds."""
    return row["state"] == TrialState.COMPLETE.value or bool(row.get("runSeconds") or row.get("evaluations"))


def _mark_removed(
    context: ReconcileContext, obj: ManagedObject, row: Mapping[str, Any], remains: bool | None
) -> StaleObject | ApiFailure | None:
    """Update the status of one trial; return the error if a retry may help."""
    try:
        body = context.client.get(LORAJOBS.get, obj.owner.key.namespace, row["name"])
        if body is not None and _is_ended_trial(body, row):
            _write(context, obj, body, remains)
    except OwnerGone:
        return None
    except StaleObject as error:
        return error
    except ApiFailure as error:
        if error.status not in _PERMANENT:
            return error
        logger.info("Can't update a removed trial: trial=%s sweep=%s: %s", row["name"], obj.owner.key, error)
    return None


def _is_ended_trial(body: Json, row: Mapping[str, Any]) -> bool:
    """Return whether a LoRAJob is the ended trial of a row, whoever owns it now."""
    return body["metadata"]["uid"] == row.get("uid") and (body.get("status") or {}).get("phase") in FINAL_PHASES


def _write(context: ReconcileContext, obj: ManagedObject, body: Json, remains: bool | None) -> None:
    keep = int(obj.spec.get("keepAdapters") or 1)
    trial = parse_owner(Kind.LORAJOB, body)
    key = trial.key
    subject = Subject(key.kind.value, key.name, key.namespace, obj.owner.key.name)
    after = after_removal(body["status"], subject, keep, context.now(), remains=remains)
    change = status_change(body, after)
    if not change:
        return
    written = write_status(context.client, trial, body["metadata"]["resourceVersion"], change)
    # Servers may refer to the removed adapter. The sweep itself is being reconciled.
    context.cache.defer_keys(context.cache.put_object(Kind.LORAJOB, written) - {obj.owner.key})
