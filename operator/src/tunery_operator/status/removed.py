"""The status of a trial once its sweep has published its best: what was removed is not named any more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from tunery_api.failures import Failure, Subject, render_hint
from tunery_api.status import ConditionType
from tunery_api.tolerant import read
from tunery_operator.observed.event import ADAPTER_REMOVED
from tunery_operator.status.conditions import Conditions

_GONE: Final = ("adapter", "rejectedAdapter", "checkpoint", "curve")
_OTHERS: Final = {
    False: "",
    True: "; the others could not be removed, or not all of them",
    None: "; whether the others were removed is not known",
}
_CHECKPOINTS: Final = {
    False: "were removed",
    True: "could not be removed, or not all of them,",
    None: "were to be removed (whether they were is not known)",
}
_SINCE: Final = {
    False: "has removed it since",
    True: "does not keep it, and could not remove all that it does not keep",
    None: "does not keep it, and whether it was removed is not known",
}
"""By what remains, as `after_removal` has it."""


def after_removal(
    status: Mapping[str, Any], subject: Subject, keep: int, now: datetime, *, remains: bool | None = False
) -> dict[str, Any]:
    """Return the status of a trial that is not among the `keep` best of its sweep; the same where it named nothing.

    `subject` is the trial. `remains`: not all that is not kept could be removed; None: that is not known.
    """
    if not any(name in status for name in _GONE):
        return dict(status)
    sweep = str(subject.sweep)
    conditions = Conditions(status.get("conditions") or (), int(status.get("observedGeneration") or 1), now)
    why = f"LoRASweep {sweep} has published its best; of its trials' own adapters it keeps those of the {keep} best"
    if "adapter" in status:
        conditions.set(
            ConditionType.ADAPTER_UPLOADED, False, ADAPTER_REMOVED, f"{why} (spec.keepAdapters){_OTHERS[remains]}"
        )
        _say_it_was_published(conditions, sweep, remains)
    if conditions.reason(ConditionType.CHECKPOINT_SAVED) not in (None, "Removed"):
        text = f"the checkpoints {_CHECKPOINTS[remains]} once LoRASweep {sweep} had published its best"
        conditions.set(ConditionType.CHECKPOINT_SAVED, False, "Removed", text)
    left = {name: value for name, value in status.items() if name not in _GONE}
    failure = {"failure": _without_removed(status["failure"], subject)} if status.get("failure") else {}
    return {**left, **_dataset(status), **failure, "conditions": conditions.to_list()}


def _without_removed(failure: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """Return a failure that no longer names what was removed: the rejected adapter, and the curve."""
    facts = failure.get("facts") or {}
    kept = {key: value for key, value in facts.items() if key not in _GONE}
    if kept == facts:
        return dict(failure)
    left = {name: value for name, value in failure.items() if name != "facts"} | ({"facts": kept} if kept else {})
    found = read(Failure, json.dumps(left))
    return left if found is None else {**left, "hint": render_hint(found, subject)}


def _say_it_was_published(conditions: Conditions, sweep: str, remains: bool | None) -> None:
    """Have the end of a trial say nothing of a place where nothing lies, or nothing to rely on."""
    text = f"published, read back, and every digest matched; LoRASweep {sweep} {_SINCE[remains]}"
    if conditions.is_true(ConditionType.SUCCEEDED):
        conditions.set(ConditionType.SUCCEEDED, True, conditions.reason(ConditionType.SUCCEEDED) or "Succeeded", text)


def _dataset(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was found in the data, without the place of a report that lay beside the adapter."""
    found, uri = status.get("dataset") or {}, (status.get("adapter") or {}).get("uri")
    if uri is None or not str(found.get("report") or "").startswith(f"{uri.rstrip('/')}/"):
        return {}
    return {"dataset": {name: value for name, value in found.items() if name != "report"}}
