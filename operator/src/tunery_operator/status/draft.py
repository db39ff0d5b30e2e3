"""A status while it is being computed: the old one, changed step by step, then read once."""

from __future__ import annotations

from typing import Any

from tunery_api.names import VERSION
from tunery_api.reasons import FailureReason
from tunery_api.runspec import Failure
from tunery_api.scrub import scrub
from tunery_api.status import ConditionType
from tunery_operator.status.clock import format_time
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.diagnosis import failure_status
from tunery_operator.status.phase import phase_of
from tunery_operator.status.snapshot import Snapshot


class Draft:
    """The status of one object, under way from what it was to what it is."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.fields: dict[str, Any] = dict(snapshot.status)
        self.fields.pop("failure", None)
        old = snapshot.status.get("conditions") or ()
        self.conditions = Conditions(old, snapshot.owner.generation, snapshot.now)

    def put(self, **fields: Any) -> None:
        """Set fields of the status; None removes one."""
        for name, value in fields.items():
            if value is None:
                self.fields.pop(name, None)
            else:
                self.fields[name] = value

    def merge(self, name: str, values: dict[str, Any] | None) -> None:
        """Lay `values` over an object field of the status; what they do not name stays."""
        if values:
            self.fields[name] = {**(self.fields.get(name) or {}), **values}

    def fail(self, failure: dict[str, Any]) -> None:
        """End the object as failed, for good."""
        self.fields["failure"] = failure
        self.conditions.set(ConditionType.FAILED, True, failure["reason"], failure["message"])
        if self.conditions.is_true(ConditionType.RUNNING):
            self.conditions.set(ConditionType.RUNNING, False, "Ended")
        self._complete()

    def fail_for(self, reason: FailureReason, message: str) -> None:
        """End the object as failed, with the advice that belongs to the reason."""
        self.fail(failure_status(Failure(reason=reason, message=scrub(message))))

    def succeed(self, message: str) -> None:
        """End the object as succeeded, for good."""
        self.conditions.set(ConditionType.SUCCEEDED, True, "Succeeded", message)
        self.conditions.set(ConditionType.RUNNING, False, "Ended")
        self._complete()

    def hinder(self, failure: Failure) -> None:
        """Show what stands in the way now; it is gone from the status as soon as it no longer does."""
        self.fields["failure"] = failure_status(failure)

    def _complete(self) -> None:
        self.fields.setdefault("completionTime", format_time(self.snapshot.now))

    def finish(self) -> dict[str, Any]:
        """Return the status."""
        references = list(self.snapshot.input_references)
        return {
            **self.fields,
            **({"inputReferences": references} if references else {}),
            "specVersion": VERSION,
            "observedGeneration": self.snapshot.owner.generation,
            "conditions": self.conditions.to_list(),
            "phase": phase_of(self.conditions, self.snapshot.kind).value,
        }
