"""The two kinds as Kubernetes knows them: names, columns, and what may change."""

from __future__ import annotations

from typing import Final, NamedTuple

from tunery_api.adaptermerge import AdapterMergeSpec
from tunery_api.lorajob import LifecycleFields, LoRAJobSpec
from tunery_api.status import AdapterMergeStatus, CommonStatus, LoRAJobStatus


class Column(NamedTuple):
    """A column of `kubectl get`; a priority of 1 shows it with `-o wide` only."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0


class Kind(NamedTuple):
    """One kind of the API group."""

    kind: str
    plural: str
    short: str
    spec: type[LifecycleFields]
    status: type[CommonStatus]
    columns: tuple[Column, ...]
    description: str

    @property
    def singular(self) -> str:
        """The kind in lower case, as in `kubectl get lorajob`."""
        return self.kind.lower()


_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_QUEUE = Column("Queue", ".status.queue", priority=1)
_RESULT = Column("Adapter", ".status.adapter.uri", priority=1)
_REASON = Column("Reason", ".status.failure.reason", priority=1)

LORAJOB: Final = Kind(
    kind="LoRAJob",
    plural="lorajobs",
    short="lj",
    spec=LoRAJobSpec,
    status=LoRAJobStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Progress", ".status.progress.percentText"),
        Column("Loss", ".status.metrics.loss"),
        Column("Model", ".spec.model.uri"),
        Column("Method", ".status.resolved.method"),
        _AGE,
        Column("Task", ".spec.task", priority=1),
        Column("Eval Loss", ".status.metrics.evalLoss", priority=1),
        Column("ETA", ".status.progress.eta", priority=1),
        _QUEUE,
        _RESULT,
        _REASON,
    ),
    description="A LoRAJob fine-tunes an adapter for a base model and publishes it in S3-compatible storage.",
)

ADAPTERMERGE: Final = Kind(
    kind="AdapterMerge",
    plural="adaptermerges",
    short="am",
    spec=AdapterMergeSpec,
    status=AdapterMergeStatus,
    columns=(
        Column("Phase", ".status.phase"),
        Column("Method", ".spec.method"),
        Column("Into", ".spec.into"),
        Column("Deviation", ".status.verification.maxError"),
        _AGE,
        _QUEUE,
        _RESULT,
        _REASON,
    ),
    description="An AdapterMerge combines adapters into one, or merges them into their base model.",
)

KINDS: Final = (LORAJOB, ADAPTERMERGE)
