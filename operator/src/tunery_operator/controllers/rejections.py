"""Convert the API server's rejection of a child to a failure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tunery_api.failures import Failure
from tunery_api.reasons import FailureReason
from tunery_api.remedies import retry
from tunery_api.scrub import scrub
from tunery_operator.client.client import HttpError
from tunery_operator.controllers.observe import ManagedObject
from tunery_operator.errors import ApiFailure, Rejected
from tunery_operator.planning.platform_values import PlatformValues, with_platform_values
from tunery_operator.status.compute import SCHEDULING

_TOO_MANY_REQUESTS = 429
_PLACED: Final = tuple(f"spec.template.spec.{field}" for field in ("affinity", "nodeSelector", "tolerations"))
"""What of a child comes from spec.scheduling, or from the platform's own settings."""
_SHARED: Final = ("spec.template.", "metadata.labels", "metadata.annotations")
"""Beginnings of what the platform says beside the object; all else of a child follows from the object alone."""
_TOLERATION: Final = re.compile(r"\.tolerations\[(\d+)\]")
_TOO_LONG: Final = "Too long"

_NOT_MADE: Final = {"patch": "a change of what is there was refused", "delete": "a deletion was refused"}
"""What CreateRefused is about where nothing was to be made."""


def rejection_of(error: ApiFailure | Rejected) -> Failure:
    """Return why a child could not be created, changed, or deleted, with the API server's answer."""
    reason = _reason(error)
    what = _NOT_MADE.get(error.verb) if isinstance(error, HttpError) else None
    named = what is not None and reason is FailureReason.CREATE_REFUSED
    return Failure(reason=reason, message=scrub(f"{what}: {error}" if named else str(error)))


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
    """Return the field of ours that a child's wrong fields come from, as far as that is sure.

    None where the object says none of them: the platform's settings do, which whoever wrote the object cannot mend.
    """
    own = [field for field in error.fields if _is_own(obj, error, field)]
    if not own:
        return None
    return SCHEDULING if all(field.startswith(_PLACED) for field in own) else "spec"


def ambiguous_rejection(obj: ManagedObject, values: PlatformValues, error: Rejected) -> Failure:
    """Return why the API server rejects a child; where the manifest is not at fault, with the chart's values."""
    found = rejection_of(error)
    if field_of(obj, error) is not None:
        return found
    remedy = retry("Ask a cluster admin to correct the values of Tunery's chart")
    listed = with_platform_values(found, tuple(dict.fromkeys((*values.work, *values.checks))))
    return listed.model_copy(update={"remedies": [remedy]})


def _is_own(obj: ManagedObject, error: Rejected, field: str) -> bool:
    """Tell whether an object says what stands in a field of its child, as far as the server's words tell."""
    if not field.startswith(_SHARED):
        return True
    if field.endswith("annotations"):
        # The run is what makes them long.
        return _TOO_LONG in str(error)
    scheduling = _scheduling(obj.spec)
    if (found := _TOLERATION.search(field)) is not None:
        # The plan has the object's first, and each of them once.
        return int(found[1]) < len({str(sorted(each.items())) for each in scheduling.get("tolerations") or ()})
    if field.startswith(_PLACED[0]):
        return bool(scheduling.get("affinity"))
    said = (scheduling, obj.spec.get("resources"), obj.spec.get("engine"))
    words = {word for block in said for word in _words(block)}
    return any(f'value: "{word}"' in str(error) or field.endswith(f".limits[{word}]") for word in words)


def _scheduling(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a spec says of where its pods run; a sweep says it in the template of its trials."""
    return spec.get("scheduling") or (spec.get("template") or {}).get("scheduling") or {}


def _words(block: Any) -> Iterator[str]:
    """Yield every text that stands in a block as a value, or as a key of somebody's own."""
    if isinstance(block, Mapping):
        for name, value in block.items():
            if name == "nodeSelector":
                yield from value or ()
            yield from _words(value)
    elif isinstance(block, list):
        for each in block:
            yield from _words(each)
    elif isinstance(block, str):
        yield block
