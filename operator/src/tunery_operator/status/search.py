"""Provide what one reconcile of a sweep knows of its trials: their state, what is decided, and what blocks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.sweepstatus import TrialInputs
from tunery_operator.observed.metadata import foreign_finalizers
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
    """Names of the trials whose owner reference somebody has changed: they count, and nothing of them is changed."""
    not_held: tuple[str, ...] = ()
    """Names of the trials that have not come to rest, while the sweep is suspended."""

    @property
    def alive(self) -> tuple[Trial, ...]:
        """The trials that have not ended."""
        return tuple(trial for trial in self.trials if not trial.is_final)

    @property
    def kept(self) -> dict[str, tuple[str, ...]]:
        """The finalizers of others that keep a trial though it was deleted, by the trial's name."""
        told = {trial.row.name: _kept_by(trial) for trial in self.alive}
        return {name: finalizers for name, finalizers in told.items() if finalizers}

    @property
    def look_again(self) -> datetime | None:
        """When time alone changes what is to be done."""
        return self.decision.look_again


def _kept_by(trial: Trial) -> tuple[str, ...]:
    finalizers = (trial.live.finalizers if trial.live is not None else None) or ()
    return foreign_finalizers({"metadata": {"finalizers": finalizers}})
