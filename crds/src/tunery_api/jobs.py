"""Define how the Jobs of a kind run: retries and deadlines, resources, and the allowed scheduling fields."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tunery_api.fields import ApiModel, CpuString, DiskString, KindSpec, MemoryString, ObjectName

_KEY: Final = r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=f"^{_KEY}$")]
TaintKey = Annotated[str, Field(max_length=317, pattern=f"^({_KEY})?$")]
"""The key of a toleration. As in Kubernetes, an empty key matches every taint."""
LabelValue = Annotated[str, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
GpuResource = Annotated[str, Field(min_length=3, max_length=253, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")]

FOREIGN_ACCELERATORS: Final = (
    "amd.com/",
    "gpu.intel.com/",
    "habana.ai/",
    "google.com/",
    "aws.amazon.com/",
    "huawei.com/",
)
"""Domains of resources that don't run CUDA, which the trainer image requires. Other domains may be NVIDIA GPUs under
another name, such as shared or virtual GPUs."""


class LifecycleFields(KindSpec):
    """The spec fields for the lifecycle of a kind's Jobs."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset({"suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds"})
    MUTABLE_AT_REST: ClassVar[frozenset[str]] = frozenset({"retries", "scheduling"})
    MUTABLE_RESOURCES: ClassVar[frozenset[str]] = frozenset({"memory", "ephemeralStorage"})

    suspend: bool = Field(
        False,
        description="Stop the pods; a LoRAJob saves a checkpoint first. Nothing else is deleted. Set it to false to "
        "resume.",
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description="Number of retries after failed attempts. Preemptions and lost nodes don't count. You can change "
        "it while no pod runs.",
    )
    active_deadline_seconds: int = Field(
        86_400,
        ge=1,
        le=31_536_000,
        description="Total seconds that the main pods may run in all attempts before the job fails. Preflight and "
        "waiting for a queue, node or image don't count. You can raise it at any time.",
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=315_360_000,
        description="Seconds after which the finished object is deleted. Unset: the platform's default, which is 30 "
        "days unless changed.",
    )


class PodResources(ApiModel):
    """The resources of the main container; requests equal limits."""

    gpus: int = Field(1, ge=0, le=1, description="GPUs of the pod: 1, or 0 to use the CPU.")
    gpu_resource: GpuResource = Field("nvidia.com/gpu", description="Extended resource name of the NVIDIA GPUs.")
    cpu: CpuString = Field("4", description='CPU of the container: 4, 500m or "0.5". Quote a fraction.')
    memory: MemoryString = Field("24Gi", description="Memory of the container. You can change it while no pod runs.")
    ephemeral_storage: DiskString = Field(
        "50Gi",
        description="Ephemeral storage of the container: model, data set, checkpoints. Default: 50Gi, or more if "
        "preflight estimates more. You can change it while no pod runs.",
    )


class ResourcesSpec(PodResources):
    """The resources of each training container; requests equal limits."""

    gpus: int = Field(1, ge=0, le=16, description="GPUs of each pod, 0 to 16, which train together. 0: train on CPU.")
    nodes: int = Field(
        1,
        ge=1,
        le=64,
        description="Pods that train one adapter together, 1 to 64, each with these resources. Several need a shared "
        "network and should be queued (docs/distributed.md). Fields mutable while no pod runs stay mutable "
        "until all pods run.",
    )

    @property
    def devices(self) -> int:
        """The number of devices that train together: GPUs, or pods on CPU."""
        return max(1, self.gpus) * self.nodes


class TolerationOperator(StrEnum):
    """The operator of a toleration."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """The effect of a taint."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    key: TaintKey | None = Field(None, description="Taint key. Unset, with operator Exists: all keys.")
    operator: TolerationOperator = Field(TolerationOperator.EQUAL, description="Exists or Equal.")
    value: LabelValue | None = Field(None, description="Taint value.")
    effect: TaintEffect | None = Field(None, description="Taint effect. Unset: all effects.")
    toleration_seconds: int | None = Field(
        None, ge=0, description="Seconds that a taint with effect NoExecute is tolerated. Unset: no limit."
    )


class SelectorOperator(StrEnum):
    """The operator of a node selector requirement."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class NodeSelectorRequirement(ApiModel):
    """A requirement on one node label."""

    key: LabelKey = Field(description="Label key of the node.")
    operator: SelectorOperator = Field(description="Operator, as in a pod's node affinity.")
    values: list[LabelValue] | None = Field(None, max_length=64, description="Values; only for In, NotIn, Gt and Lt.")


class NodeSelectorTerm(ApiModel):
    """Requirements that must all be met."""

    match_expressions: list[NodeSelectorRequirement] = Field(
        min_length=1, max_length=16, description="Requirements on labels; all must be met."
    )


class NodeSelector(ApiModel):
    """Terms of which one must match."""

    node_selector_terms: list[NodeSelectorTerm] = Field(
        min_length=1, max_length=16, description="Terms; at least one must match."
    )


class PreferredSchedulingTerm(ApiModel):
    """A weighted preference."""

    weight: int = Field(ge=1, le=100, description="Weight of the preference, 1 to 100.")
    preference: NodeSelectorTerm = Field(description="Requirements of the preferred nodes.")


class NodeAffinity(ApiModel):
    """Node affinity, as in a pod."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        None, description="Requirements that a node must meet."
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] | None = Field(
        None, max_length=16, description="Requirements that a node should meet."
    )


class Affinity(ApiModel):
    """Affinity of the pod; node affinity only."""

    node_affinity: NodeAffinity | None = Field(None, description="Node affinity, as in a pod.")


class SchedulingSpec(ApiModel):
    """Where and how the pods are scheduled."""

    node_selector: dict[LabelKey, LabelValue] | None = Field(
        None, max_length=32, description="Required labels of the node."
    )
    tolerations: list[Toleration] | None = Field(None, max_length=32, description="Tolerations of taints, as in a pod.")
    affinity: Affinity | None = Field(None, description="Node affinity.")
    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")
    runtime_class_name: ObjectName | None = Field(None, description="RuntimeClass of the pods.")
    scheduler_name: ObjectName | None = Field(
        None, description="Scheduler of the pods. Unset: the cluster's default scheduler."
    )
    service_account_name: ObjectName | None = Field(
        None,
        description="ServiceAccount whose workload identity the pods use. Its API token is never mounted. Unset: the "
        "namespace's ServiceAccount named default.",
    )
