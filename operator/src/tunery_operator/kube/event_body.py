"""An event about one of our objects.

It is one of core/v1: events.k8s.io/v1 has no lastTimestamp, by which `kubectl describe` sorts.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any, Final

from tunery_operator.views.clock import format_time
from tunery_operator.views.event import Event
from tunery_operator.views.owner import Owner

CONTROLLER: Final = "tunery.dev/operator"
COMPONENT: Final = "tunery"
MAX_NOTE: Final = 1000
MAX_NAME: Final = 253
_DIGEST: Final = 16


def build_event(owner: Owner, event: Event, now: datetime, instance: str) -> dict[str, Any]:
    """Return the event; its name follows from what it tells, so that telling it twice leaves one."""
    key, time = owner.key, format_time(now)
    digest = hashlib.sha256("\0".join((owner.uid, event.reason, event.time, event.note)).encode()).hexdigest()[:_DIGEST]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": _name(key.name, digest), "namespace": key.namespace},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "reason": event.reason,
        "type": "Warning" if event.warning else "Normal",
        "message": event.note[:MAX_NOTE],
        "involvedObject": {
            "apiVersion": owner.api_version,
            "kind": key.kind.value,
            "namespace": key.namespace,
            "name": key.name,
            "uid": owner.uid,
        },
    }


def _name(owner: str, digest: str) -> str:
    """Return a valid name: what stands before a dot of a DNS name must end with a letter or a digit."""
    return f"{owner[: MAX_NAME - _DIGEST - 1].rstrip('-.')}.{digest}"
