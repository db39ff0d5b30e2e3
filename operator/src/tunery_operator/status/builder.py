"""Provide StatusBuilder, which changes the previous status of an object step by step into the next one."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

from tunery_api.failures import Failure, Subject
from tunery_api.findings import FindingType
from tunery_api.kinds import Kind
from tunery_api.lenient import without_invalid
from tunery_api.names import VERSION
from tunery_api.reasons import FailureReason
from tunery_api.redact import redact
from tunery_api.remedies import MAX_FACTS, WITHOUT_GPU, Remedy, recreate, remedies_for
from tunery_api.status import ConditionType, Phase
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import format_time
from tunery_operator.status.conditions import Conditions, phase_of, set_summary, summary_reason
from tunery_operator.status.diagnosis import failure_status, find_blocker
from tunery_operator.status.snapshot import Snapshot
from tunery_search.failures import can_warm_start

_RESUMABLE: Final = frozenset(
    {
        FailureReason.GPU_OUT_OF_MEMORY.value,
        FailureReason.DISK_FULL.value,
        FailureReason.NOT_IMPROVED.value,
        FailureReason.DEADLINE_EXCEEDED.value,
    }
)
"""After these a new job may continue from the checkpoints; those of a diverged loss may be corrupt."""
_CORRUPT: Final = frozenset(
    {FindingType.NO_GRADIENT.value, FindingType.LOSS_RISING.value, FindingType.GRADIENT_NOT_FINITE.value}
)
"""Findings about weights that no run should continue from."""
_FEWER_GPUS: Final = recreate(
    "Lower resources.gpus and raise resources.nodes, as fewer GPUs on more nodes may fit",
    "resources.gpus",
    "resources.nodes",
)
_ENDS: Final = (ConditionType.SUCCEEDED, ConditionType.FAILED, ConditionType.STOPPED)

_FORECAST: Final = frozenset({"eta", "etaSeconds"})
"""Fields of status.progress that hold only while a pod runs."""


class StatusBuilder:
    """The status of one object while it is computed from the previous one."""

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
        """Merge `values` into an object field of the status; other fields stay."""
        if values:
            self.fields[name] = {**(self.fields.get(name) or {}), **values}

    def forget_curve_file(self) -> None:
        """Remove the location of the loss curve, whose file is now next to an adapter; its points stay."""
        self.put(
            curve={name: value for name, value in (self.fields.get("curve") or {}).items() if name != "uri"} or None
        )

    def add(self, name: str, amount: int) -> None:
        """Add to a total."""
        self.fields[name] = int(self.fields.get(name) or 0) + amount

    def fail(self, failure: Failure, *, ended: datetime | None = None, exit_code: int | None = None) -> None:
        """End the object as failed; `ended` is the time of that, if not now."""
        subject = self._subject(ended=True)
        facts = {**self._curve(), **failure.facts, **self._checkpoint(failure), **self._warm_start(failure)}
        facts = dict(list(facts.items())[:MAX_FACTS])
        shown = failure_status(failure.model_copy(update={"facts": facts}), subject, exit_code)
        self.fields["failure"] = shown
        self.conditions.set(ConditionType.FAILED, True, shown["reason"], shown["message"])
        self.conditions.set(ConditionType.SUCCEEDED, False, shown["reason"], shown["message"])
        self.conditions.abridge(shown["message"], ConditionType.FAILED)
        self._complete(ended)

    def _subject(self, *, ended: bool) -> Subject:
        owner = self.snapshot.owner
        key = owner.key
        return Subject(key.kind.value, key.name, key.namespace, owner.sweep, ended)

    def blocker(self, attempt: Attempt) -> Failure | None:
        """Return what blocks a Job that has no running pod; None if nothing does."""
        found = find_blocker(attempt, self.snapshot.now, self.snapshot.platform)
        return found and self._without_gpus(found)

    def _without_gpus(self, found: Failure) -> Failure:
        """Return why no node fits a pod; if GPUs are short, with the remedies that need fewer or none."""
        gpus, short = self.snapshot.gpus, rf"\bInsufficient {re.escape(self.snapshot.gpu_resource)}(?![\w./-]*\w)"
        unplaced = found.reason == FailureReason.UNSCHEDULABLE and not found.remedies
        if not unplaced or not gpus or not re.search(short, found.message):
            return found
        several = gpus > 1 and self.snapshot.kind is Kind.LORAJOB
        remedies = [*remedies_for(found.reason)[:2], *([_FEWER_GPUS] if several else []), WITHOUT_GPU]
        return found.model_copy(update={"remedies": remedies})

    def _curve(self) -> dict[str, str]:
        """Return the location of the loss curve, for a run that could not report it at its end."""
        uri = (self.fields.get("curve") or {}).get("uri")
        return {"curve": uri} if uri else {}

    def _checkpoint(self, failure: Failure) -> dict[str, str]:
        """Return how a new object continues from the latest checkpoint, if that is useful."""
        step = int((self.fields.get("checkpoint") or {}).get("step") or 0)
        corrupt = any(found.get("type") in _CORRUPT for found in self.fields.get("findings") or ())
        of_sweep = self.snapshot.owner.sweep is not None or self.snapshot.search is not None
        if not step or corrupt or of_sweep or failure.reason not in _RESUMABLE:
            return {}
        name = self.snapshot.owner.key.name
        alike = "a new LoRAJob with the same model, data, method, rank, and maxLength continues from it"
        return {"checkpoint": f"step {step}; {alike} with resumeFrom.loraJobRef.name: {name}"}

    def _warm_start(self, failure: Failure) -> dict[str, str]:
        """Return how a new sweep learns from the trials of this one, where it can."""
        search = self.snapshot.search
        measured = search is not None and any(trial.row.value is not None for trial in search.trials)
        if not measured or not can_warm_start(failure.fixes):
            return {}
        return {"warmStartFrom": f"[{{name: {self.snapshot.owner.key.name}}}]"}

    def fail_for(self, reason: FailureReason, message: str, *remedies: Remedy) -> None:
        """End the object as failed, with the usual remedies of the reason unless others are given."""
        self.fail(Failure(reason=reason, message=redact(message), remedies=list(remedies)))

    def succeed(self, message: str, ended: datetime | None, reason: str = "Succeeded") -> None:
        """End the object as succeeded, for good."""
        self.conditions.set(ConditionType.SUCCEEDED, True, reason, message)
        self._complete(ended)

    def end_stopped(self, reason: str, message: str, ended: datetime | None = None) -> None:
        """End the object as stopped on purpose, for good."""
        if self.snapshot.definition.has_status_field("stopped"):
            self.merge("stopped", {"reason": reason})
        self.conditions.set(ConditionType.STOPPED, True, reason, message)
        self.conditions.set(ConditionType.SUCCEEDED, False, reason, message)
        self.conditions.abridge(message, ConditionType.STOPPED)
        self._complete(ended)

    @property
    def ended(self) -> bool:
        """Return whether the object has succeeded, failed or been stopped."""
        return any(self.conditions.is_true(end) for end in _ENDS)

    def show_blocker(self, failure: Failure, *, ends: bool = False) -> None:
        """Show what blocks the object now; the next status drops it once it has passed.

        `ends`: the object fails for it as soon as its last pod has ended.
        """
        self.fields["failure"] = failure_status(failure, self._subject(ended=ends))

    def _complete(self, ended: datetime | None) -> None:
        self.fields.setdefault("completionTime", format_time(ended or self.snapshot.now))
        self.fields.pop("pods", None)
        if self.snapshot.main is not None or self.conditions.status(ConditionType.RUNNING) is not None:
            self.conditions.set(ConditionType.RUNNING, False, "Ended")

    def _forget_eta(self) -> None:
        """Remove the ETA, as no pod runs; the completed steps stay."""
        progress = self.fields.get("progress") or {}
        if progress.keys() & _FORECAST:
            self.fields["progress"] = {name: value for name, value in progress.items() if name not in _FORECAST}

    def _forget_download(self) -> None:
        """Set percentText to the progress of training, once no download runs."""
        progress = self.fields.get("progress") or {}
        percent = progress.get("percent")
        shown = {} if percent is None else {"percentText": f"{percent}%"}
        merged = {name: value for name, value in progress.items() if name != "percentText"} | shown
        if progress:
            self.put(progress=merged or None)

    def finish(self) -> dict[str, Any]:
        """Return the status without values that the API server would reject."""
        if not self.ended:
            self.conditions.set(ConditionType.SUCCEEDED, None, "InProgress")
        references = [dict(reference) for reference in self.snapshot.input_references]
        if references:
            self.fields["inputReferences"] = references
        if self.conditions.is_false(ConditionType.RUNNING):
            self._forget_eta()
        if not self.conditions.is_true(ConditionType.RUNNING):
            # It is about the running pod.
            self.conditions.drop(ConditionType.PROGRESS_REPORTED)
        phase = phase_of(self.conditions, self.snapshot.running.working_phase)
        if phase is not Phase.DOWNLOADING:
            self._forget_download()
        set_summary(self.conditions, phase)
        self.conditions.confirm()
        self.put(reason=summary_reason(self.conditions, phase, self.fields.get("failure")))
        status = {
            **self.fields,
            "specVersion": VERSION,
            "observedGeneration": self.snapshot.owner.generation,
            "conditions": self.conditions.to_list(),
            "phase": phase.value,
        }
        return without_invalid(self.snapshot.definition.status, status, strict=True) or status
