"""Find out, before anything is computed, whether a result can be published."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError
from tunery_common.storage.base import OWN_PREFIX, ObjectExists, Store
from tunery_common.storage.publisher import Target, check_claimable, check_free, find_published


@dataclass(frozen=True)
class ProbeResult:
    """What a write probe found out about the place."""

    conditional_writes: bool
    """Whether the server refuses to replace an object when `If-None-Match: *` is set."""


def probe(target: Target) -> ProbeResult:
    """Preflight's check that `publish` will work: write, read back and delete a small object below the prefix.

    Raises OUTPUT_EXISTS if another run's result is there (or being written) and `overwrite` is not set, and the
    storage reasons, naming the right that is missing.
    """
    check_free(target, find_published(target))
    check_claimable(target)
    key, data = target.key(f"{OWN_PREFIX}probe-{uuid.uuid4().hex[:12]}"), uuid.uuid4().bytes
    conditional = target.store.put_bytes(key, data, if_none_match=True).atomic
    try:
        if target.store.read_bytes(key) != data:
            message = f"{target.store.uri(key)} does not hold what was just written to it"
            raise TuneryError(FailureReason.STORAGE_UNAVAILABLE, message)
        conditional = conditional and _refuses_second_write(target.store, key)
    finally:
        target.store.delete(key)
    return ProbeResult(conditional_writes=conditional)


def _refuses_second_write(store: Store, key: str) -> bool:
    """Some servers accept `If-None-Match` and ignore it."""
    try:
        store.put_bytes(key, b"", if_none_match=True)
    except ObjectExists:
        return True
    return False
