"""Provide what blocks an object: an error of the API server or of a step becomes a failure or a blocker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import retry
from tunery_operator.client.client import HttpError
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.errors import ApiFailure, FieldContested, NameTaken, OperatorError, PreflightsFull, Rejected
from tunery_operator.planning.platform_values import PlatformValues, with_platform_values
from tunery_operator.status.compute import SCHEDULING
from tunery_operator.status.conditions import WAITING_FOR_SLOT

_TOO_MANY_REQUESTS = 429
_PLACED: Final = tuple(f"spec.template.spec.{field}" for field in ("affinity", "nodeSelector", "tolerations"))
"""Fields of a child that come from spec.scheduling or from the platform's settings."""
_SHARED: Final = ("spec.template.", "metadata.labels", "metadata.annotations")
"""Prefixes of the fields that also the platform sets; all other fields of a child follow from the object alone."""
_TOLERATION: Final = re.compile(r"\.tolerations\[(\d+)\]")
_TOO_LONG: Final = "Too long"

_OTHER_VERBS: Final = {"patch": "a change of an existing object was rejected", "delete": "a deletion was rejected"}
"""The rejected request under the reason CreateRefused, if it was not a creation."""


def blocked_by(error: OperatorError) -> dict[str, Any]:
    """Return the fields of a snapshot that show an error which another try, or someone else, may resolve."""
    if isinstance(error, ApiFailure):
        return {"rejection": rejection_of(error)}
    if isinstance(error, FieldContested):
        return {"rejection": Failure(reason=FailureReason.FIELD_CONTESTED, message=str(error))}
    if isinstance(error, NameTaken):
        return {"conflict": str(error)}
    if isinstance(error, PreflightsFull):
        return {"waiting_for": str(error), "waiting_reason": WAITING_FOR_SLOT}
    return {"waiting_for": str(error)}


def rejected_by(
    obj: ManagedObject, values: PlatformValues, error: Rejected, *, accepted: bool = False
) -> dict[str, Any]:
    """Return the fields of a snapshot that show a rejected child: errors of a new spec, otherwise a failure."""
    field = None if accepted else field_of(obj, error)
    if field is not None:
        return {"errors": (FieldError(field, str(error)),)}
    return {"rejection": ambiguous_rejection(obj, values, error)}


def rejection_of(error: ApiFailure | Rejected) -> Failure:
    """Return why a child could not be created, changed, or deleted, with the API server's answer."""
    reason = _reason(error)
    what = _OTHER_VERBS.get(error.verb) if isinstance(error, HttpError) else None
    named = what is not None and reason is FailureReason.CREATE_REFUSED
    return Failure(reason=reason, message=redact(f"{what}: {error}" if named else str(error)))


def _reason(error: ApiFailure | Rejected) -> FailureReason:
    if isinstance(error, Rejected):
        return FailureReason.CREATE_REFUSED
    if error.status in (0, _TOO_MANY_REQUESTS) or error.status >= 500:
        return FailureReason.CLUSTER_UNAVAILABLE
    if error.status == 403 and "exceeded quota" in str(error):
        return FailureReason.QUOTA_EXCEEDED
    return FailureReason.CREATE_REFUSED


# Fields of a child that the API server finds wrong


def field_of(obj: ManagedObject, error: Rejected) -> str | None:
    """Return the field of the object that sets a child's rejected fields; None: the platform's settings do."""
    own = [field for field in error.fields if _is_own(obj, error, field)]
    if not own:
        return None
    return SCHEDULING if all(field.startswith(_PLACED) for field in own) else "spec"


def ambiguous_rejection(obj: ManagedObject, values: PlatformValues, error: Rejected) -> Failure:
    """Return why the API server rejects a child; with the chart's values if the manifest is not at fault."""
    found = rejection_of(error)
    if field_of(obj, error) is not None:
        return found
    remedy = retry("Ask a cluster admin to correct the values of Tunery's chart")
    listed = with_platform_values(found, tuple(dict.fromkeys((*values.work, *values.checks))))
    return listed.model_copy(update={"remedies": [remedy]})


def _is_own(obj: ManagedObject, error: Rejected, field: str) -> bool:
    """Return whether an object sets a rejected field of its child, judged by the API server's message."""
    if not field.startswith(_SHARED):
        return True
    if field.endswith("annotations"):
        # Only the run makes them long.
        return _TOO_LONG in str(error)
    scheduling = _scheduling(obj.spec)
    if (found := _TOLERATION.search(field)) is not None:
        # The plan has the object's tolerations first, without duplicates.
        return int(found[1]) < len({str(sorted(each.items())) for each in scheduling.get("tolerations") or ()})
    if field.startswith(_PLACED[0]):
        return bool(scheduling.get("affinity"))
    blocks = (scheduling, obj.spec.get("resources"), obj.spec.get("engine"))
    values = {value for block in blocks for value in _strings(block)}
    return any(f'value: "{value}"' in str(error) or field.endswith(f".limits[{value}]") for value in values)


def _scheduling(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the scheduling of a spec; a sweep has it in the template of its trials."""
    return spec.get("scheduling") or (spec.get("template") or {}).get("scheduling") or {}


def _strings(block: Any) -> Iterator[str]:
    """Yield every string of a block: the values, and the keys of a node selector."""
    if isinstance(block, Mapping):
        for name, value in block.items():
            if name == "nodeSelector":
                yield from value or ()
            yield from _strings(value)
    elif isinstance(block, list):
        for each in block:
            yield from _strings(each)
    elif isinstance(block, str):
        yield block
