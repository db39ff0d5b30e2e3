"""Define how the Jobs of a kind run: retries and deadlines, resources, and an allow-list of scheduling fields."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tunery_api.fields import ApiModel, CpuString, DiskString, KindSpec, MemoryString, ObjectName

_KEY: Final = r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=f"^{_KEY}$")]
TaintKey = Annotated[str, Field(max_length=317, pattern=f"^({_KEY})?$")]
"""The key of a toleration: an empty one is Kubernetes' own way to say every key."""
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
"""Domains of resources that CUDA does not run on, which is all that the trainer's image has. Others may be another name
for NVIDIA's GPUs, as sharing and virtual GPUs have one."""


class LifecycleFields(KindSpec):
    """The fields of a spec that say how its Jobs live and end."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset({"suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds"})
    MUTABLE_AT_REST: ClassVar[frozenset[str]] = frozenset({"retries", "scheduling"})
    MUTABLE_RESOURCES: ClassVar[frozenset[str]] = frozenset({"memory", "ephemeralStorage"})

    suspend: bool = Field(
        False, description="Stop the pods, of a LoRAJob after a checkpoint, and keep the rest; false resumes."
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description="Failed attempts that are tried again; preemptions and lost nodes do not count. May change while "
        "no pod runs.",
    )
    active_deadline_seconds: int = Field(
        86_400,
        ge=1,
        le=31_536_000,
        description="Seconds that the pods which do the work may run, all attempts together, before the job fails. "
        "Waiting for a queue, a node or an image does not count, nor does preflight. May be raised at any time.",
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=315_360_000,
        description="Seconds after the end at which this object is deleted; unset: the platform's default, 30 days "
        "unless it chose otherwise.",
    )


class PodResources(ApiModel):
    """The resources of the container that does the work; requests equal limits."""

    gpus: int = Field(1, ge=0, le=1, description="GPUs of the pod: 1, or 0 to use the CPU.")
    gpu_resource: GpuResource = Field(
        "nvidia.com/gpu", description="Name of the extended resource that NVIDIA GPUs are."
    )
    cpu: CpuString = Field("4", description='CPU of the container: 4, 500m or "0.5"; quote a fraction.')
    memory: MemoryString = Field("24Gi", description="Memory of the container. May change while no pod runs.")
    ephemeral_storage: DiskString = Field(
        "50Gi",
        description="Disk of the container: model, data set, checkpoints. Left out, it is what preflight counts, and "
        "at least the default. May change while no pod runs.",
    )


class ResourcesSpec(PodResources):
    """The resources of each training container; requests equal limits."""

    gpus: int = Field(
        1, ge=0, le=16, description="GPUs of each pod, on which it trains together: 0 to 16; 0 to train on the CPU."
    )
    nodes: int = Field(
        1,
        ge=1,
        le=64,
        description="Pods that train one adapter together, each with gpus, cpu, memory and ephemeralStorage of its "
        "own: 1 to 64. More than one need a network between them, and are best queued (docs/distributed.md). What "
        "may change while no pod runs may, with several, change until all of them run.",
    )

    @property
    def devices(self) -> int:
        """How many train together: GPUs, or on the CPU pods."""
        return max(1, self.gpus) * self.nodes


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """The effect of a taint."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A toleration, as in a pod."""

    key: TaintKey | None = Field(None, description="Taint key; empty with Exists: all.")
    operator: TolerationOperator = Field(TolerationOperator.EQUAL, description="Exists or Equal.")
    value: LabelValue | None = Field(None, description="Taint value.")
    effect: TaintEffect | None = Field(None, description="Taint effect; empty: all.")
    toleration_seconds: int | None = Field(None, ge=0, description="How long NoExecute is tolerated.")


class SelectorOperator(StrEnum):
    """How a node requirement compares."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class NodeSelectorRequirement(ApiModel):
    """One condition on a node's label."""

    key: LabelKey = Field(description="Label of the node.")
    operator: SelectorOperator = Field(description="How it is compared.")
    values: list[LabelValue] | None = Field(None, max_length=64, description="Values for In, NotIn, Gt and Lt.")


class NodeSelectorTerm(ApiModel):
    """Conditions that must all hold."""

    match_expressions: list[NodeSelectorRequirement] = Field(
        min_length=1, max_length=16, description="Conditions on labels; all must hold."
    )


class NodeSelector(ApiModel):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] = Field(
        min_length=1, max_length=16, description="Terms; one of them must hold."
    )


class PreferredSchedulingTerm(ApiModel):
    """A weighted preference."""

    weight: int = Field(ge=1, le=100, description="Weight of the preference.")
    preference: NodeSelectorTerm = Field(description="What is preferred.")


class NodeAffinity(ApiModel):
    """Node affinity, as in a pod."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = Field(
        None, description="What a node must have."
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredSchedulingTerm] | None = Field(
        None, max_length=16, description="What a node should have."
    )


class Affinity(ApiModel):
    """Affinity of the pod; node affinity only."""

    node_affinity: NodeAffinity | None = Field(None, description="Node affinity, as in a pod.")


class SchedulingSpec(ApiModel):
    """Where and how the pods are scheduled."""

    node_selector: dict[LabelKey, LabelValue] | None = Field(
        None, max_length=32, description="Labels that the node must have."
    )
    tolerations: list[Toleration] | None = Field(None, max_length=32, description="Taints that are tolerated.")
    affinity: Affinity | None = Field(None, description="Node affinity.")
    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")
    runtime_class_name: ObjectName | None = Field(None, description="RuntimeClass of the pods.")
    scheduler_name: ObjectName | None = Field(None, description="Scheduler, where it is not the default one.")
    service_account_name: ObjectName | None = Field(
        None, description="ServiceAccount whose workload identity the pods use; its API token is never mounted."
    )
