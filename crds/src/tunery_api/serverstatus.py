"""Define the status of an AdapterServer: its adapters, its replicas, and what blocks them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from tunery_api.failures import FailureStatus
from tunery_api.fields import UNOBSERVED, OpenModel, Text, enum_values
from tunery_api.status import MAX_CONDITIONS, Condition, Reason, Timestamp

ADAPTERS_SHOWN: Final = 256
REPLICAS_SHOWN: Final = 64
NOT_SERVED_SHOWN: Final = 8
SKIPPED_SHOWN: Final = 32

Name = Annotated[str, Field(max_length=272)]
"""Name of an object; its kind may come first, as in LoRAJob/name."""
Digest = Annotated[str, Field(max_length=64)]


class ServerPhase(StrEnum):
    """A one-word summary of the conditions for people. No phase is final: a server doesn't finish."""

    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    DEGRADED = "Degraded"
    UPDATING = "Updating"
    STOPPED = "Stopped"
    INVALID = "Invalid"


class ServerCondition(StrEnum):
    """The condition types of an AdapterServer."""

    VALIDATED = "Validated"
    ADAPTERS_RESOLVED = "AdaptersResolved"
    AVAILABLE = "Available"
    ADAPTERS_SERVED = "AdaptersServed"
    PROGRESSING = "Progressing"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class AdapterState(StrEnum):
    """The state of an adapter, on one replica or on all."""

    SERVED = "Served"
    COLD = "Cold"
    """Verified, and loaded on the first request."""
    LOADING = "Loading"
    WAITING = "Waiting"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class NotServedOn(OpenModel):
    """A replica that doesn't serve an adapter."""

    pod: Name = Field(description="Pod of the replica.")
    state: Annotated[str, Field(max_length=16)] = Field(
        description=f"State of the adapter on this replica: {enum_values(AdapterState)}."
    )
    reason: Reason | None = Field(None, description="Why the replica doesn't serve the adapter, in CamelCase.")
    message: Text | None = Field(None, description="Why the replica doesn't serve the adapter, for people.")


class ServedAdapterStatus(OpenModel):
    """The status of one adapter."""

    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="The model name in requests.")
    source: Name | None = Field(None, description="Source of the adapter: LoRAJob/name, AdapterMerge/name or uri.")
    uri: Text | None = Field(None, description="URI of the adapter.")
    manifest_sha256: Digest | None = Field(
        None, description="SHA-256 of the served version's manifest. If an update fails, the old version stays served."
    )
    wanted_sha256: Digest | None = Field(
        None, description="SHA-256 of the desired version's manifest. Unset: the served version is the desired one."
    )
    rank: int | None = Field(None, ge=0, description="Rank of the adapter.")
    size_bytes: int | None = Field(None, ge=0, description="Total size of the files, in bytes.")
    state: Annotated[str, Field(max_length=16)] = Field(
        description=f"State of the adapter on all replicas: {enum_values(AdapterState)}."
    )
    replicas: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="Ready replicas that serve the adapter, of all ready replicas."
    )
    reason: Reason | None = Field(None, description="Why the adapter isn't served everywhere, in CamelCase.")
    message: Text | None = Field(None, description="Why the adapter isn't served everywhere, for people.")
    hint: Text | None = Field(None, description="How to fix the problem.")
    last_used_time: Timestamp | None = Field(
        None,
        description="Time of the last request, with 10-minute resolution: in each 10-minute interval, only the first "
        "request updates it.",
    )
    not_served_on: list[NotServedOn] | None = Field(
        None,
        max_length=NOT_SERVED_SHOWN,
        description=f"Ready replicas that don't serve the adapter; the first {NOT_SERVED_SHOWN}.",
    )


class AdapterCounts(OpenModel):
    """The exact numbers of adapters, even if the list is cut."""

    desired: int = Field(0, ge=0, description="Adapters that should be served.")
    served: int = Field(0, ge=0, description="Adapters that are Served or Cold on every ready replica.")
    cold: int = Field(
        0, ge=0, description="Verified adapters that at least one ready replica loads on the first request."
    )
    failed: int = Field(0, ge=0, description="Adapters that you need to fix.")
    skipped: int = Field(0, ge=0, description="Objects that the selector matches but that this server can't serve.")


class ReplicaStatus(OpenModel):
    """The status of one replica."""

    pod: Name = Field(description="Pod of the replica.")
    ready: bool = Field(description="Whether the pod is ready and receives requests.")
    served: int | None = Field(None, ge=0, description="Adapters that the replica serves, by its last report.")
    loaded: int | None = Field(None, ge=0, description="Adapters that the engine holds in memory.")
    engine_version: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Version of the engine, vLLM."
    )
    reason: Reason | None = Field(None, description="What blocks the replica, in CamelCase.")
    message: Text | None = Field(None, description="What blocks the replica, for people.")


class SkippedSource(OpenModel):
    """An object that the selector matches and that isn't served."""

    source: Name = Field(description="The object: LoRAJob/name or AdapterMerge/name.")
    reason: Text = Field(description="Why the object isn't served, for people.")


class AdapterServerStatus(OpenModel):
    """The status of an AdapterServer."""

    observed_generation: int | None = Field(
        None,
        ge=UNOBSERVED,
        description="The metadata.generation that this status is based on; -1 until the operator has read the object.",
    )
    phase: Annotated[str, Field(max_length=64)] | None = Field(
        None, description=f"One-word summary of the conditions: {enum_values(ServerPhase)}."
    )
    conditions: list[Condition] | None = Field(
        None,
        max_length=MAX_CONDITIONS,
        description=f"The conditions, one for each type: {enum_values(ServerCondition)}.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    url: Text | None = Field(None, description="Base URL of the OpenAI-compatible API, within the cluster.")
    replicas: int | None = Field(None, ge=0, description="Number of existing replicas.")
    ready_replicas: int | None = Field(None, ge=0, description="Number of ready replicas.")
    ready_text: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="readyReplicas of spec.replicas, such as 2/3."
    )
    selector: Text | None = Field(None, description="Label selector of the replicas' pods, for autoscalers.")
    adapters_text: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="Adapters that are Served or Cold on every ready replica, of all desired adapters."
    )
    adapter_counts: AdapterCounts | None = Field(None, description="The exact numbers of adapters.")
    adapters: list[ServedAdapterStatus] | None = Field(
        None,
        max_length=ADAPTERS_SHOWN,
        description=f"The adapters, those with problems first; at most {ADAPTERS_SHOWN}.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    replica_statuses: list[ReplicaStatus] | None = Field(
        None, max_length=REPLICAS_SHOWN, description=f"The replicas; at most {REPLICAS_SHOWN}."
    )
    skipped: list[SkippedSource] | None = Field(
        None,
        max_length=SKIPPED_SHOWN,
        description=f"Objects that the selector matches and that aren't served; the first {SKIPPED_SHOWN}.",
    )
    failure: FailureStatus | None = Field(
        None, description="What blocks the server now, and how to fix it. Removed once it is fixed."
    )
    last_change_time: Timestamp | None = Field(None, description="When the served adapters last changed.")
