"""Everything that a verdict is drawn from, gathered at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tunery_api.errors import FieldError
from tunery_api.failures import Failure
from tunery_api.kinds import KINDS, Kind, KindDefinition, Running
from tunery_api.runspec import TrainerStatus
from tunery_operator.observed.attempt import Attempt
from tunery_operator.observed.metadata import Owner
from tunery_operator.observed.pod import LostPod, PodView
from tunery_operator.planning.inputs import Input
from tunery_operator.planning.platform_values import NO_VALUES, PlatformValues
from tunery_operator.status.phase import WAITING_FOR_PREDECESSOR
from tunery_operator.status.search import Search


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
    """Why it is to end for good; None: it is to go on."""
    on_stop: str | None = None
    """What the manifest says of what was trained by then; None: it is left open."""
    kept_by: tuple[str, ...] = ()
    """The finalizers of others that keep the object though it was deleted."""
    gpus: int = 0
    queue: str | None = None
    method: str | None = None
    """The method that the manifest names; None: left to preflight."""
    errors: tuple[FieldError, ...] = ()
    """What is wrong with the spec; with one, nothing else counts."""
    conflict: str | None = None
    """What bears the name of a child and is not ours."""
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
    heard_at: datetime | None = None
    """When it came."""
    lost_pods: tuple[LostPod, ...] = ()
    watched_before: datetime | None = None
    """Until when an operator was at work before this one began to watch: what it saw running ran at least so long."""
    taking_reports_since: datetime | None = None
    """Since when this operator takes the reports of pods; None: the platform has that switched off."""
    distrust: str | None = None
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
