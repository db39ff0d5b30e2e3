"""Which LoRAJobs are trials of which LoRASweep; not safe for threads, see cache.py.

Of a trial that has ended nothing is kept but its name: what it came to stands in its sweep's status, or is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tunery_api.kinds import Kind
from tunery_operator.client.owner_key import owner_key
from tunery_operator.observed.metadata import Key, controller_of


class _Told(NamedTuple):
    """What of a trial its sweep acts on."""

    sweep: Key
    sweep_uid: str
    what: tuple[Any, ...]


class Trials:
    """The trials by the uid of their sweep."""

    def __init__(self) -> None:
        self._told: dict[Key, _Told] = {}
        self._names: dict[str, set[str]] = {}

    def see(self, key: Key, body: dict[str, Any]) -> set[Key]:
        """Take note of a LoRAJob's newest state; return its sweep where that has to know of what changed."""
        sweep = owner_key(body)
        if sweep is None or sweep.kind is not Kind.LORASWEEP:
            # Somebody may have taken the owner reference away.
            return self.forget(key)
        told = _Told(sweep, str(controller_of(body).get("uid")), _facts(body))
        if self._told.get(key) == told:
            return set()
        self._told[key] = told
        self._names.setdefault(told.sweep_uid, set()).add(key.name)
        return {sweep}

    def forget(self, key: Key) -> set[Key]:
        """Forget a LoRAJob that is gone; return its sweep."""
        told = self._told.pop(key, None)
        if told is None:
            return set()
        names = self._names[told.sweep_uid]
        names.discard(key.name)
        if not names:
            del self._names[told.sweep_uid]
        return {told.sweep}

    def has(self, key: Key) -> bool:
        """Tell whether a LoRAJob is a trial."""
        return key in self._told

    def of(self, sweep_uid: str) -> frozenset[str]:
        """Return the names of a sweep's LoRAJobs."""
        return frozenset(self._names.get(sweep_uid, ()))


def _facts(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a sweep acts on: how far a trial is, how it stands, and what was asked of it."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    findings = tuple((each.get("type"), each.get("severity")) for each in status.get("findings") or ())
    return (
        body["metadata"]["uid"],
        "deletionTimestamp" in body["metadata"],
        tuple(body["metadata"].get("finalizers") or ()),
        status.get("phase"),
        len(status.get("evaluations") or ()),
        findings,
        (status.get("failure") or {}).get("reason"),
        status.get("attempts"),
        spec.get("stop"),
        spec.get("suspend"),
    )
