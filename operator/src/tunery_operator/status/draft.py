"""A status while it is being computed: the old one, changed step by step, then read once."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

from tunery_api.findings import FindingType
from tunery_api.kinds import Kind
from tunery_api.names import VERSION
from tunery_api.reasons import NO_GPU, FailureReason, advice_for
from tunery_api.runspec import Failure
from tunery_api.scrub import scrub
from tunery_api.status import ConditionType, Phase
from tunery_api.tolerant import without_invalid
from tunery_operator.status.conditions import Conditions
from tunery_operator.status.diagnosis import failure_status, obstacle
from tunery_operator.status.phase import phase_of
from tunery_operator.status.snapshot import Snapshot
from tunery_operator.status.summary import sum_up, word_why
from tunery_operator.status.trial_hints import (
    hint_of_sweep,
    joined,
    of_failed_sweep,
    of_failed_trial,
    of_waiting_trial,
    retry_command,
)
from tunery_operator.views.attempt import Attempt
from tunery_operator.views.clock import format_time
from tunery_search.advice import in_template, renamed
from tunery_search.trials import CURVE_AT

_NEW_JOB: Final = re.compile(r"\bin a new (?:job|sweep)\b")
"""So ends the hint of whoever knows that no change outside of the spec mends it."""
_RETRY: Final = "retry"
"""Stands in the hint of whoever knows that one does, whatever else may be done in a new job."""
_PLACE: Final = re.compile(r"\S+://\S+")
"""Where something lies: what a job is called says nothing of whether it can be tried again."""

_GOES_ON: Final = frozenset(
    {
        FailureReason.GPU_OUT_OF_MEMORY.value,
        FailureReason.DISK_FULL.value,
        FailureReason.NOT_IMPROVED.value,
        FailureReason.DEADLINE_EXCEEDED.value,
    }
)
"""After these a new job may go on from the checkpoints; those of a loss that diverged may be spoilt."""
_SPOILT: Final = frozenset(
    {FindingType.NO_GRADIENT.value, FindingType.LOSS_RISING.value, FindingType.GRADIENT_NOT_FINITE.value}
)
"""Found of weights that nothing is worth going on from, whatever the failure is called."""

_FEWER_GPUS: Final = (
    "Where no node has as many free, fewer on more nodes may fit: lower resources.gpus and raise resources.nodes in a "
    "new job. Fewer in all train the same, only longer."
)
_OF_GPUS: Final = {
    "parallelism": " With fewer than 2 GPUs in a pod, leave training.parallelism out, too.",
    "precision": " With resources.gpus: 0, leave training.precision out, too.",
}
"""What a hint says on top where it offers to do with fewer GPUs than a field of `training` goes with."""
_ENDS: Final = (ConditionType.SUCCEEDED, ConditionType.FAILED, ConditionType.STOPPED)

_FORECAST: Final = frozenset({"eta", "etaSeconds"})
"""Of status.progress, what holds only while a pod works."""


def _mendable(reason: str, hint: str | None) -> bool:
    """Tell whether the object can be tried again: as the hint says that is better than the reason's, else as that."""
    hint = _PLACE.sub("", hint or "")
    return _RETRY in hint or (not _NEW_JOB.search(hint) and advice_for(reason).mendable)


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

    def add(self, name: str, amount: int) -> None:
        """Add to a total."""
        self.fields[name] = int(self.fields.get(name) or 0) + amount

    def fail(self, failure: Failure, *, ended: datetime | None = None, exit_code: int | None = None) -> None:
        """End the object as failed; `ended` is when that came about, if not now."""
        own = self._of_trials(failure)
        shown = failure_status(failure, exit_code) | ({"hint": own} if own is not None else {})
        mendable = _mendable(failure.reason, own or failure.hint)
        more = (
            self._of_gpus(shown["hint"])
            + self._curve(shown["hint"])
            + self._what_works(failure, shown["hint"], mendable=mendable)
        )
        # What a person is to copy is whole, however long the sentences before it are.
        shown["hint"] = joined(scrub(shown["hint"]), more)
        self.fields["failure"] = shown
        self.conditions.set(ConditionType.FAILED, True, shown["reason"], shown["message"])
        self.conditions.set(ConditionType.SUCCEEDED, False, shown["reason"], shown["message"])
        self.conditions.abridge(shown["message"], ConditionType.FAILED)
        self._complete(ended)

    def _what_works(self, failure: Failure, hint: str, *, mendable: bool) -> str:
        """Return what a hint says after what belongs to its reason: which object is tried again, and how."""
        owner = self.snapshot.owner
        if owner.sweep is not None:
            return of_failed_trial(owner, hint, mendable=mendable)
        search = self.snapshot.search
        trials = search if failure.reason != FailureReason.BUDGET_EXHAUSTED else None
        if trials is not None:
            return of_failed_sweep(owner.key, hint, trials, mendable=mendable)
        command = self.retry_command()
        more = f" {command}" if mendable and command not in hint else ""
        return more + self._kept(failure, mendable=mendable)

    def _of_trials(self, failure: Failure) -> str | None:
        """Return the hint of a sweep or of one of its trials, in the words of the sweep; None: of neither."""
        if not self._about_template:
            return None
        return hint_of_sweep(failure, self.snapshot.search)

    def obstacle(self, attempt: Attempt) -> Failure | None:
        """Return why a Job has no pod at work, or None while nothing stands in its way; it may pass by itself."""
        found = obstacle(attempt, self.snapshot.now, self.snapshot.platform)
        return found and self._without_gpus(found, attempt.job.nodes)

    def _without_gpus(self, found: Failure, nodes: int) -> Failure:
        """Return why a pod has no node, where GPUs are short with what fits without them; the GPUs are of each pod."""
        gpus, short = self.snapshot.gpus, rf"\bInsufficient {re.escape(self.snapshot.gpu_resource)}(?![\w./-]*\w)"
        unplaced = found.reason == FailureReason.UNSCHEDULABLE and found.hint is None
        if not unplaced or not gpus or not re.search(short, found.message):
            return found
        several = gpus > 1 and self.snapshot.kind is Kind.LORAJOB
        all_ = f"{gpus * nodes} GPUs in all, the {gpus} of each pod" if nodes > 1 else f"{gpus} GPUs"
        fewer = f" It wants {all_} on one node. {_FEWER_GPUS}" if several else ""
        hint = f"{advice_for(found.reason).hint}{fewer} {NO_GPU}"
        return found.model_copy(update={"hint": hint + self._of_gpus(hint)})

    def _of_gpus(self, hint: str) -> str:
        """Return what else is to change where a hint has somebody set resources.gpus to 0, or to fewer."""
        if "resources.gpus: 0" not in hint:
            return ""
        more = "".join(_OF_GPUS[field] for field in self.snapshot.of_gpus)
        return in_template(more) if self._about_template else more

    @property
    def _about_template(self) -> bool:
        """Tell whether the fields that a failure's hint names are those of a sweep's template."""
        return self.snapshot.owner.sweep is not None or self.snapshot.search is not None

    def _curve(self, hint: str) -> str:
        """Return where the curve lies, of a run that could not say it as it ended."""
        uri = self.fields.get("curve")
        return f"{CURVE_AT}{uri}." if uri and uri not in hint else ""

    def _kept(self, failure: Failure, *, mendable: bool) -> str:
        """Return the sentences that what was trained is not lost, where a checkpoint is there and of use."""
        step = int((self.fields.get("checkpoint") or {}).get("step") or 0)
        spoilt = any(found.get("type") in _SPOILT for found in self.fields.get("findings") or ())
        if not step or spoilt or failure.reason not in _GOES_ON:
            return ""
        who = (
            "that retry goes on after step {0}, and so does a new job"
            if mendable
            else "a new job goes on after step {0}"
        )
        where = " on a GPU with more memory" if failure.reason == FailureReason.GPU_OUT_OF_MEMORY else ""
        return (
            f" What was trained is kept: {who.format(step)}{where} with the same model and data and "
            f"resumeFrom.loraJobRef.name: {self.snapshot.owner.key.name}. It need not repeat the settings; with "
            "another maxLength, method or rank it has to train anew."
        )

    def fail_for(self, reason: FailureReason, message: str, hint: str | None = None) -> None:
        """End the object as failed, with the advice that belongs to the reason unless `hint` is better."""
        self.fail(Failure(reason=reason, message=scrub(message), hint=hint))

    def retry_command(self) -> str:
        """Return what has a failed object tried again, in words."""
        return retry_command(self.snapshot.owner.key)

    def succeed(self, message: str, ended: datetime | None, reason: str = "Succeeded") -> None:
        """End the object as succeeded, for good."""
        self.conditions.set(ConditionType.SUCCEEDED, True, reason, message)
        self._complete(ended)

    def end_stopped(self, reason: str, message: str, ended: datetime | None = None) -> None:
        """End the object as stopped on purpose, for good."""
        if self.snapshot.definition.holds("stopped"):
            self.merge("stopped", {"reason": reason})
        self.conditions.set(ConditionType.STOPPED, True, reason, message)
        self.conditions.set(ConditionType.SUCCEEDED, False, reason, message)
        self.conditions.abridge(message, ConditionType.STOPPED)
        self._complete(ended)

    @property
    def ended(self) -> bool:
        """Tell whether the object has succeeded, failed or been stopped."""
        return any(self.conditions.is_true(end) for end in _ENDS)

    def show_obstacle(self, failure: Failure) -> None:
        """Show what stands in the way now; it is gone from the status as soon as it no longer does."""
        shown = failure_status(failure)
        if self.snapshot.search is not None:
            shown["hint"] = hint_of_sweep(failure, self.snapshot.search)
        owner, hint = self.snapshot.owner, shown["hint"]
        shown["hint"] = joined(renamed(hint) if owner.sweep is not None else hint, of_waiting_trial(owner, hint))
        self.fields["failure"] = shown

    def _complete(self, ended: datetime | None) -> None:
        self.fields.setdefault("completionTime", format_time(ended or self.snapshot.now))
        self.fields.pop("pods", None)
        if self.snapshot.main is not None or self.conditions.status(ConditionType.RUNNING) is not None:
            self.conditions.set(ConditionType.RUNNING, False, "Ended")

    def _forget_eta(self) -> None:
        """Nothing runs, so nobody knows when it ends; how far it came stays."""
        progress = self.fields.get("progress") or {}
        if progress.keys() & _FORECAST:
            self.fields["progress"] = {name: value for name, value in progress.items() if name not in _FORECAST}

    def _forget_download(self) -> None:
        """Have percentText say how much is trained again: nothing is downloaded now."""
        progress = self.fields.get("progress") or {}
        percent = progress.get("percent")
        shown = {} if percent is None else {"percentText": f"{percent}%"}
        told = {name: value for name, value in progress.items() if name != "percentText"} | shown
        if progress:
            self.put(progress=told or None)

    def finish(self) -> dict[str, Any]:
        """Return the status, without what the API server would refuse it for."""
        if not self.ended:
            self.conditions.set(ConditionType.SUCCEEDED, None, "InProgress")
        references = [dict(reference) for reference in self.snapshot.input_references]
        if references:
            self.fields["inputReferences"] = references
        if self.conditions.is_false(ConditionType.RUNNING):
            self._forget_eta()
        if not self.conditions.is_true(ConditionType.RUNNING):
            # It speaks of the pod at work.
            self.conditions.drop(ConditionType.PROGRESS_REPORTED)
        phase = phase_of(self.conditions, self.snapshot.running.working_phase)
        if phase is not Phase.DOWNLOADING:
            self._forget_download()
        sum_up(self.conditions, phase)
        self.conditions.confirm()
        self.put(reason=word_why(self.conditions, phase, self.fields.get("failure")))
        status = {
            **self.fields,
            "specVersion": VERSION,
            "observedGeneration": self.snapshot.owner.generation,
            "conditions": self.conditions.to_list(),
            "phase": phase.value,
        }
        return without_invalid(self.snapshot.definition.status, status, strict=True) or status
