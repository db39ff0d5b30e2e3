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
"""The name of an object, with its kind before it."""
Digest = Annotated[str, Field(max_length=64)]


class ServerPhase(StrEnum):
    """One word for people, derived from the conditions. A server never ends, so none of them is final."""

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
    """Where an adapter stands, on a replica or over all of them."""

    SERVED = "Served"
    COLD = "Cold"
    """Verified, and loaded as soon as somebody asks for it."""
    LOADING = "Loading"
    WAITING = "Waiting"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class NotServedOn(OpenModel):
    """A replica that does not serve an adapter."""

    pod: Name = Field(description="Its pod.")
    state: Annotated[str, Field(max_length=16)] = Field(description=f"{enum_values(AdapterState)}.")
    reason: Reason | None = Field(None, description="Why.")
    message: Text | None = Field(None, description="Why, in a sentence.")


class ServedAdapterStatus(OpenModel):
    """One adapter."""

    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="The name that requests give.")
    source: Name | None = Field(None, description="LoRAJob/name, AdapterMerge/name, or uri.")
    uri: Text | None = Field(None, description="Where it lies.")
    manifest_sha256: Digest | None = Field(
        None, description="Digest of the manifest of what is served; after a bad update that of the old version."
    )
    wanted_sha256: Digest | None = Field(None, description="The digest that is to be served, while it is another.")
    rank: int | None = Field(None, ge=0, description="Its rank.")
    size_bytes: int | None = Field(None, ge=0, description="Size of its files.")
    state: Annotated[str, Field(max_length=16)] = Field(description=f"{enum_values(AdapterState)}.")
    replicas: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="Ready replicas that serve it, of all that are ready."
    )
    reason: Reason | None = Field(None, description="What stands in the way.")
    message: Text | None = Field(None, description="What stands in the way, in a sentence.")
    hint: Text | None = Field(None, description="What to do, in a sentence.")
    last_used_time: Timestamp | None = Field(
        None, description="When it was last asked for: of each ten minutes by the clock the first request is told."
    )
    not_served_on: list[NotServedOn] | None = Field(
        None, max_length=NOT_SERVED_SHOWN, description=f"Replicas that do not serve it; the first {NOT_SERVED_SHOWN}."
    )


class AdapterCounts(OpenModel):
    """How many adapters, exactly, also where the list is cut."""

    desired: int = Field(0, ge=0, description="Adapters that are wanted.")
    served: int = Field(0, ge=0, description="Those served, or cold, on every ready replica.")
    cold: int = Field(0, ge=0, description="Those that wait for a request, verified, on some ready replica.")
    failed: int = Field(0, ge=0, description="Those that need somebody to mend them.")
    skipped: int = Field(0, ge=0, description="Objects with the selector's labels that are not for this server.")


class ReplicaStatus(OpenModel):
    """One replica."""

    pod: Name = Field(description="Its pod.")
    ready: bool = Field(description="Whether it gets requests, by the kubelet's word.")
    served: int | None = Field(None, ge=0, description="Adapters that it serves, by its last report.")
    loaded: int | None = Field(None, ge=0, description="Those of them that its engine holds.")
    engine_version: Annotated[str, Field(max_length=64)] | None = Field(None, description="Version of its engine.")
    reason: Reason | None = Field(None, description="What stands in its way.")
    message: Text | None = Field(None, description="What stands in its way, in a sentence.")


class SkippedSource(OpenModel):
    """An object that the selector found and that is not served."""

    source: Name = Field(description="LoRAJob/name or AdapterMerge/name.")
    reason: Text = Field(description="Why it is not.")


class AdapterServerStatus(OpenModel):
    """The status of an AdapterServer."""

    observed_generation: int | None = Field(
        None, ge=UNOBSERVED, description="Generation of the spec that this speaks of; -1: nobody has seen it yet."
    )
    phase: Annotated[str, Field(max_length=64)] | None = Field(
        None, description=f"One word, derived from the conditions: {enum_values(ServerPhase)}."
    )
    conditions: list[Condition] | None = Field(
        None,
        max_length=MAX_CONDITIONS,
        description=f"The conditions, by type: {enum_values(ServerCondition)}.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    url: Text | None = Field(None, description="Base URL of the API, within the cluster.")
    replicas: int | None = Field(None, ge=0, description="Replicas that there are.")
    ready_replicas: int | None = Field(None, ge=0, description="Those that get requests.")
    ready_text: Annotated[str, Field(max_length=16)] | None = Field(None, description="readyReplicas of spec.replicas.")
    selector: Text | None = Field(None, description="Label selector of the replicas' pods, for autoscalers.")
    adapters_text: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="Adapters served, or cold, on every ready replica, of all that are wanted."
    )
    adapter_counts: AdapterCounts | None = Field(None, description="How many adapters, exactly.")
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
        description=f"What the selector found and is not served; the first {SKIPPED_SHOWN}.",
    )
    failure: FailureStatus | None = Field(None, description="What stands in the way now; gone once it is mended.")
    last_change_time: Timestamp | None = Field(None, description="When what is served last changed.")
