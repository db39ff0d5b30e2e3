"""What a sweep knows of its trials at one look: what there is, what is to be done, and what stood in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.search.decide import Decision
from tunery_api.search.rows import Trial

SUGGESTION_FAILED: Final = "SuggestionFailed"
TRIALS_QUEUED: Final = "TrialsQueued"
SAMPLER_BUSY: Final = "SamplerBusy"


@dataclass(frozen=True, slots=True)
class Hindrance:
    """Why no trial could be made in this look, and when it is tried again."""

    reason: str
    message: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Search:
    """The trials of a sweep, after what was done in this look."""

    spec: LoRASweepSpec
    trials: tuple[Trial, ...]
    decision: Decision
    importance: Mapping[str, float] | None = None
    """By path; None: it was not asked for in this look."""
    exhausted: bool = False
    """The sampler found no other point."""
    hindrance: Hindrance | None = None
    not_held: tuple[str, ...] = ()
    """Names of the trials that have not come to rest, while the sweep is suspended."""

    @property
    def alive(self) -> tuple[Trial, ...]:
        """The trials that have not ended."""
        return tuple(trial for trial in self.trials if not trial.is_final)

    @property
    def look_again(self) -> datetime | None:
        """When time alone changes what is to be done."""
        return self.decision.look_again
