"""Everything that a verdict is drawn from, gathered at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tunery_api.errors import FieldError
from tunery_api.runspec import TrainerStatus
from tunery_operator.plan.inputs import AdapterInput
from tunery_operator.plan.model import Kind, Owner
from tunery_operator.status.jobview import JobView
from tunery_operator.status.podview import LostPod, PodView


@dataclass(frozen=True, slots=True)
class Attempt:
    """A Job with its pods, oldest first."""

    job: JobView
    pods: tuple[PodView, ...] = ()

    @property
    def last(self) -> PodView | None:
        """The newest pod."""
        return self.pods[-1] if self.pods else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One object, what was made for it, and what is known about it."""

    kind: Kind
    owner: Owner
    status: Mapping[str, Any]
    """The status that the API server has."""
    now: datetime
    suspend: bool = False
    gpus: int = 0
    queue: str | None = None
    method: str | None = None
    """The method that the manifest names; None: left to preflight."""
    errors: tuple[FieldError, ...] = ()
    """What is wrong with the spec; with one, nothing else counts."""
    conflict: str | None = None
    """What bears the name of a child and is not ours."""
    inputs: tuple[AdapterInput, ...] = ()
    preflight_needed: bool = False
    preflight: Attempt | None = None
    work: Attempt | None = None
    """The train or merge Job."""
    progress: TrainerStatus | None = None
    lost_pods: tuple[LostPod, ...] = ()
