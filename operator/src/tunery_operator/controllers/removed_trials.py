"""What a sweep's end does to its trials: the statuses of their LoRAJobs stop naming what was removed.

Nobody looks at a LoRAJob that has ended, so the sweep does, before its own end is written: an operator that is killed
between the two finds the sweep as it was, and does it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from tunery_api.failures import Subject
from tunery_api.kinds import Kind
from tunery_api.status import FINAL_PHASES, ConditionStatus, ConditionType, Phase
from tunery_api.sweepstatus import TrialState
from tunery_operator.client.client import Json
from tunery_operator.client.rbac import LORAJOBS
from tunery_operator.client.status import status_change, write_status
from tunery_operator.controllers.context import ReconcileContext
from tunery_operator.controllers.managed_object import ManagedObject, condition_of
from tunery_operator.errors import ApiFailure, OwnerGone, StaleObject
from tunery_operator.observed.owner import parse_owner
from tunery_operator.status.removed import after_removal

_REFUSED: Final = range(400, 429)
"""Answers that another try would not change: one trial's status is not worth a sweep's end."""

logger: Final = logging.getLogger(__name__)


def tell_trials(services: ReconcileContext, obj: ManagedObject, status: Mapping[str, Any]) -> None:
    """Have the trials that a sweep does not keep say so, if `status` is that of one that has just published its best.

    One that cannot be told keeps no other from it, and is tried again for as long as any of them could: of hundreds of
    calls a few fail wherever a server is under load. Raises StaleObject, ApiFailure where none can be told any more.
    """
    if obj.owner.key.kind is not Kind.LORASWEEP or status["phase"] != Phase.SUCCEEDED.value:
        return
    remains = _remains(status)
    left = [row for row in status.get("trials") or () if _is_to_be_told(row)]
    while left:
        failed = [(row, error) for row in left if (error := _tell(services, obj, row, remains)) is not None]
        if len(failed) == len(left):
            raise failed[0][1]
        left = [row for row, _ in failed]


def _remains(status: Mapping[str, Any]) -> bool | None:
    """Tell whether something is left of what was to be removed; None: nobody knows."""
    told = condition_of(status, ConditionType.TRIALS_REMOVED).get("status")
    return None if told == ConditionStatus.UNKNOWN.value else told is not None


def _is_to_be_told(row: Mapping[str, Any]) -> bool:
    return _has_stored(row) and row["state"] != TrialState.DELETED.value and "adapter" not in row


def _has_stored(row: Mapping[str, Any]) -> bool:
    """Tell whether a trial may have stored something: what never ran has not; seconds are whole, and may be none."""
    return row["state"] == TrialState.COMPLETE.value or bool(row.get("runSeconds") or row.get("evaluations"))


def _tell(
    services: ReconcileContext, obj: ManagedObject, row: Mapping[str, Any], remains: bool | None
) -> StaleObject | ApiFailure | None:
    """Have one trial say so; return why it could not be told, where another try may help."""
    try:
        body = services.client.get(LORAJOBS.get, obj.owner.key.namespace, row["name"])
        if body is not None and _is_that(body, row):
            _write(services, obj, body, remains)
    except OwnerGone:
        return None
    except StaleObject as error:
        return error
    except ApiFailure as error:
        if error.status not in _REFUSED:
            return error
        logger.info("LoRAJob %s still names what %s has removed: %s", row["name"], obj.owner.key, error)
    return None


def _is_that(body: Json, row: Mapping[str, Any]) -> bool:
    """Tell whether a LoRAJob is that of a row, whosever it is by now: the sweep has removed what it names."""
    return body["metadata"]["uid"] == row.get("uid") and (body.get("status") or {}).get("phase") in FINAL_PHASES


def _write(services: ReconcileContext, obj: ManagedObject, body: Json, remains: bool | None) -> None:
    keep = int(obj.spec.get("keepAdapters") or 1)
    trial = parse_owner(Kind.LORAJOB, body)
    key = trial.key
    subject = Subject(key.kind.value, key.name, key.namespace, obj.owner.key.name)
    after = after_removal(body["status"], subject, keep, services.now(), remains=remains)
    change = status_change(body, after)
    if not change:
        return
    written = write_status(services.client, trial, body["metadata"]["resourceVersion"], change)
    # Servers may have been offered what is gone; the sweep itself is at it.
    services.cache.defer_keys(services.cache.see_owner(Kind.LORAJOB, written) - {obj.owner.key})
