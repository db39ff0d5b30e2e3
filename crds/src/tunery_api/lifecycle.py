"""What of a spec may change; and what the kinds that run Jobs share with them: stopping, trying again, ending."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tunery_api.fields import ApiModel


class KindSpec(ApiModel):
    """The spec of a kind, and what of it may change."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset()
    """May change at any time."""
    MUTABLE_AT_REST: ClassVar[frozenset[str]] = frozenset()
    """May change while no pod runs: the next pod is made from them."""
    SET_ONCE: ClassVar[frozenset[str]] = frozenset()
    """May be set at any time, and then neither changed nor taken away."""
    MUTABLE_RESOURCES: ClassVar[frozenset[str]] = frozenset()
    """The fields of `resources` that may change while no pod runs, where not all of it may."""


class LifecycleFields(KindSpec):
    """The fields of a spec that say how its Jobs live and end."""

    MUTABLE: ClassVar[frozenset[str]] = frozenset({"suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds"})
    MUTABLE_AT_REST: ClassVar[frozenset[str]] = frozenset({"retries", "scheduling"})
    MUTABLE_RESOURCES: ClassVar[frozenset[str]] = frozenset({"memory", "ephemeralStorage"})

    suspend: bool = Field(
        False, description="Stop the pods, of a LoRAJob after a checkpoint, and keep the rest; false goes on."
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
