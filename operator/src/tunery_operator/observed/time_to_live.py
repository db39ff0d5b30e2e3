"""How long an object lives on once it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunery_api.kinds import Kind
from tunery_operator.observed.job import controller_of


def time_to_live(body: Mapping[str, Any], default: int | None) -> int | None:
    """Return for how many seconds an object lives on after its end; None: until someone deletes it.

    The platform's default is not for a trial: that goes with its sweep, whose time to live is both of theirs.
    """
    if controller_of(body).get("kind") == Kind.LORASWEEP.value:
        default = None
    ttl = (body.get("spec") or {}).get("ttlSecondsAfterFinished", default)
    return ttl if isinstance(ttl, int) else None
