"""What a sweep's end does to its trials: the statuses of their LoRAJobs stop naming what was removed.

Nobody looks at a LoRAJob that has ended, so the sweep does, before its own end is written: an operator that is killed
between the two finds the sweep as it was, and does it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from tunery_api.kinds import Kind
from tunery_api.status import FINAL_PHASES, Phase
from tunery_api.sweepstatus import TrialState
from tunery_operator.errors import ApiFailure, OwnerGone
from tunery_operator.kube import apply
from tunery_operator.kube.client import Json
from tunery_operator.kube.rbac import LORAJOBS
from tunery_operator.kube.status import status_change, write_status
from tunery_operator.reconcile.found_object import FoundObject
from tunery_operator.reconcile.services import Services
from tunery_operator.status.removed import after_removal
from tunery_operator.views.owner import parse_owner

_REFUSED: Final = range(400, 429)
"""Answers that another try would not change: one trial's status is not worth a sweep's end."""

logger: Final = logging.getLogger(__name__)


def tell_trials(services: Services, obj: FoundObject, status: Mapping[str, Any]) -> None:
    """Have the trials that a sweep does not keep say so, if `status` is that of one that has just published its best.

    Raises StaleObject, ApiFailure.
    """
    if obj.owner.key.kind is not Kind.LORASWEEP or status["phase"] != Phase.SUCCEEDED.value:
        return
    for row in status.get("trials") or ():
        if _has_stored(row) and row["state"] != TrialState.DELETED.value and "adapter" not in row:
            _tell(services, obj, row)


def _has_stored(row: Mapping[str, Any]) -> bool:
    """Tell whether a trial may have stored something: what never ran has not; seconds are whole, and may be none."""
    return row["state"] == TrialState.COMPLETE.value or bool(row.get("runSeconds") or row.get("evaluations"))


def _tell(services: Services, obj: FoundObject, row: Mapping[str, Any]) -> None:
    try:
        body = services.client.get(LORAJOBS.get, obj.owner.key.namespace, row["name"])
        if body is not None and _is_that(body, obj, row):
            _write(services, obj, body)
    except OwnerGone:
        return
    except ApiFailure as error:
        if error.status not in _REFUSED:
            raise
        logger.info("LoRAJob %s still names what %s has removed: %s", row["name"], obj.owner.key, error)


def _is_that(body: Json, obj: FoundObject, row: Mapping[str, Any]) -> bool:
    same = body["metadata"]["uid"] == row.get("uid") and apply.is_child(body, obj.owner)
    return same and (body.get("status") or {}).get("phase") in FINAL_PHASES


def _write(services: Services, obj: FoundObject, body: Json) -> None:
    keep = int(obj.spec.get("keepAdapters") or 1)
    change = status_change(body, after_removal(body["status"], obj.owner.key.name, keep, services.now()))
    if not change:
        return
    trial = parse_owner(Kind.LORAJOB, body)
    written = write_status(services.client, trial, body["metadata"]["resourceVersion"], change)
    # Servers may have been offered what is gone; the sweep itself is at it.
    services.cache.owe(services.cache.see_owner(Kind.LORAJOB, written) - {obj.owner.key})
