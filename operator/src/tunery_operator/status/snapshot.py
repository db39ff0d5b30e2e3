"""Provide the snapshot that a status is computed from: an object, its children, and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.kinds import KINDS, Kind, KindDefinition, Running
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.runspec import TrainerStatus
from tunery_api.sweepstatus import TrialInputs
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import Owner, foreign_finalizers
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.planning.inputs import Input
from tunery_operator.planning.platform_values import NO_VALUES, PlatformValues
from tunery_operator.status.conditions import WAITING_FOR_PREDECESSOR
from tunery_search.decision import Decision
from tunery_search.trials import Trial

SUGGESTION_FAILED: Final = "SuggestionFailed"
TRIALS_QUEUED: Final = "TrialsQueued"
TRIAL_KEPT: Final = "TrialKept"
SEARCH_SUSPENDED: Final = "SearchSuspended"
SAMPLER_BUSY: Final = "SamplerBusy"


@dataclass(frozen=True, slots=True)
class Blocker:
    """Why no trial could be created in this reconcile, and the seconds until the retry."""

    reason: str
    message: str
    seconds: float
    is_shown: bool = True
    """Whether the condition Searching shows it."""


@dataclass(frozen=True, slots=True)
class Search:
    """The trials of a sweep, after the changes of this reconcile."""

    spec: LoRASweepSpec
    trials: tuple[Trial, ...]
    decision: Decision
    inputs: TrialInputs | None = None
    """The inputs that the first trial resolved in its preflight; None: no trial has."""
    importance: Mapping[str, float] | None = None
    """By path; None: not computed in this reconcile."""
    exhausted: bool = False
    """The sampler found no other point."""
    blocker: Blocker | None = None
    foreign: tuple[str, ...] = ()
    """Names of the LoRAJobs that have the sweep as owner but are not its trials."""
    owner_changed: tuple[str, ...] = ()
    """Names of the trials whose owner reference another client has changed: they count, and stay unchanged."""
    not_suspended: tuple[str, ...] = ()
    """Names of the trials that are not suspended yet, while the sweep is."""

    @property
    def alive(self) -> tuple[Trial, ...]:
        """The trials that have not ended."""
        return tuple(trial for trial in self.trials if not trial.has_ended)

    @property
    def kept(self) -> dict[str, tuple[str, ...]]:
        """The foreign finalizers that keep deleted trials, by the name of the trial."""
        by_trial = {trial.row.name: _finalizers(trial) for trial in self.alive}
        return {name: finalizers for name, finalizers in by_trial.items() if finalizers}

    @property
    def requeue_at(self) -> datetime | None:
        """When the decision may change without an event."""
        return self.decision.requeue_at


def _finalizers(trial: Trial) -> tuple[str, ...]:
    finalizers = (trial.live.finalizers if trial.live is not None else None) or ()
    return foreign_finalizers({"metadata": {"finalizers": finalizers}})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One object with its children and their reports."""

    kind: Kind
    owner: Owner
    status: Mapping[str, Any]
    """The status that the API server has."""
    now: datetime
    suspend: bool = False
    stop: str | None = None
    """The text of spec.stop, which stops the object for good; None: unset."""
    on_stop: str | None = None
    """spec.onStop: whether what was trained is published or discarded; None: unset."""
    blocking_finalizers: tuple[str, ...] = ()
    """The foreign finalizers that keep the deleted object."""
    gpus: int = 0
    queue: str | None = None
    method: str | None = None
    """The method that the manifest names; None: left to preflight."""
    errors: tuple[FieldError, ...] = ()
    """The errors of the spec; with one, nothing else is computed."""
    conflict: str | None = None
    """A foreign object that has the name of a child."""
    inputs: tuple[Input, ...] = ()
    preflight_needed: bool = False
    preflight_only: bool = False
    """spec.preflight is Only: no Job follows preflight."""
    preflight: Attempt | None = None
    main: Attempt | None = None
    """The Job that does the work."""
    report: Attempt | None = None
    """The Job that reads the published result again."""
    publishing: Attempt | None = None
    """The Job that publishes the checkpoint of a stopped one."""
    leftovers: tuple[PodView, ...] = ()
    """Pods of an earlier Job of the same name that have not ended."""
    progress: TrainerStatus | None = None
    """The latest report, which may be from an earlier attempt."""
    reporter: str = ""
    """Uid of the pod that sent the report."""
    reported_at: datetime | None = None
    """When the report arrived."""
    lost_pods: tuple[LostPod, ...] = ()
    watched_before: datetime | None = None
    """Until when the previous leader watched: pods that it saw running ran at least until then."""
    taking_reports_since: datetime | None = None
    """Since when this operator accepts reports; None: the platform has disabled them."""
    certificate_fault: str | None = None
    """Why pods cannot trust the certificate of the operator's endpoint; None: they can."""
    deadline_seconds: int | None = None
    """Seconds that pods may run in total; None: no limit."""
    gpu_resource: str = ""
    platform: PlatformValues = NO_VALUES
    """The values of the chart that its pods use."""
    planning_errors: tuple[FieldError, ...] = ()
    """Why an accepted spec cannot be planned with the current rules and settings; the object waits."""
    rejection: Failure | None = None
    """Why a child could not be created, changed, or deleted."""
    waiting_for: str | None = None
    """What the next Job waits for, such as an earlier object's Job that still ends."""
    waiting_reason: str = WAITING_FOR_PREDECESSOR
    retry: str | None = None
    """The annotation tunery.dev/retry."""
    search: Search | None = None
    """The search of a sweep; None: another kind, or no search in this reconcile."""
    input_references: tuple[dict[str, Any], ...] = ()
    """The entries of status.inputReferences."""

    @property
    def definition(self) -> KindDefinition:
        """The definition of the kind."""
        return KINDS[self.kind]

    @property
    def running(self) -> Running:
        """The properties of the Job of the kind."""
        running = self.definition.running
        if running is None:
            raise TypeError(f"a {self.kind.value} runs no Job")
        return running
