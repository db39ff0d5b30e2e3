"""Define the snapshot that a status is computed from: one object and all that is known of it at one moment."""

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
    """Why no trial could be created in this reconcile, and in how many seconds that is tried again."""

    reason: str
    message: str
    seconds: float
    is_shown: bool = True
    """In the condition Searching."""


@dataclass(frozen=True, slots=True)
class Search:
    """The trials of a sweep, after what was done in this look."""

    spec: LoRASweepSpec
    trials: tuple[Trial, ...]
    decision: Decision
    inputs: TrialInputs | None = None
    """What the first trial that passed its preflight has read; None: none has."""
    importance: Mapping[str, float] | None = None
    """By path; None: it was not asked for in this look."""
    exhausted: bool = False
    """The sampler found no other point."""
    blocker: Blocker | None = None
    foreign: tuple[str, ...] = ()
    """Names of the LoRAJobs that name the sweep as their owner and are none of its trials."""
    owner_changed: tuple[str, ...] = ()
    """Names of the trials whose owner reference another client has changed: they count, and stay unchanged."""
    not_suspended: tuple[str, ...] = ()
    """Names of the trials that have not come to rest, while the sweep is suspended."""

    @property
    def alive(self) -> tuple[Trial, ...]:
        """The trials that have not ended."""
        return tuple(trial for trial in self.trials if not trial.is_final)

    @property
    def kept(self) -> dict[str, tuple[str, ...]]:
        """The finalizers of others that keep a trial though it was deleted, by the trial's name."""
        by_trial = {trial.row.name: _finalizers(trial) for trial in self.alive}
        return {name: finalizers for name, finalizers in by_trial.items() if finalizers}

    @property
    def look_again(self) -> datetime | None:
        """When time alone changes what is to be done."""
        return self.decision.look_again


def _finalizers(trial: Trial) -> tuple[str, ...]:
    finalizers = (trial.live.finalizers if trial.live is not None else None) or ()
    return foreign_finalizers({"metadata": {"finalizers": finalizers}})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One object, what was made for it, and what is known about it."""

    kind: Kind
    owner: Owner
    status: Mapping[str, Any]
    """The status that the API server has."""
    now: datetime
    suspend: bool = False
    stop: str | None = None
    """Why it is to end for good; None: it continues."""
    on_stop: str | None = None
    """spec.onStop: what happens to what was trained by then; None: unset."""
    blocking_finalizers: tuple[str, ...] = ()
    """The finalizers of others that keep the object though it was deleted."""
    gpus: int = 0
    queue: str | None = None
    method: str | None = None
    """The method that the manifest names; None: left to preflight."""
    errors: tuple[FieldError, ...] = ()
    """What is wrong with the spec; with one, nothing else counts."""
    conflict: str | None = None
    """A foreign object that has the name of a child."""
    inputs: tuple[Input, ...] = ()
    preflight_needed: bool = False
    preflight_only: bool = False
    """Nothing follows preflight: it is what was asked for."""
    preflight: Attempt | None = None
    main: Attempt | None = None
    """The Job that does the work."""
    report: Attempt | None = None
    """The Job that says again what a complete one has published."""
    publishing: Attempt | None = None
    """The Job that publishes what a stopped one has left."""
    leftovers: tuple[PodView, ...] = ()
    """Pods of an earlier Job of the same name that have not ended."""
    progress: TrainerStatus | None = None
    """The newest report, which may be an earlier attempt's."""
    reporter: str = ""
    """Uid of the pod whose report that is."""
    reported_at: datetime | None = None
    """When it came."""
    lost_pods: tuple[LostPod, ...] = ()
    watched_before: datetime | None = None
    """Until when an operator was at work before this one began to watch: what it saw running ran at least so long."""
    taking_reports_since: datetime | None = None
    """Since when this operator takes the reports of pods; None: the platform has that switched off."""
    certificate_fault: str | None = None
    """Why pods cannot trust the certificate of the operator's endpoint; None: they can."""
    deadline_seconds: int | None = None
    """How long pods may run in all; None: for ever."""
    gpu_resource: str = ""
    platform: PlatformValues = NO_VALUES
    """The values of the chart that its pods use."""
    unplannable: tuple[FieldError, ...] = ()
    """Why an accepted spec cannot be planned with today's rules and settings: told, and waited for."""
    rejection: Failure | None = None
    """The API server's answer to a request for a child that it rejected."""
    waiting_for: str | None = None
    """What the next Job waits for, such as an earlier object's Job that still ends."""
    waiting_reason: str = WAITING_FOR_PREDECESSOR
    retry: str | None = None
    """The annotation tunery.dev/retry."""
    search: Search | None = None
    """What a sweep knows of its trials; None: of another kind, or nothing was found out in this look."""
    input_references: tuple[dict[str, Any], ...] = ()
    """The LoRAJobs that it uses, as status.inputReferences tells them."""

    @property
    def definition(self) -> KindDefinition:
        """What follows from its kind alone."""
        return KINDS[self.kind]

    @property
    def running(self) -> Running:
        """What is known of the Job that it runs."""
        running = self.definition.running
        if running is None:
            raise TypeError(f"a {self.kind.value} runs no Job")
        return running
