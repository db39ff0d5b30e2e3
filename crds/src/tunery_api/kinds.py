"""Define KINDS, one entry for each kind: names, spec, status, columns, and whether it runs Jobs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.adapterserver import AdapterServerSpec
from tunery_api.batchinference import BatchInferenceSpec, BatchInferenceStatus
from tunery_api.fields import KindSpec, OpenModel
from tunery_api.lorajob import LoRAJobSpec
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.serverstatus import AdapterServerStatus
from tunery_api.status import AdapterMergeStatus, LoRAJobStatus, Phase
from tunery_api.sweepstatus import LoRASweepStatus


class Column(NamedTuple):
    """A column of `kubectl get`; with priority 1 only `-o wide` shows it."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0


class Kind(StrEnum):
    """The kinds of the API group, the keys of all tables by kind."""

    LORAJOB = "LoRAJob"
    ADAPTERMERGE = "AdapterMerge"
    ADAPTERSERVER = "AdapterServer"
    BATCHINFERENCE = "BatchInference"
    LORASWEEP = "LoRASweep"

    @property
    def singular(self) -> str:
        """The kind in lower case, as in `kubectl get lorajob`."""
        return self.value.lower()

    @property
    def plural(self) -> str:
        """The name of the resource, as in a URL."""
        return f"{self.singular}s"


class Running(NamedTuple):
    """The properties of a kind that runs a Job to completion."""

    has_preflight: bool
    """The main Job waits for a preflight Job."""
    working_phase: Phase
    """The phase while a pod of the main Job runs and reports no phase."""
    result: str = "adapter"
    """The field of the status and of RunResult with the published result."""


class KindDefinition(NamedTuple):
    """The properties of a kind that don't depend on a cluster."""

    kind: Kind
    short: str
    spec: type[KindSpec]
    status: type[OpenModel]
    """Its fields also decide what is copied from the pods' reports: progress, checkpoint, rank, …"""
    columns: tuple[Column, ...]
    description: str
    running: Running | None = None
    """None: it runs no Job and never finishes."""
    selectable: tuple[str, ...] = (".spec.suspend", ".status.phase")
    """The fields that `kubectl get --field-selector` supports."""
    scales: bool = False
    """The kind has the scale subresource."""
    host_name: bool = False
    """The name becomes part of a host name."""

    def has_status_field(self, field: str) -> bool:
        """Return whether the status of this kind has a field, by its Python name."""
        return field in self.status.model_fields


_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_QUEUE = Column("Queue", ".status.queue", priority=1)
_RESULT = Column("Adapter", ".status.adapter.uri", priority=1)
_REASON = Column("Reason", ".status.reason")
"""Why the object failed or waits, next to the phase."""

_LORAJOB: Final = KindDefinition(
    kind=Kind.LORAJOB,
    short="lj",
    spec=LoRAJobSpec,
    status=LoRAJobStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Progress", ".status.progress.percentText"),
        _REASON,
        Column("Loss", ".status.metrics.loss"),
        Column("Method", ".status.resolved.method"),
        _AGE,
        Column("Model", ".spec.model.uri", priority=1),
        Column("Task", '.status.resolved.values[?(@.name=="task")].value', priority=1),
        Column("Eval Loss", ".status.metrics.evalLoss", priority=1),
        Column("ETA", ".status.progress.eta", priority=1),
        Column("Pods", ".status.pods", priority=1),
        Column("Health", '.status.conditions[?(@.type=="Healthy")].reason', priority=1),
        _QUEUE,
        _RESULT,
    ),
    description="A LoRAJob fine-tunes an adapter for a base model and publishes it in S3-compatible storage.",
    running=Running(has_preflight=True, working_phase=Phase.TRAINING),
)

_ADAPTERMERGE: Final = KindDefinition(
    kind=Kind.ADAPTERMERGE,
    short="am",
    spec=AdapterMergeSpec,
    status=AdapterMergeStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Progress", ".status.progress.percentText"),
        _REASON,
        Column("Method", ".spec.method"),
        Column("Into", ".spec.into"),
        Column("Deviation", ".status.verification.maxError", priority=1),
        _AGE,
        _QUEUE,
        _RESULT,
    ),
    description="An AdapterMerge combines adapters into one, or merges them into their base model.",
    running=Running(has_preflight=False, working_phase=Phase.MERGING),
)

_ADAPTERSERVER: Final = KindDefinition(
    kind=Kind.ADAPTERSERVER,
    short="asrv",
    spec=AdapterServerSpec,
    status=AdapterServerStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Ready", ".status.readyText"),
        Column("Adapters", ".status.adaptersText"),
        Column("Reason", ".status.failure.reason"),
        _AGE,
        Column("Model", ".spec.model.uri", priority=1),
        Column("URL", ".status.url", priority=1),
    ),
    description="An AdapterServer answers requests for a base model and many adapters on it.",
    selectable=(".status.phase",),
    scales=True,
    host_name=True,
)

_BATCHINFERENCE: Final = KindDefinition(
    kind=Kind.BATCHINFERENCE,
    short="bi",
    spec=BatchInferenceSpec,
    status=BatchInferenceStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Progress", ".status.progress.percentText"),
        _REASON,
        Column("Errors", ".status.errors", "integer"),
        Column("Server", ".spec.serverRef.name"),
        _AGE,
        Column("ETA", ".status.progress.eta", priority=1),
        _QUEUE,
        Column("Output", ".status.output.uri", priority=1),
    ),
    description="A BatchInference answers a file of requests through an AdapterServer and publishes the answers.",
    running=Running(has_preflight=False, working_phase=Phase.ANSWERING, result="output"),
)

_LORASWEEP: Final = KindDefinition(
    kind=Kind.LORASWEEP,
    short="lsw",
    spec=LoRASweepSpec,
    status=LoRASweepStatus,
    columns=(
        Column("Phase", ".status.phase"),
        _REASON,
        Column("Trials", ".status.countsText"),
        Column("Running", ".status.counts.running", "integer"),
        Column("Best", ".status.best.value"),
        Column("Trial", ".status.best.name"),
        _AGE,
        Column("Improvement", ".status.best.improvement", priority=1),
        Column("GPU-s", ".status.gpuSeconds", "integer", priority=1),
        Column("Saved", ".status.gpuSecondsSaved", "integer", priority=1),
        _QUEUE,
        _RESULT,
    ),
    description="A LoRASweep searches for the settings of a LoRAJob that give the lowest held-out loss, and publishes "
    "the best adapter.",
    running=Running(has_preflight=False, working_phase=Phase.UPLOADING),
)

KINDS: Final[Mapping[Kind, KindDefinition]] = {
    each.kind: each for each in (_LORAJOB, _ADAPTERMERGE, _ADAPTERSERVER, _BATCHINFERENCE, _LORASWEEP)
}
JOB_KINDS: Final = tuple(kind for kind, definition in KINDS.items() if definition.running is not None)
"""The kinds that run a Job to completion."""
ADAPTER_KINDS: Final = tuple(kind for kind in JOB_KINDS if KINDS[kind].has_status_field("adapter"))
"""The kinds that publish an adapter, which a server may serve."""
